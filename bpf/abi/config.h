/* What a program knows when it is loaded: constants, so the verifier drops the branches of what is off. Twin of core/abi/src/config.rs. */
#pragma once
#include <linux/types.h>

enum weft_routing {
    WEFT_ROUTING_DIRECT = 1,
    WEFT_ROUTING_VXLAN = 2,
};

struct weft_config {
    __u32 uplink_ifindex;
    /* 0 without a tunnel. */
    __u32 tunnel_ifindex;
    __u32 routing;
    __u32 vni;
    /* Denied events each CPU may send in a second. */
    __u32 denied_events;
    /* Host order; 0 without a tunnel. */
    __u32 tunnel_port;
    /* Six bytes. */
    __u8 uplink_mac[8];
    /* Of the network namespace whose processes are the node's own. */
    __u64 host_netns;
    /* What forwarded connections come from beside the node's address: host order, first and last. */
    __u16 nat_ports[2];
    /* ICMP errors each CPU may send in a second. */
    __u32 icmp_errors;
};
