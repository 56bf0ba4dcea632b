/* What a destination that does not end on this node is. Twin of core/abi/src/routes.rs. No logic here. */
#pragma once
#include "endpoints.h"

enum weft_route_kind {
    /* Pods or a node elsewhere, through `via`. */
    WEFT_ROUTE_REMOTE = 1,
    WEFT_ROUTE_OWN_PODS = 2,
    WEFT_ROUTE_SERVICES = 3,
    WEFT_ROUTE_CLUSTER_PODS = 4,
    /* Keeps a short IPv6 prefix from matching IPv4-mapped addresses. */
    WEFT_ROUTE_NONE = 5,
    /* Outside the cluster; the flags say what is special about it. */
    WEFT_ROUTE_OUTSIDE = 6,
};

enum weft_route_flags {
    /* The prefix lies in the cluster's pod prefixes. */
    WEFT_ROUTE_IS_POD = 1,
    /* It knows pods' own addresses: no packet to it is masqueraded. */
    WEFT_ROUTE_AS_IS = 2,
    /* Machines outside reach services there, and this node serves it. */
    WEFT_ROUTE_IS_FRONTEND = 4,
};

/* Map `routes`: weft_prefix -> weft_route. */
struct weft_route {
    struct weft_addr via;
    __u8 kind;
    __u8 flags;
    __u8 reserved[2];
};
