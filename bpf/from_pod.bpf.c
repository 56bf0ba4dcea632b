/* Everything a pod sends: tcx ingress on the host side of its link. The order of the steps is docs/design/datapath.md's. */
#include "lib/known.h"

static __always_inline int forward_from_pod(struct __sk_buff *skb, const struct packet *packet, struct verdict *verdict)
{
    switch (verdict->to.kind) {
    case WEFT_END_POD:
        return deliver(skb, packet, WEFT_HOOK_FROM_POD, verdict);
    case WEFT_END_REMOTE:
    case WEFT_END_REMOTE_POD:
        return send_remote(skb, packet, WEFT_HOOK_FROM_POD, verdict);
    case WEFT_END_OWN_PODS:
        return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_NO_SUCH_POD);
    case WEFT_END_SERVICES:
        return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_NOT_TRANSLATED);
    case WEFT_END_CLUSTER_PODS:
        return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_ROUTE_MISSING);
    }
    count(verdict->reason, 1, skb->len);
    return TO_STACK;
}

static __always_inline bool is_from(const struct found *found, __u32 ifindex)
{
    const struct weft_end *from = found->from_b ? &found->flow->ends[1] : &found->flow->ends[0];
    return from->kind == WEFT_END_POD && from->ifindex == ifindex;
}

static __noinline int from_pod_known(struct __sk_buff *skb)
{
    struct plain plain;
    if (!read_plain(skb, &plain, WEFT_HOOK_FROM_POD))
        return NOT_KNOWN;
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &plain.key);
    if (!flow)
        return NOT_KNOWN;
    const struct weft_end *from = &flow->ends[plain.from_b ? 1 : 0], *to = &flow->ends[plain.from_b ? 0 : 1];
    const struct weft_addr *via = (const struct weft_addr *)to->target;
    if (from->kind != WEFT_END_POD || from->ifindex != skb->ifindex || !is_open(flow, to))
        return NOT_KNOWN;
    bool tunnelled = weft_config.routing == WEFT_ROUTING_VXLAN && to->kind != WEFT_END_POD;
    if ((tunnelled && !set_tunnel(skb, via)) || !rewrite_plain(skb, &plain, to))
        return NOT_KNOWN;
    account(skb, &plain, flow, WEFT_HOOK_FROM_POD);
    if (to->kind == WEFT_END_POD)
        return bpf_redirect_peer(to->ifindex, 0);
    return tunnelled ? send_tunnelled(skb) : send_direct(via);
}

/* The general way: any packet at all. */
__noinline int from_pod_any(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct verdict verdict = {};
    struct found found;
    __u8 broken = parse_network(skb, &packet);
    if (!broken && is_link_local(&packet.destination))
        broken = WEFT_REASON_LINK_LOCAL;
    if (broken)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, broken);
    broken = parse_transport(skb, &packet);
    if (!broken && find_current(&packet, &found) && is_from(&found, skb->ifindex)) {
        follow_flow(skb, &packet, &found, WEFT_HOOK_FROM_POD, &verdict);
    } else {
        if (!is_pod_at(&packet.source, skb->ifindex))
            broken = WEFT_REASON_SPOOFED_SOURCE;
        if (broken)
            return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, broken);
        track(skb, &packet, &found, WEFT_HOOK_FROM_POD, &verdict);
    }
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_POD, &verdict);
    return forward_from_pod(skb, &packet, &verdict);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
    int action = from_pod_known(skb);
    return action == NOT_KNOWN ? from_pod_any(skb) : action;
}
