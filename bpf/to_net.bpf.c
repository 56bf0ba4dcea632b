/* What the node's own stack sends to other machines: tcx egress on the uplink. Only answers of its processes to clients of a service
 * are of interest; what pods and tunnels send passes here too, and is let by. */
#include "lib/edge.h"

static __always_inline bool is_of_tunnel(const struct packet *packet)
{
    return weft_config.tunnel_port && packet->protocol == PROTOCOL_UDP && packet->destination_port == weft_config.tunnel_port;
}

__noinline int to_net_own(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct weft_nat_key key;
    if (parse_network(skb, &packet) || parse_transport(skb, &packet) || is_of_tunnel(&packet))
        return TO_STACK;
    if (packet.is_icmp_error) {
        if (translate_error(skb, &packet, ERROR_ABOUT_REQUEST) == TRANSLATION_BROKEN)
            return refuse_with(skb, &packet, WEFT_HOOK_TO_NET, WEFT_REASON_MALFORMED);
        return TO_STACK;
    }
    if ((packet.protocol != PROTOCOL_TCP && packet.protocol != PROTOCOL_UDP) ||
        (packet.fragment != FRAGMENT_WHOLE && complete_fragment(&packet)))
        return TO_STACK;
    nat_key(&packet, &key);
    struct weft_nat *entry = bpf_map_lookup_elem(&nat, &key);
    if (!entry || !(entry->flags & WEFT_NAT_REPLY))
        return TO_STACK;
    follow_nat(&packet, entry);
    if (!rewrite(skb, &packet, entry))
        return refuse_with(skb, &packet, WEFT_HOOK_TO_NET, WEFT_REASON_MALFORMED);
    return TO_STACK;
}

SEC("tc")
int to_net(struct __sk_buff *skb)
{
    /* The stack's own packets came in nowhere. */
    return skb->ingress_ifindex ? TO_STACK : to_net_own(skb);
}
