/* Service frontends, their backends, and translated connections. Twin of core/abi/src/services.rs. No logic here. */
#pragma once
#include "endpoints.h"

/* Map `services`. Ports are in network order, as socket hooks have them. A node port's key has its family's unspecified
 * address (::ffff:0.0.0.0 or ::) and stands for every address of every node. */
struct weft_service_key {
    struct weft_addr addr;
    __u16 port;
    __u8 protocol;
    __u8 reserved;
};

enum weft_service_flags {
    /* Packets from outside are balanced over the edge list. */
    WEFT_SERVICE_EDGE = 1,
    /* externalTrafficPolicy Local: the client's address is kept. */
    WEFT_SERVICE_EDGE_LOCAL = 2,
    /* The edge list is empty and other nodes have endpoints: silence, not refusal. */
    WEFT_SERVICE_EDGE_ELSEWHERE = 4,
    /* To backends on other nodes unchanged; they reply to the client. */
    WEFT_SERVICE_EDGE_DSR = 8,
    /* Clients must be in map `source_ranges`. Pods' sockets are left alone, so that their packets are looked at. */
    WEFT_SERVICE_SOURCE_RANGES = 16,
    /* Clients in the cluster are balanced by hash too. */
    WEFT_SERVICE_HASHED = 32,
    /* A node port that answers on 127.0.0.1. */
    WEFT_SERVICE_LOCALHOST = 64,
    /* internalTrafficPolicy Local, empty list, and other nodes have endpoints. */
    WEFT_SERVICE_LOCAL_ELSEWHERE = 128,
};

struct weft_service {
    /* Of the frontend: never 0. */
    __u32 id;
    /* For clients in the cluster. Slots are for random choice: a backend has as many as its weight. */
    __u32 list;
    __u32 slots;
    /* Size of the list's table in `maglev`; 0 without backends, or without the flag HASHED. */
    __u32 hashed_slots;
    __u32 edge_list;
    /* Size of the edge list's table in `maglev`; 0 without backends. */
    __u32 edge_hashed_slots;
    /* Seconds; 0: no session affinity. */
    __u32 affinity;
    __u32 flags;
};

/* Map `backends`: slots 0..weft_service.slots of a list. */
struct weft_backend_key {
    __u32 list;
    __u32 slot;
};

struct weft_backend {
    struct weft_addr addr;
    /* Network order. */
    __u16 port;
    __u16 reserved;
};

/* Map `members` -> the first slot: whether a list still has the backend. */
struct weft_member_key {
    __u32 list;
    struct weft_addr addr;
    __u16 port;
    __u16 reserved;
};

/* Map `maglev`: list -> array of __u64, each four slot numbers in `backends` of 16 bits, the first in the lowest bits. */

/* Map `source_ranges`, longest prefix, of the frontend's number and the client's address. */
struct weft_source_key {
    __u32 bits;
    __u32 service;
    struct weft_addr addr;
};
#define WEFT_SOURCE_BITS_SERVICE 32

/* Map `affinities`. `client`: the address, or for sockets the cookie of their network namespace in the last words. */
struct weft_affinity_key {
    struct weft_addr client;
    __u32 service;
    __u32 reserved;
};

struct weft_affinity {
    /* CLOCK_MONOTONIC nanoseconds. */
    __u64 last_used;
    struct weft_backend backend;
    __u32 reserved;
};

/* Map `reverses`: which frontend a socket meant when it sent to this backend. */
struct weft_reverse_key {
    __u64 socket;
    struct weft_addr addr;
    __u16 port;
    __u16 reserved[3];
};

struct weft_reverse {
    struct weft_addr addr;
    __u16 port;
    __u16 reserved;
    __u32 service;
};

/* Map `choices`: as `reverses`, from the frontend to the backend that the socket sends to. */

/* Map `connected_sockets`, in the socket itself: the backend that a node's process has connected a datagram socket to. */
struct weft_connected {
    __u32 list;
    struct weft_backend backend;
};

/* Map `nat`, one entry for each direction of a translated connection, by the packet as it arrives. Host order ports. */
struct weft_nat_key {
    struct weft_addr source;
    struct weft_addr destination;
    __u16 source_port;
    __u16 destination_port;
    __u8 protocol;
    __u8 reserved[3];
};

enum weft_nat_flags {
    /* From the backend to the client, from outside to the pod. */
    WEFT_NAT_REPLY = 1,
    /* Sent on unchanged to the node of `destination`. */
    WEFT_NAT_DSR = 2,
    /* Of a pod's connection to outside; in both entries. */
    WEFT_NAT_MASQUERADED = 4,
};

struct weft_nat {
    __u64 created;
    __u64 last_seen;
    /* What the packet becomes. */
    struct weft_addr source;
    struct weft_addr destination;
    __u16 source_port;
    __u16 destination_port;
    /* enum weft_flow_tcp, kept in both entries. */
    __u8 tcp;
    __u8 flags;
    __u16 reserved;
    /* Of the frontend. */
    __u32 service;
    /* The list the backend was chosen from: a datagram's entry holds while the backend is a member. */
    __u32 list;
};

/* Map `announced`: addresses for which the node answers ARP and NDP on the uplink -> 1. */
