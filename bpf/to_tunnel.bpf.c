/* What the node's own stack sends to other nodes' pods in VXLAN mode: tcx egress on the tunnel device. Pods' packets come with their tunnel key set. */
#include "lib/forward.h"

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
    struct bpf_tunnel_key set;
    if (!bpf_skb_get_tunnel_key(skb, &set, sizeof(set), 0) || !bpf_skb_get_tunnel_key(skb, &set, sizeof(set), BPF_F_TUNINFO_IPV6))
        return TO_STACK;
    struct packet packet = {};
    __u8 broken = parse_network(skb, &packet);
    const struct weft_route *route = broken ? NULL : route_to(&packet.destination);
    if (!route || route->kind != WEFT_ROUTE_REMOTE) {
        /* Neighbour and multicast chatter of the device itself. */
        count(WEFT_REASON_ROUTE_MISSING, 1, skb->len);
        return DROP;
    }
    struct weft_addr via = route->via;
    if (set_tunnel(skb, &via))
        return TO_STACK;
    count(WEFT_REASON_TUNNEL_FAILED, 1, skb->len);
    return DROP;
}
