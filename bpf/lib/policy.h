/* May this flow be? Looked up once per flow and epoch; remembering the answer lives in flows.h. */
#pragma once
#include "ends.h"

struct judgement {
    __u32 egress_rule;
    __u32 ingress_rule;
    __u8 reason;
};

static __always_inline bool is_denial(__u8 reason)
{
    return reason >= WEFT_REASON_FIRST_DENIAL;
}

static __always_inline __u32 class_of(const struct weft_addr *addr)
{
    const __u32 *exact = bpf_map_lookup_elem(&classes, addr);
    if (exact)
        return *exact;
    struct weft_prefix key = {.bits = 128, .addr = *addr};
    const __u32 *block = bpf_map_lookup_elem(&class_blocks, &key);
    return block ? *block : WEFT_CLASS_WORLD;
}

static __noinline __u8 judge_direction(__u32 set, const struct weft_addr *peer, __u32 protocol_port, __u32 *rule)
{
    if (!peer || !rule)
        return WEFT_REASON_DEFAULT_DENY;
    __u32 peer_class = class_of(peer);
    struct weft_policy_key key = {
        .bits = WEFT_POLICY_BITS_FULL,
        .set = set,
        .peer_class = peer_class,
        .protocol = protocol_port >> 16,
        .port = bpf_htons(protocol_port & 0xffff),
    };
    const struct weft_policy *found = bpf_map_lookup_elem(&policies, &key);
    if (!found) {
        key.peer_class = WEFT_CLASS_ANY;
        found = bpf_map_lookup_elem(&policies, &key);
    }
    *rule = found ? found->rule : 0;
    if (found && found->flags & WEFT_POLICY_ALLOW)
        return WEFT_REASON_ALLOWED_BY_RULE;
    if (peer_class & WEFT_CLASS_UNKNOWN_BIT)
        return WEFT_REASON_IDENTITY_UNKNOWN;
    return found && !(found->flags & WEFT_POLICY_DEFAULT) ? WEFT_REASON_DENIED_BY_RULE : WEFT_REASON_DEFAULT_DENY;
}

/* One flow, from the one who opens it to the one who answers. */
struct pair {
    const struct weft_addr *opener;
    const struct weft_addr *responder;
    __u16 port;
    __u8 protocol;
};

/* The egress policy of the one and the ingress policy of the other, where they are pods of this node. */
static __always_inline void judge(const struct pair *pair, const struct weft_endpoint *sender, const struct weft_endpoint *receiver,
                                  struct judgement *judgement)
{
    __u32 protocol_port = (__u32)pair->protocol << 16 | pair->port;
    judgement->reason = WEFT_REASON_NOT_ISOLATED;
    judgement->egress_rule = judgement->ingress_rule = 0;
    if (sender && sender->kind == WEFT_ENDPOINT_POD && sender->flags & WEFT_ENDPOINT_EGRESS_ISOLATED) {
        judgement->reason = judge_direction(sender->egress_set, pair->responder, protocol_port, &judgement->egress_rule);
        if (is_denial(judgement->reason))
            return;
    }
    if (!receiver || receiver->kind != WEFT_ENDPOINT_POD)
        return;
    if (sender && sender->kind == WEFT_ENDPOINT_HOST) {
        judgement->reason = WEFT_REASON_FROM_OWN_NODE;
    } else if (receiver->flags & WEFT_ENDPOINT_INGRESS_ISOLATED) {
        judgement->reason = judge_direction(receiver->ingress_set, pair->opener, protocol_port, &judgement->ingress_rule);
    }
}
