//! What a destination that does not end on this node is. Twin of bpf/abi/routes.h.

use crate::AddrKey;
use crate::layout::shared;

shared! {
    "weft_route" RouteValue {
        via: AddrKey,
        kind: u8,
        flags: u8,
        reserved: [u8; 2],
    }
}

/// Numbers of `enum weft_route_kind`.
pub struct RouteKind;

impl RouteKind {
    pub const REMOTE: u8 = 1;
    pub const OWN_PODS: u8 = 2;
    pub const SERVICES: u8 = 3;
    pub const CLUSTER_PODS: u8 = 4;
    pub const NONE: u8 = 5;
    pub const OUTSIDE: u8 = 6;
}

/// Bits of `enum weft_route_flags`.
pub struct RouteFlags;

impl RouteFlags {
    pub const IS_POD: u8 = 1;
    pub const AS_IS: u8 = 2;
    pub const IS_FRONTEND: u8 = 4;
}
