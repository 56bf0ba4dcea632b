/* Tracked flows and fragments. Twin of core/abi/src/flows.rs. No logic here. */
#pragma once
#include "endpoints.h"

/* Map `flows`. The smaller (address, port) pair is `a`. Ports are in host order; ICMP echo has its identifier in both. */
struct weft_flow_key {
    struct weft_addr a;
    struct weft_addr b;
    __u16 port_a;
    __u16 port_b;
    __u8 protocol;
    __u8 reserved[3];
};

/* What an address is to this node. */
enum weft_end_kind {
    WEFT_END_POD = 1,
    /* The node's own stack. */
    WEFT_END_HOST = 2,
    /* Another node, and pods of another node: through a next hop. */
    WEFT_END_REMOTE = 3,
    WEFT_END_REMOTE_POD = 4,
    /* In this node's pod prefixes, and no pod. */
    WEFT_END_OWN_PODS = 5,
    WEFT_END_SERVICES = 6,
    /* In the cluster's pod prefixes, and no route. */
    WEFT_END_CLUSTER_PODS = 7,
    WEFT_END_OUTSIDE = 8,
};

struct weft_end {
    /* Of a pod's host side; 0 while there is none. */
    __u32 ifindex;
    __u32 kind;
    /* A pod's link addresses in the order of an Ethernet header, the next hop, or outside the
     * cluster enum weft_route_flags. */
    __u32 target[4];
};

enum weft_flow_flags {
    WEFT_FLOW_OPENED_BY_B = 1,
    /* Packets of the opener were translated: what answers them is in map `nat`. */
    WEFT_FLOW_NAT = 2,
};

enum weft_flow_tcp {
    WEFT_FLOW_ESTABLISHED = 1,
    WEFT_FLOW_FIN_OPENER = 2,
    WEFT_FLOW_FIN_RESPONDER = 4,
    WEFT_FLOW_RESET = 8,
    WEFT_FLOW_ENDED = 16,
};

struct weft_flow {
    /* CLOCK_MONOTONIC nanoseconds. */
    __u64 created;
    __u64 last_seen;
    /* The timer's count at `last_seen`: within one tick the clock need not be asked again. */
    __u64 tick;
    /* [0] by the opener, [1] by the responder. */
    __u64 packets[2];
    __u64 bytes[2];
    __u32 epoch;
    __u32 egress_rule;
    __u32 ingress_rule;
    /* Of the last judgement in the opener's direction; a denial when that denied. */
    __u8 reason;
    __u8 flags;
    __u8 tcp;
    __u8 reserved;
    /* The timer's count at the last packet that was put together from segments and came through a tunnel; its low half. */
    __u32 bulk;
    /* Of `a` and `b`, as they were in `epoch`: spares the look-ups for every packet but the first. */
    struct weft_end ends[2];
    __u32 reserved_end;
};

/* Map `fragments`: what the first fragment said. `protocol` is the one beside the fragment's identification. */
struct weft_fragment_key {
    struct weft_addr source;
    struct weft_addr destination;
    __u32 id;
    __u8 protocol;
    __u8 reserved[3];
};

struct weft_fragment {
    __u16 source_port;
    __u16 destination_port;
    __u8 protocol;
    __u8 reserved[3];
};
