/* What other machines send: tcx ingress on the uplink and on the tunnel device. */
#include "lib/known.h"

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

/* Whether a packet from such a source may come this way. */
static __always_inline bool is_spoofed(struct __sk_buff *skb, const struct weft_end *from)
{
    __u32 kind = from->kind;
    if (kind == WEFT_END_POD || kind == WEFT_END_HOST || kind == WEFT_END_OWN_PODS)
        return true;
    if (weft_config.routing != WEFT_ROUTING_VXLAN)
        return false;
    if (skb->ifindex != weft_config.tunnel_ifindex)
        return kind == WEFT_END_REMOTE_POD || kind == WEFT_END_CLUSTER_PODS;
    if (kind != WEFT_END_REMOTE && kind != WEFT_END_REMOTE_POD)
        return true;
    return !came_through(skb, (const struct weft_addr *)from->target);
}

static __always_inline bool is_known(struct __sk_buff *skb, const struct found *found)
{
    return !is_spoofed(skb, &found->flow->ends[found->from_b ? 1 : 0]);
}

static __noinline int from_net_known(struct __sk_buff *skb)
{
    struct plain plain;
    if (!read_plain(skb, &plain, WEFT_HOOK_FROM_NET))
        return NOT_KNOWN;
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &plain.key);
    if (!flow)
        return NOT_KNOWN;
    const struct weft_end *from = &flow->ends[plain.from_b ? 1 : 0], *to = &flow->ends[plain.from_b ? 0 : 1];
    if (to->kind != WEFT_END_POD || !is_open(flow, to) || is_spoofed(skb, from) || !rewrite_plain(skb, &plain, to))
        return NOT_KNOWN;
    account(skb, &plain, flow, WEFT_HOOK_FROM_NET);
    return bpf_redirect_peer(to->ifindex, 0);
}

/* The general way: any packet at all. */
__noinline int from_net_any(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct verdict verdict = {};
    struct found found;
    struct weft_end end;
    if (parse_network(skb, &packet))
        return to_node(skb);
    const struct weft_endpoint *local = bpf_map_lookup_elem(&endpoints, &packet.destination);
    if (!local || local->kind != WEFT_ENDPOINT_POD) {
        end.kind = WEFT_END_HOST;
        if (!local)
            resolve_route(&packet.destination, &end);
        if (end.kind != WEFT_END_OWN_PODS)
            return to_node(skb);
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, WEFT_REASON_NO_SUCH_POD);
    }
    __u8 broken = parse_transport(skb, &packet);
    if (!broken && find_current(&packet, &found) && is_known(skb, &found)) {
        follow_flow(skb, &packet, &found, WEFT_HOOK_FROM_NET, &verdict);
    } else {
        resolve(&packet.source, &end);
        if (is_spoofed(skb, &end))
            broken = WEFT_REASON_SPOOFED_SOURCE;
        if (broken)
            return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, broken);
        track(skb, &packet, &found, WEFT_HOOK_FROM_NET, &verdict);
    }
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
    if (packet.hop_limit <= 1)
        to_node(skb);
    return deliver(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
}

SEC("tc")
int from_net(struct __sk_buff *skb)
{
    int action = from_net_known(skb);
    return action == NOT_KNOWN ? from_net_any(skb) : action;
}
