/* What other machines send: tcx ingress on the uplink and on the tunnel device. */
#include "lib/forward.h"

#define PACKET_FOR_US 0

static __always_inline int to_node(struct __sk_buff *skb)
{
    /* Inner frames carry the sender's idea of a link address. */
    if (weft_config.tunnel_ifindex && skb->ifindex == weft_config.tunnel_ifindex)
        bpf_skb_change_type(skb, PACKET_FOR_US);
    return TO_STACK;
}

static __always_inline bool came_through(struct __sk_buff *skb, const struct weft_addr *via)
{
    struct bpf_tunnel_key key = {};
    if (is_v4(via))
        return !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) && bpf_htonl(key.remote_ipv4) == via->words[3];
    return !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6) &&
           same_addr((const struct weft_addr *)key.remote_ipv6, via);
}

static __always_inline bool is_spoofed(struct __sk_buff *skb, const struct packet *packet)
{
    if (bpf_map_lookup_elem(&endpoints, &packet->source))
        return true;
    const struct weft_route *route = route_to(&packet->source);
    if (route && route->kind == WEFT_ROUTE_OWN_PODS)
        return true;
    if (weft_config.routing != WEFT_ROUTING_VXLAN)
        return false;
    if (skb->ifindex != weft_config.tunnel_ifindex)
        return route && route->flags & WEFT_ROUTE_IS_POD;
    if (!route || route->kind != WEFT_ROUTE_REMOTE)
        return true;
    struct weft_addr via = route->via;
    return !came_through(skb, &via);
}

SEC("tc")
int from_net(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct verdict verdict = {};
    if (parse_network(skb, &packet))
        return to_node(skb);
    const struct weft_endpoint *local = bpf_map_lookup_elem(&endpoints, &packet.destination);
    if (!local || local->kind != WEFT_ENDPOINT_POD) {
        const struct weft_route *route = local ? NULL : route_to(&packet.destination);
        if (!route || route->kind != WEFT_ROUTE_OWN_PODS)
            return to_node(skb);
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, WEFT_REASON_NO_SUCH_POD);
    }
    __u8 broken = is_spoofed(skb, &packet) ? WEFT_REASON_SPOOFED_SOURCE : parse_transport(skb, &packet);
    if (broken)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, broken);
    track(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
    if (packet.hop_limit <= 1)
        to_node(skb);
    return deliver(skb, &packet, local, WEFT_HOOK_FROM_NET, verdict.reason);
}
