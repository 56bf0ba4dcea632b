/* What the node's own stack sends to other nodes' pods in VXLAN mode: tcx egress on the tunnel device. Pods' packets come with their tunnel key set. */
#include "lib/forward.h"

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
    if (skb->tc_index == HAS_TUNNEL_KEY) {
        skb->tc_index = 0;
        return TO_STACK;
    }
    struct bpf_tunnel_key set;
    if (!bpf_skb_get_tunnel_key(skb, &set, sizeof(set), 0) || !bpf_skb_get_tunnel_key(skb, &set, sizeof(set), BPF_F_TUNINFO_IPV6))
        return TO_STACK;
    struct packet packet = {};
    struct weft_end to = {};
    if (!parse_network(skb, &packet))
        resolve_route(&packet.destination, &to);
    if (to.kind != WEFT_END_REMOTE && to.kind != WEFT_END_REMOTE_POD) {
        /* Neighbour and multicast chatter of the device itself. */
        count(WEFT_REASON_ROUTE_MISSING, 1, skb->len);
        return DROP;
    }
    if (set_tunnel(skb, (const struct weft_addr *)to.target))
        return TO_STACK;
    count(WEFT_REASON_TUNNEL_FAILED, 1, skb->len);
    return DROP;
}
