/* Every map, once: all programs are one object and share them. What the entries look like lives in abi/. */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "../abi/config.h"
#include "../abi/endpoints.h"
#include "../abi/events.h"
#include "../abi/flows.h"
#include "../abi/policies.h"
#include "../abi/routes.h"
#include "../abi/services.h"

const volatile struct weft_config weft_config = {};

#define WEFT_MAP(map_name, map_type, key_type, value_type, entries, flags) \
    struct {                                                               \
        __uint(type, map_type);                                            \
        __uint(max_entries, entries);                                      \
        __uint(map_flags, flags);                                          \
        __type(key, key_type);                                             \
        __type(value, value_type);                                         \
    } map_name SEC(".maps")

WEFT_MAP(endpoints, BPF_MAP_TYPE_HASH, struct weft_addr, struct weft_endpoint, 4096, BPF_F_NO_PREALLOC);
WEFT_MAP(classes, BPF_MAP_TYPE_HASH, struct weft_addr, __u32, 1 << 19, BPF_F_NO_PREALLOC);
WEFT_MAP(class_blocks, BPF_MAP_TYPE_LPM_TRIE, struct weft_prefix, __u32, 1 << 16, BPF_F_NO_PREALLOC);
WEFT_MAP(policies, BPF_MAP_TYPE_LPM_TRIE, struct weft_policy_key, struct weft_policy, 1 << 19, BPF_F_NO_PREALLOC);
WEFT_MAP(routes, BPF_MAP_TYPE_LPM_TRIE, struct weft_prefix, struct weft_route, 1 << 16, BPF_F_NO_PREALLOC);
WEFT_MAP(services, BPF_MAP_TYPE_HASH, struct weft_service_key, struct weft_service, 1 << 16, BPF_F_NO_PREALLOC);
WEFT_MAP(backends, BPF_MAP_TYPE_HASH, struct weft_backend_key, struct weft_backend, 1 << 20, BPF_F_NO_PREALLOC);
WEFT_MAP(members, BPF_MAP_TYPE_HASH, struct weft_member_key, __u32, 1 << 20, BPF_F_NO_PREALLOC);
WEFT_MAP(source_ranges, BPF_MAP_TYPE_LPM_TRIE, struct weft_source_key, __u32, 1 << 16, BPF_F_NO_PREALLOC);
WEFT_MAP(affinities, BPF_MAP_TYPE_LRU_HASH, struct weft_affinity_key, struct weft_affinity, 1 << 16, 0);
WEFT_MAP(nat, BPF_MAP_TYPE_LRU_HASH, struct weft_nat_key, struct weft_nat, 1 << 17, 0);
/* What forwarded connections come from, by family: the first slot is IPv4's. Zero: the node has no such address. */
WEFT_MAP(node_addresses, BPF_MAP_TYPE_ARRAY, __u32, struct weft_addr, 2, 0);
WEFT_MAP(announced, BPF_MAP_TYPE_HASH, struct weft_addr, __u32, 1 << 12, BPF_F_NO_PREALLOC);
WEFT_MAP(reverses, BPF_MAP_TYPE_LRU_HASH, struct weft_reverse_key, struct weft_reverse, 1 << 15, 0);
WEFT_MAP(choices, BPF_MAP_TYPE_LRU_HASH, struct weft_reverse_key, struct weft_reverse, 1 << 15, 0);
WEFT_MAP(connected_sockets, BPF_MAP_TYPE_SK_STORAGE, int, struct weft_connected, 0, BPF_F_NO_PREALLOC);
WEFT_MAP(flows, BPF_MAP_TYPE_LRU_HASH, struct weft_flow_key, struct weft_flow, 1 << 17, 0);
WEFT_MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct weft_fragment_key, struct weft_fragment, 1 << 13, 0);
WEFT_MAP(epoch, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);
WEFT_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_count, WEFT_COUNTER_LIMIT, 0);
WEFT_MAP(denied_budget, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_budget, 1, 0);
/* As `denied_budget`, of ICMP errors. */
WEFT_MAP(error_budget, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_budget, 1, 0);
/* Where a new flow is put together: it is too large for the stack. */
/* What a new flow comes from: in a map, so that the verifier does not follow each kind of it separately. */
WEFT_MAP(source_draft, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_end, 1, 0);
WEFT_MAP(draft, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_flow, 1, 0);

/* A next hop on the uplink, and what comes before a packet that goes there: Ethernet's addresses, and for a tunnel all up to the
 * inner frame. For each CPU, so that nobody changes it while it is read. */
#define HOP_SLOT_BITS 10
struct weft_hop {
    struct weft_addr via;
    /* The timer's count. */
    __u64 until;
    __u32 sum;
    __u16 mtu;
    __u16 id;
    __u8 head[56];
};
WEFT_MAP(way_draft, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct bpf_fib_lookup, 1, 0);
WEFT_MAP(hops, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_hop, 1 << HOP_SLOT_BITS, 0);

/* The same for a translated connection: its key, what its packets become, and the same of what answers them. */
struct weft_translation {
    struct weft_nat_key key;
    struct weft_nat_key other;
    struct weft_nat_key earlier;
    struct weft_nat to;
    struct weft_nat back;
    struct weft_backend backend;
    __u32 hash;
};
WEFT_MAP(translation_draft, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_translation, 1, 0);
/* What an ICMP error quotes, for its checksum; with room for padding. */
struct weft_quotation {
    __u8 bytes[516];
};
WEFT_MAP(quotation_draft, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct weft_quotation, 1, 0);

/* Tables have as many slots as their list needs. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
    __uint(max_entries, 1 << 16);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u32);
    __array(
        values, struct {
            __uint(type, BPF_MAP_TYPE_ARRAY);
            __uint(map_flags, BPF_F_INNER_MAP);
            __uint(max_entries, 1);
            __type(key, __u32);
            __type(value, __u64);
        });
} maglev SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 22);
} events SEC(".maps");

/* The event's layout reaches the object's BTF only through something that uses the type. */
const struct weft_event *const weft_event_layout = 0;
