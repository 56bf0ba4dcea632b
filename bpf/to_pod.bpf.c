/* What the node's own stack sends to a pod: tcx egress on the host side of its link. Deliveries by redirect do not pass here. */
#include "lib/edge.h"

__noinline int to_pod_any(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct verdict verdict = {};
    struct found found;
    struct ends ends;
    __u8 broken = parse_network(skb, &packet);
    if (broken == WEFT_REASON_NOT_IP)
        return TO_STACK;
    if (!broken && is_link_local(&packet.destination))
        broken = WEFT_REASON_LINK_LOCAL;
    resolve_ends(&packet, &ends, &verdict);
    if (!broken && !is_at(&verdict.to, skb->ifindex))
        broken = WEFT_REASON_NO_SUCH_POD;
    if (!broken)
        broken = parse_transport(skb, &packet);
    if (broken)
        return refuse_with(skb, &packet, WEFT_HOOK_TO_POD, broken);
    track(skb, &packet, &ends, &found, WEFT_HOOK_TO_POD, &verdict);
    if (is_denial(verdict.reason)) {
        /* Its node reaches a pod even on a flow that the pod itself may no longer use. */
        bool is_policy = verdict.reason <= WEFT_REASON_IDENTITY_UNKNOWN;
        if (!is_policy || ends.source.kind != WEFT_END_HOST)
            return refuse(skb, &packet, WEFT_HOOK_TO_POD, &verdict);
        verdict.reason = WEFT_REASON_FROM_OWN_NODE;
    }
    if (verdict.flags & WEFT_FLOW_NAT)
        return ANSWERS | verdict.reason;
    count(verdict.reason, 1, skb->len);
    return TO_STACK;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
    int action = to_pod_any(skb);
    return action >= ANSWERS ? answer_translated(skb, WEFT_HOOK_TO_POD, action & 0xff) : action;
}
