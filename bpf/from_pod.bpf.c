/* Everything a pod sends: tcx ingress on the host side of its link. The order of the steps is docs/design/datapath.md's. */
#include "lib/forward.h"

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

SEC("tc")
int from_pod(struct __sk_buff *skb)
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
        follow_flow(skb, &packet, found.flow, found.from_b, WEFT_HOOK_FROM_POD, &verdict);
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
