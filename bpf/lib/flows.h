/* The flow table: which flows were judged, how, and what they carried. Policy itself lives in policy.h. */
#pragma once
#include "events.h"
#include "policy.h"

struct verdict {
    __u32 egress_rule;
    __u32 ingress_rule;
    __u8 reason;
    /* Of the flow. */
    __u8 flags;
    /* What the packet's destination is to this node, when it is not a denial. */
    struct weft_end to;
};

/* Beside enum weft_flow_flags in a packet's `flow_flags`, and of no flow: it answers a masqueraded one. */
#define FLOW_BACK 0x80

/* The entry of a packet's flow and the side the packet comes from. */
struct found {
    struct weft_flow_key key;
    struct weft_flow *flow;
    bool from_b;
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

/* The clock costs more than all else that is written for a packet; the timer's count is one load. */
static __always_inline void see(struct weft_flow *flow)
{
    __u64 tick = bpf_jiffies64();
    if (flow->tick == tick)
        return;
    flow->tick = tick;
    flow->last_seen = bpf_ktime_get_coarse_ns();
}

/* Told from the opener's side, whoever sent the packet. */
static __noinline void report_flow(struct __sk_buff *skb, const struct weft_flow_key *key, const struct weft_flow *flow, __u8 kind,
                                   __u8 hook)
{
    if (!key || !flow)
        return;
    /* As exact as the timer: the clock itself would cost as much as the rest of the event. */
    struct weft_event *event = reserve_event_of(flow->last_seen, kind, hook, flow->reason);
    if (!event)
        return;
    bool by_b = flow->flags & WEFT_FLOW_OPENED_BY_B;
    event->source = by_b ? key->b : key->a;
    event->destination = by_b ? key->a : key->b;
    event->source_port = by_b ? key->port_b : key->port_a;
    event->destination_port = by_b ? key->port_a : key->port_b;
    event->protocol = key->protocol;
    event->ifindex = skb->ifindex;
    event->length = skb->len;
    event->egress_rule = flow->egress_rule;
    event->ingress_rule = flow->ingress_rule;
    __builtin_memcpy(event->packets, flow->packets, sizeof(event->packets));
    __builtin_memcpy(event->bytes, flow->bytes, sizeof(event->bytes));
    submit_event(event);
}

/* How far a TCP flow is; its last packet is told once. */
static __always_inline void follow_tcp(struct __sk_buff *skb, const struct weft_flow_key *key, struct weft_flow *flow, __u8 flags,
                                       bool from_opener, __u8 hook)
{
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
    if (is_reachable(&flow->ends[0]) && is_reachable(&flow->ends[1]))
        report_flow(skb, key, flow, WEFT_EVENT_ENDED, hook);
}

/* Policy, or where an end is, has changed since: asked anew in the direction that opened the flow. */
static __noinline void judge_again(const struct weft_flow_key *key, struct weft_flow *flow, __u32 now)
{
    if (!key || !flow)
        return;
    struct judgement judgement;
    bool opened_by_b = flow->flags & WEFT_FLOW_OPENED_BY_B;
    const struct weft_endpoint *a = resolve(&key->a, &flow->ends[0]);
    const struct weft_endpoint *b = resolve(&key->b, &flow->ends[1]);
    struct pair pair = {
        .opener = opened_by_b ? &key->b : &key->a,
        .responder = opened_by_b ? &key->a : &key->b,
        .port = opened_by_b ? key->port_a : key->port_b,
        .protocol = key->protocol,
    };
    judge(&pair, opened_by_b ? b : a, opened_by_b ? a : b, &judgement);
    flow->reason = judgement.reason;
    flow->egress_rule = judgement.egress_rule;
    flow->ingress_rule = judgement.ingress_rule;
    flow->epoch = now;
}

static __always_inline bool is_opening(const struct packet *packet)
{
    return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline void nat_key(const struct packet *packet, struct weft_nat_key *key)
{
    key->source = packet->source;
    key->destination = packet->destination;
    key->source_port = packet->source_port;
    key->destination_port = packet->destination_port;
    key->protocol = packet->protocol;
    __builtin_memset(key->reserved, 0, sizeof(key->reserved));
}

/* Whether a packet without a flow answers a translated connection, whose flow the table has lost. */
static __noinline bool answers_lost(const struct packet *packet)
{
    struct weft_nat_key key;
    if (!packet || (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP))
        return false;
    nat_key(packet, &key);
    const struct weft_nat *entry = bpf_map_lookup_elem(&nat, &key);
    return entry && entry->flags & WEFT_NAT_REPLY;
}

/* An entry of the same addresses and ports is used again where it is: only at first there has to be room for it. Until its epoch
 * is written, which is last, nobody goes by it. */
static __always_inline bool put_flow(const struct found *found, struct weft_flow *flow)
{
    struct weft_flow *there = found->flow;
    if (!there)
        return !bpf_map_update_elem(&flows, &found->key, flow, BPF_ANY);
    __u32 now = flow->epoch;
    flow->epoch = 0;
    *(volatile __u32 *)&there->epoch = 0;
    *there = *flow;
    asm volatile("" ::: "memory");
    *(volatile __u32 *)&there->epoch = now;
    return true;
}

static __always_inline void open_flow(struct __sk_buff *skb, const struct packet *packet, const struct ends *ends,
                                      const struct found *found, __u8 hook, struct verdict *verdict)
{
    __u32 zero = 0;
    struct weft_flow *flow = bpf_map_lookup_elem(&draft, &zero);
    verdict->reason = WEFT_REASON_TABLE_FULL;
    if (!flow)
        return;
    struct judgement judgement;
    bool lost = !(packet->flow_flags & WEFT_FLOW_NAT) && !is_opening(packet) && answers_lost(packet);
    /* What opens a connection answers nothing, whatever it is translated by. */
    bool back = lost || (packet->flow_flags & FLOW_BACK && !is_opening(packet)), opened_by_b = found->from_b != back;
    struct pair pair = {
        .opener = back ? &packet->destination : &packet->source,
        .responder = back ? &packet->source : &packet->destination,
        .port = back ? packet->source_port : packet->destination_port,
        .protocol = packet->protocol,
    };
    judge(&pair, back ? ends->receiver : ends->sender, back ? ends->sender : ends->receiver, &judgement);
    verdict->reason = judgement.reason;
    verdict->egress_rule = judgement.egress_rule;
    verdict->ingress_rule = judgement.ingress_rule;
    if (is_denial(judgement.reason))
        return;
    __builtin_memset(flow, 0, sizeof(*flow));
    flow->reason = judgement.reason;
    flow->egress_rule = judgement.egress_rule;
    flow->ingress_rule = judgement.ingress_rule;
    flow->ends[0] = found->from_b ? verdict->to : *ends->source;
    flow->ends[1] = found->from_b ? *ends->source : verdict->to;
    see(flow);
    flow->created = flow->last_seen;
    flow->packets[back] = 1;
    flow->bytes[back] = skb->len;
    flow->epoch = current_epoch();
    flow->flags = (opened_by_b ? WEFT_FLOW_OPENED_BY_B : 0) | (lost ? WEFT_FLOW_NAT : packet->flow_flags & WEFT_FLOW_NAT);
    if (back) {
        flow->tcp = packet->protocol == PROTOCOL_TCP ? WEFT_FLOW_ESTABLISHED : 0;
        verdict->flags = lost ? flow->flags : 0;
        verdict->reason = WEFT_REASON_REPLY;
    }
    if (!put_flow(found, flow)) {
        verdict->reason = WEFT_REASON_TABLE_FULL;
        return;
    }
    if (is_reachable(&verdict->to))
        report_flow(skb, &found->key, flow, WEFT_EVENT_NEW_FLOW, hook);
}

/* A packet of a flow whose entry is of the current epoch. */
static __always_inline void follow_flow(struct __sk_buff *skb, const struct packet *packet, const struct found *found, __u8 hook,
                                        struct verdict *verdict)
{
    struct weft_flow *flow = found->flow;
    bool from_b = found->from_b;
    bool from_opener = from_b == !!(flow->flags & WEFT_FLOW_OPENED_BY_B);
    verdict->egress_rule = flow->egress_rule;
    verdict->ingress_rule = flow->ingress_rule;
    verdict->reason = flow->reason;
    if (is_denial(flow->reason))
        return;
    verdict->to = from_b ? flow->ends[0] : flow->ends[1];
    if (!from_opener)
        verdict->reason = WEFT_REASON_REPLY;
    flow->flags |= packet->flow_flags & WEFT_FLOW_NAT;
    verdict->flags = flow->flags;
    see(flow);
    if (from_opener) {
        flow->packets[0]++;
        flow->bytes[0] += skb->len;
    } else {
        flow->packets[1]++;
        flow->bytes[1] += skb->len;
    }
    if (packet->protocol == PROTOCOL_TCP)
        follow_tcp(skb, &found->key, flow, packet->tcp_flags, from_opener, hook);
}

/* A TCP SYN from the side that did not open the flow is no reply, and one after its end is no part of it. */
static __always_inline bool opens_another(const struct packet *packet, const struct weft_flow *flow, bool from_b)
{
    bool from_opener = from_b == !!(flow->flags & WEFT_FLOW_OPENED_BY_B);
    return is_opening(packet) && (!from_opener || flow->tcp & WEFT_FLOW_ENDED);
}

static __always_inline void find_flow(const struct packet *packet, struct found *found)
{
    found->from_b = flow_key(packet, &found->key);
    found->flow = bpf_map_lookup_elem(&flows, &found->key);
}

/* The packet's flow, if nothing has to be asked about it again: most packets end here. */
static __always_inline bool find_current(const struct packet *packet, struct found *found)
{
    if (packet->fragment != FRAGMENT_WHOLE || packet->is_icmp_error || is_opening(packet)) {
        found->flow = NULL;
        return false;
    }
    find_flow(packet, found);
    return found->flow && found->flow->epoch == current_epoch();
}

/* An ICMP error belongs to the flow it speaks of. False: there is none. What it quotes is read into the draft: it is too large for
 * the stack. */
static __noinline bool relate(struct __sk_buff *skb, const struct packet *error, struct found *found, struct verdict *verdict)
{
    __u32 zero = 0;
    struct weft_quotation *room = bpf_map_lookup_elem(&quotation_draft, &zero);
    if (!error || !found || !verdict || !room)
        return false;
    struct packet *quoted = (struct packet *)room;
    _Static_assert(sizeof(*quoted) <= sizeof(*room), "a packet has room");
    __builtin_memset(quoted, 0, sizeof(*quoted));
    if (!parse_quoted(skb, error, quoted))
        return false;
    find_flow(quoted, found);
    struct weft_flow *flow = found->flow;
    if (!flow)
        return false;
    __u32 now = current_epoch();
    if (flow->epoch != now)
        judge_again(&found->key, flow, now);
    verdict->egress_rule = flow->egress_rule;
    verdict->ingress_rule = flow->ingress_rule;
    verdict->reason = is_denial(flow->reason) ? flow->reason : WEFT_REASON_RELATED;
    verdict->flags = flow->flags;
    resolve(&error->destination, &verdict->to);
    return true;
}

/* The verdict on a packet that find_current had no answer for; its ends are resolved, and not spoofed. */
static __always_inline void track(struct __sk_buff *skb, struct packet *packet, const struct ends *ends, struct found *found,
                                  __u8 hook, struct verdict *verdict)
{
    verdict->reason = packet->fragment == FRAGMENT_WHOLE ? WEFT_REASON_NONE : complete_fragment(packet);
    if (verdict->reason)
        return;
    if (packet->is_icmp_error && relate(skb, packet, found, verdict))
        return;
    find_flow(packet, found);
    struct weft_flow *flow = found->flow;
    if (!flow || opens_another(packet, flow, found->from_b)) {
        open_flow(skb, packet, ends, found, hook, verdict);
        return;
    }
    __u32 now = current_epoch();
    if (flow->epoch != now)
        judge_again(&found->key, flow, now);
    follow_flow(skb, packet, found, hook, verdict);
}
