/* Everything a pod sends: tcx ingress on the host side of its link. The order of the steps is docs/design/datapath.md's. */
#include "lib/edge.h"
#include "lib/known.h"
#include "lib/masquerade.h"

/* Its destination is neither a pod nor anything else that a service cannot have; not one of the actions that a program may return. */
#define FOR_SERVICE (-3)

/* What the steps before have found about a packet; not actions that a program may return, either. */
enum stage {
    STAGE_FIRST = 0x10,
    /* No service's. */
    STAGE_OTHER = 0x11,
    STAGE_TRANSLATED = 0x12,
};

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
    if (is_masqueraded(&verdict->to))
        return LEAVES | verdict->reason;
    count(verdict->reason, 1, skb->len);
    return TO_STACK;
}

static __always_inline bool is_from(const struct found *found, __u32 ifindex)
{
    return is_at(found->from_b ? &found->flow->ends[1] : &found->flow->ends[0], ifindex);
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
    if (!is_at(from, skb->ifindex) || !is_open(flow, to))
        return NOT_KNOWN;
    if (!rewrite_plain(skb, &plain, to))
        return NOT_KNOWN;
    account(skb, &plain, flow, WEFT_HOOK_FROM_POD);
    if (to->kind == WEFT_END_POD)
        return bpf_redirect_peer(to->ifindex, 0);
    if (weft_config.routing == WEFT_ROUTING_DIRECT)
        return send_direct(skb, via);
    int action = send_tunnelled(skb, via);
    return action == DROP ? refuse_plain(skb, &plain, WEFT_HOOK_FROM_POD, WEFT_REASON_TUNNEL_FAILED) : action;
}

/* Only then services are asked: pods pay nothing for them on the way to each other. */
static __always_inline bool may_be_service(const struct packet *packet, const struct weft_end *to)
{
    if (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP && !packet->is_icmp_error)
        return false;
    return to->kind == WEFT_END_HOST || to->kind == WEFT_END_REMOTE || to->kind == WEFT_END_SERVICES || to->kind == WEFT_END_OUTSIDE;
}

/* Some of the node's own addresses are link-local: its name server's. */
static __always_inline bool is_beyond_node(const struct weft_addr *addr)
{
    struct weft_end to;
    if (!is_link_local(addr))
        return false;
    resolve(addr, &to);
    return to.kind != WEFT_END_HOST;
}

/* The general way: any packet at all. */
__noinline int from_pod_any(struct __sk_buff *skb, __u32 stage)
{
    struct packet packet = {.flow_flags = stage == STAGE_TRANSLATED ? WEFT_FLOW_NAT : 0};
    struct verdict verdict = {};
    struct found found;
    __u8 broken = parse_network(skb, &packet);
    if (!broken && is_beyond_node(&packet.destination))
        broken = WEFT_REASON_LINK_LOCAL;
    if (broken)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, broken);
    broken = parse_transport(skb, &packet);
    if (!broken && find_current(&packet, &found) && (stage == STAGE_TRANSLATED || is_from(&found, skb->ifindex))) {
        follow_flow(skb, &packet, &found, WEFT_HOOK_FROM_POD, &verdict);
    } else {
        struct ends ends;
        if (!resolve_source(&packet, &ends))
            return DROP;
        ends.receiver = resolve(&packet.destination, &verdict.to);
        if (stage != STAGE_TRANSLATED && !is_at(ends.source, skb->ifindex))
            broken = WEFT_REASON_SPOOFED_SOURCE;
        if (broken)
            return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, broken);
        if (stage == STAGE_FIRST && may_be_service(&packet, &verdict.to))
            return FOR_SERVICE;
        track(skb, &packet, &ends, &found, WEFT_HOOK_FROM_POD, &verdict);
    }
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_POD, &verdict);
    if (verdict.flags & WEFT_FLOW_NAT && stage != STAGE_TRANSLATED)
        return ANSWERS | verdict.reason;
    return forward_from_pod(skb, &packet, &verdict);
}

/* Back into the pod. */
static __always_inline int refuse_pod_aloud(struct __sk_buff *skb, const struct packet *packet, __u8 reason)
{
    refuse_with(skb, packet, WEFT_HOOK_FROM_POD, reason);
    if (!turn_into_refusal(skb, packet, reason))
        return DROP;
    return bpf_redirect_peer(skb->ifindex, 0);
}

/* A packet that may be for a frontend. A stage: how the general way has to go on with it; else what becomes of it. */
__noinline int from_pod_service(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct weft_end to;
    if (parse_network(skb, &packet) || parse_transport(skb, &packet))
        return STAGE_OTHER;
    if (packet.fragment != FRAGMENT_WHOLE && complete_fragment(&packet))
        return STAGE_OTHER;
    if (packet.is_icmp_error) {
        int translated = translate_error(skb, &packet, ERROR_ABOUT_REPLY);
        if (translated == TRANSLATION_BROKEN)
            return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, WEFT_REASON_MALFORMED);
        return translated == TRANSLATED ? STAGE_TRANSLATED : STAGE_OTHER;
    }
    resolve(&packet.destination, &to);
    if (packet.protocol != PROTOCOL_TCP && packet.protocol != PROTOCOL_UDP)
        return STAGE_OTHER;
    int connection = find_connection(skb, &packet, to.kind, SCOPE_CLUSTER);
    struct weft_translation *draft = translation();
    if (!draft || (!is_denial(connection) && connection != CONNECTION_REQUEST))
        return STAGE_OTHER;
    if (is_denial(connection))
        return is_answered(connection) ? refuse_pod_aloud(skb, &packet, connection)
                                       : refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, connection);
    if (packet.hop_limit <= 1)
        return refuse_pod_aloud(skb, &packet, WEFT_REASON_HOP_LIMIT);
    if (!rewrite(skb, &packet, &draft->to))
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, WEFT_REASON_MALFORMED);
    return STAGE_TRANSLATED;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
    int action = from_pod_known(skb);
    if (action == NOT_KNOWN)
        action = from_pod_any(skb, STAGE_FIRST);
    if (action == FOR_SERVICE)
        action = from_pod_service(skb);
    if (action == STAGE_OTHER || action == STAGE_TRANSLATED)
        action = from_pod_any(skb, action);
    if (action >= ANSWERS && action < LEAVES)
        action = answer_translated(skb, WEFT_HOOK_FROM_POD, action & 0xff);
    return action >= LEAVES ? masquerade(skb, action & 0xff) : action;
}
