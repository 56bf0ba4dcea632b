/* Counters and events. Which of them to send is the callers' choice. */
#pragma once
#include "parse.h"

#define SECOND 1000000000ULL

static __always_inline void count(__u32 slot, __u64 packets, __u64 bytes)
{
    struct weft_count *entry = bpf_map_lookup_elem(&counters, &slot);
    if (entry) {
        entry->packets += packets;
        entry->bytes += bytes;
    }
}

static __always_inline struct weft_event *reserve_event_of(__u64 at, __u8 kind, __u8 hook, __u8 reason)
{
    struct weft_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) {
        count(WEFT_COUNTER_EVENTS_LOST, 1, 0);
        return NULL;
    }
    __builtin_memset(event, 0, sizeof(*event));
    event->at = at;
    event->kind = kind;
    event->hook = hook;
    event->reason = reason;
    return event;
}

static __always_inline struct weft_event *reserve_event(__u8 kind, __u8 hook, __u8 reason)
{
    return reserve_event_of(bpf_ktime_get_ns(), kind, hook, reason);
}

/* The reader polls: a wake-up for each flow would cost more than the flow. */
static __always_inline void submit_event(struct weft_event *event)
{
    bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline void describe(struct weft_event *event, const struct packet *packet, struct __sk_buff *skb)
{
    event->source = packet->source;
    event->destination = packet->destination;
    event->source_port = packet->source_port;
    event->destination_port = packet->destination_port;
    event->protocol = packet->protocol;
    event->ifindex = skb->ifindex;
    event->length = skb->len;
}

/* A flood of denied packets must not push the events of others out of the ring. */
static __always_inline bool may_report_denial(void)
{
    __u32 zero = 0;
    struct weft_budget *budget = bpf_map_lookup_elem(&denied_budget, &zero);
    if (!budget)
        return false;
    __u64 window = bpf_ktime_get_ns() / SECOND;
    if (budget->window != window) {
        budget->window = window;
        budget->left = weft_config.denied_events;
    }
    if (!budget->left) {
        count(WEFT_COUNTER_EVENTS_SUPPRESSED, 1, 0);
        return false;
    }
    budget->left--;
    return true;
}
