/* Everything a pod sends: tcx ingress on the host side of its link. The order of the steps is docs/design/datapath.md's. */
#include "lib/forward.h"

static __always_inline int forward_from_pod(struct __sk_buff *skb, const struct packet *packet, struct verdict *verdict)
{
    const struct weft_endpoint *local = bpf_map_lookup_elem(&endpoints, &packet->destination);
    if (local && local->kind == WEFT_ENDPOINT_POD)
        return deliver(skb, packet, local, WEFT_HOOK_FROM_POD, verdict->reason);
    if (!local) {
        const struct weft_route *route = route_to(&packet->destination);
        __u8 kind = route ? route->kind : WEFT_ROUTE_NONE;
        if (route && kind == WEFT_ROUTE_REMOTE)
            return send_remote(skb, packet, route, WEFT_HOOK_FROM_POD, verdict->reason);
        if (kind == WEFT_ROUTE_OWN_PODS)
            return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_NO_SUCH_POD);
        if (kind == WEFT_ROUTE_SERVICES)
            return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_NOT_TRANSLATED);
        if (kind == WEFT_ROUTE_CLUSTER_PODS)
            return refuse_with(skb, packet, WEFT_HOOK_FROM_POD, WEFT_REASON_ROUTE_MISSING);
    }
    count(verdict->reason, 1, skb->len);
    return TO_STACK;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct verdict verdict = {};
    __u8 broken = parse_network(skb, &packet);
    if (!broken && is_link_local(&packet.destination))
        broken = WEFT_REASON_LINK_LOCAL;
    if (!broken && !is_pod_at(&packet.source, skb->ifindex))
        broken = WEFT_REASON_SPOOFED_SOURCE;
    if (!broken)
        broken = parse_transport(skb, &packet);
    if (broken)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, broken);
    track(skb, &packet, WEFT_HOOK_FROM_POD, &verdict);
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_POD, &verdict);
    return forward_from_pod(skb, &packet, &verdict);
}
