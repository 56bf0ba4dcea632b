/* What the node's own stack sends to a pod: tcx egress on the host side of its link. Deliveries by redirect do not pass here. */
#include "lib/edge.h"

static __always_inline bool is_pod_at(const struct weft_endpoint *endpoint, __u32 ifindex)
{
    return endpoint && endpoint->kind == WEFT_ENDPOINT_POD && endpoint->ifindex == ifindex;
}

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
    ends.receiver = broken ? NULL : bpf_map_lookup_elem(&endpoints, &packet.destination);
    if (!broken && !is_pod_at(ends.receiver, skb->ifindex))
        broken = WEFT_REASON_NO_SUCH_POD;
    if (!broken)
        broken = parse_transport(skb, &packet);
    if (broken || !ends.receiver)
        return refuse_with(skb, &packet, WEFT_HOOK_TO_POD, broken);
    describe_endpoint(ends.receiver, &verdict.to);
    if (!resolve_source(&packet, &ends))
        return DROP;
    track(skb, &packet, &ends, &found, WEFT_HOOK_TO_POD, &verdict);
    if (is_denial(verdict.reason)) {
        /* Its node reaches a pod even on a flow that the pod itself may no longer use. */
        bool is_policy = verdict.reason <= WEFT_REASON_IDENTITY_UNKNOWN;
        if (!is_policy || ends.source->kind != WEFT_END_HOST)
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
