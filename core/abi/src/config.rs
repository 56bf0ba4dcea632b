//! What a program knows when it is loaded. Twin of bpf/abi/config.h.

use crate::layout::shared;

shared! {
    "weft_config" Config {
        uplink_ifindex: u32,
        tunnel_ifindex: u32,
        routing: u32,
        vni: u32,
        denied_events: u32,
        tunnel_port: u32,
        uplink_mac: [u8; 8],
        host_netns: u64,
        nat_ports: [u16; 2],
        icmp_errors: u32,
    }
}

/// Numbers of `enum weft_routing`.
pub struct RoutingNumber;

impl RoutingNumber {
    pub const DIRECT: u32 = 1;
    pub const VXLAN: u32 = 2;
}
