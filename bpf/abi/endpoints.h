/* Addresses that end on this node: its pods' and its own. Twin of core/abi/src/endpoints.rs. No logic here. */
#pragma once
#include <linux/types.h>

/* An address in network order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
struct weft_addr {
    __u32 words[4];
};

/* Longest-prefix key. `bits` counts in the 16-byte form. */
struct weft_prefix {
    __u32 bits;
    struct weft_addr addr;
};

enum weft_endpoint_kind {
    WEFT_ENDPOINT_POD = 1,
    /* The node's own stack: its addresses and its name server's. */
    WEFT_ENDPOINT_HOST = 2,
};

enum weft_endpoint_flags {
    WEFT_ENDPOINT_INGRESS_ISOLATED = 1,
    WEFT_ENDPOINT_EGRESS_ISOLATED = 2,
};

/* Map `endpoints`: weft_addr -> weft_endpoint. */
struct weft_endpoint {
    /* Host side of the pod's link; 0 while the link is not there. */
    __u32 ifindex;
    /* Meaningful with the flag of that direction. */
    __u32 ingress_set;
    __u32 egress_set;
    __u8 kind;
    __u8 flags;
    __u8 reserved[2];
    /* In the order of an Ethernet header, for one copy. */
    __u8 pod_mac[6];
    __u8 host_mac[6];
};
