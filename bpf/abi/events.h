/* What programs tell the agent: events and counters. Twin of core/abi/src/events.rs. No logic here. */
#pragma once
#include "endpoints.h"

enum weft_event_kind {
    WEFT_EVENT_NEW_FLOW = 1,
    WEFT_EVENT_DENIED = 2,
    WEFT_EVENT_TRANSLATED = 3,
    WEFT_EVENT_REFUSED = 4,
    WEFT_EVENT_ENDED = 5,
};

enum weft_hook {
    WEFT_HOOK_FROM_POD = 1,
    WEFT_HOOK_TO_POD = 2,
    WEFT_HOOK_FROM_NET = 3,
    WEFT_HOOK_SOCKET = 4,
    WEFT_HOOK_TO_NET = 5,
};

/* Ring buffer `events`. Ports are in host order. */
struct weft_event {
    __u64 at;
    /* Socket events only. */
    __u64 socket;
    __u64 netns;
    /* Ended flows only: [0] by the opener, [1] by the responder. */
    __u64 packets[2];
    __u64 bytes[2];
    struct weft_addr source;
    struct weft_addr destination;
    /* Translations only. */
    struct weft_addr backend;
    __u32 egress_rule;
    __u32 ingress_rule;
    __u32 ifindex;
    __u32 length;
    __u32 service;
    __u16 source_port;
    __u16 destination_port;
    __u16 backend_port;
    __u8 protocol;
    __u8 kind;
    __u8 hook;
    __u8 reason;
    __u8 reserved[2];
};

/* Map `counters`, per CPU: slots below WEFT_REASON_LIMIT are reasons. */
enum weft_counter {
    WEFT_COUNTER_EVENTS_LOST = 64,
    WEFT_COUNTER_EVENTS_SUPPRESSED = 65,
    WEFT_COUNTER_LIMIT = 66,
};

struct weft_count {
    __u64 packets;
    __u64 bytes;
};

/* Map `denied_budget`, per CPU: how many denied events this CPU may still send in its current window. */
struct weft_budget {
    __u64 window;
    __u64 left;
};
