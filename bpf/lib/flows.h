/* The flow table: which flows were judged, how, and what they carried. Policy itself lives in policy.h. */
#pragma once
#include "events.h"
#include "policy.h"

struct verdict {
    __u32 egress_rule;
    __u32 ingress_rule;
    __u8 reason;
};

/* Returns whether the packet's source is `b`. */
static __always_inline bool flow_key(const struct packet *packet, struct weft_flow_key *key)
{
    int order = compare_addr(&packet->source, &packet->destination);
    bool swapped = order ? order > 0 : packet->source_port > packet->destination_port;
    key->a = swapped ? packet->destination : packet->source;
    key->b = swapped ? packet->source : packet->destination;
    key->port_a = swapped ? packet->destination_port : packet->source_port;
    key->port_b = swapped ? packet->source_port : packet->destination_port;
    key->protocol = packet->protocol;
    __builtin_memset(key->reserved, 0, sizeof(key->reserved));
    return swapped;
}

static __always_inline __u32 current_epoch(void)
{
    __u32 zero = 0;
    const __u32 *now = bpf_map_lookup_elem(&epoch, &zero);
    return now ? *now : 0;
}

static __always_inline void report_flow(struct __sk_buff *skb, const struct packet *packet, const struct weft_flow *flow, __u8 kind,
                                        __u8 hook)
{
    struct weft_event *event = reserve_event(kind, hook, flow->reason);
    if (!event)
        return;
    describe(event, packet, skb);
    event->egress_rule = flow->egress_rule;
    event->ingress_rule = flow->ingress_rule;
    __builtin_memcpy(event->packets, flow->packets, sizeof(event->packets));
    __builtin_memcpy(event->bytes, flow->bytes, sizeof(event->bytes));
    submit_event(event);
}

/* How far a TCP flow is; its last packet is told once. */
static __always_inline void follow_tcp(struct __sk_buff *skb, const struct packet *packet, struct weft_flow *flow, bool from_opener,
                                       __u8 hook)
{
    __u8 flags = packet->tcp_flags;
    if (!from_opener && flags & TCP_SYN)
        flow->tcp |= WEFT_FLOW_ESTABLISHED;
    if (!(flags & (TCP_FIN | TCP_RST)))
        return;
    if (flags & TCP_FIN)
        flow->tcp |= from_opener ? WEFT_FLOW_FIN_OPENER : WEFT_FLOW_FIN_RESPONDER;
    if (flags & TCP_RST)
        flow->tcp |= WEFT_FLOW_RESET;
    __u8 both = WEFT_FLOW_FIN_OPENER | WEFT_FLOW_FIN_RESPONDER;
    if (flow->tcp & WEFT_FLOW_ENDED || !(flow->tcp & WEFT_FLOW_RESET || (flow->tcp & both) == both))
        return;
    flow->tcp |= WEFT_FLOW_ENDED;
    report_flow(skb, packet, flow, WEFT_EVENT_ENDED, hook);
}

static __noinline void judge_again(const struct weft_flow_key *key, struct weft_flow *flow, __u32 now)
{
    if (!key || !flow)
        return;
    struct judgement judgement;
    if (flow->flags & WEFT_FLOW_OPENED_BY_B)
        judge(&key->b, &key->a, key->protocol, key->port_a, &judgement);
    else
        judge(&key->a, &key->b, key->protocol, key->port_b, &judgement);
    flow->reason = judgement.reason;
    flow->egress_rule = judgement.egress_rule;
    flow->ingress_rule = judgement.ingress_rule;
    flow->epoch = now;
}

static __always_inline void open_flow(struct __sk_buff *skb, const struct packet *packet, const struct weft_flow_key *key, bool from_b,
                                      __u8 hook, struct verdict *verdict)
{
    struct judgement judgement;
    judge(&packet->source, &packet->destination, packet->protocol, packet->destination_port, &judgement);
    verdict->reason = judgement.reason;
    verdict->egress_rule = judgement.egress_rule;
    verdict->ingress_rule = judgement.ingress_rule;
    if (is_denial(judgement.reason))
        return;
    __u64 now = bpf_ktime_get_coarse_ns();
    struct weft_flow flow = {
        .created = now,
        .last_seen = now,
        .packets = {1, 0},
        .bytes = {skb->len, 0},
        .epoch = current_epoch(),
        .egress_rule = judgement.egress_rule,
        .ingress_rule = judgement.ingress_rule,
        .reason = judgement.reason,
        .flags = from_b ? WEFT_FLOW_OPENED_BY_B : 0,
    };
    if (bpf_map_update_elem(&flows, key, &flow, BPF_ANY)) {
        verdict->reason = WEFT_REASON_TABLE_FULL;
        return;
    }
    report_flow(skb, packet, &flow, WEFT_EVENT_NEW_FLOW, hook);
}

static __always_inline void follow_flow(struct __sk_buff *skb, const struct packet *packet, const struct weft_flow_key *key,
                                        struct weft_flow *flow, bool from_opener, __u8 hook, struct verdict *verdict)
{
    __u32 now = current_epoch();
    if (flow->epoch != now)
        judge_again(key, flow, now);
    verdict->egress_rule = flow->egress_rule;
    verdict->ingress_rule = flow->ingress_rule;
    verdict->reason = flow->reason;
    if (is_denial(flow->reason))
        return;
    if (!from_opener)
        verdict->reason = WEFT_REASON_REPLY;
    __u32 side = from_opener ? 0 : 1;
    flow->last_seen = bpf_ktime_get_coarse_ns();
    flow->packets[side]++;
    flow->bytes[side] += skb->len;
    if (packet->protocol == PROTOCOL_TCP)
        follow_tcp(skb, packet, flow, from_opener, hook);
}

/* An ICMP error belongs to the flow it speaks of. False: there is none. */
static __noinline bool relate(struct __sk_buff *skb, const struct packet *error, struct verdict *verdict)
{
    if (!error || !verdict)
        return false;
    struct packet quoted = {};
    struct weft_flow_key key;
    if (!parse_quoted(skb, error, &quoted))
        return false;
    flow_key(&quoted, &key);
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &key);
    if (!flow)
        return false;
    __u32 now = current_epoch();
    if (flow->epoch != now)
        judge_again(&key, flow, now);
    verdict->egress_rule = flow->egress_rule;
    verdict->ingress_rule = flow->ingress_rule;
    verdict->reason = is_denial(flow->reason) ? flow->reason : WEFT_REASON_RELATED;
    return true;
}

/* The verdict on one packet. A TCP SYN from the side that did not open the flow opens another: it is no reply. */
static __always_inline void track(struct __sk_buff *skb, const struct packet *packet, __u8 hook, struct verdict *verdict)
{
    if (packet->is_icmp_error && relate(skb, packet, verdict))
        return;
    struct weft_flow_key key;
    bool from_b = flow_key(packet, &key);
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &key);
    if (flow) {
        bool from_opener = from_b == !!(flow->flags & WEFT_FLOW_OPENED_BY_B);
        bool opens = (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
        if (!opens || (from_opener && !(flow->tcp & WEFT_FLOW_ENDED))) {
            follow_flow(skb, packet, &key, flow, from_opener, hook, verdict);
            return;
        }
    }
    open_flow(skb, packet, &key, from_b, hook, verdict);
}
