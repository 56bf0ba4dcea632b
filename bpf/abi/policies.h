/* Peer classes, policy entries and reasons. Twin of core/abi/src/policies.rs. No logic here. */
#pragma once
#include "endpoints.h"

enum weft_class {
    WEFT_CLASS_ANY = 0,
    WEFT_CLASS_WORLD = 1,
};
#define WEFT_CLASS_UNKNOWN_BIT 0x80000000U

/* Longest-prefix key of map `policies`. A default-deny is the entry with WEFT_POLICY_BITS_CLASS bits under class ANY. */
struct weft_policy_key {
    __u32 bits;
    __u32 set;
    __u32 peer_class;
    __u8 protocol;
    __u8 reserved;
    /* Network order, so that leading bits are a port range. */
    __u16 port;
};
#define WEFT_POLICY_BITS_CLASS 64
#define WEFT_POLICY_BITS_PROTOCOL 80
#define WEFT_POLICY_BITS_FULL 96

enum weft_policy_flags {
    WEFT_POLICY_ALLOW = 1,
    WEFT_POLICY_DEFAULT = 2,
};

struct weft_policy {
    __u32 rule;
    __u32 flags;
};

/* The numbers of weft_model::Reason. Below WEFT_REASON_FIRST_DENIAL: forwarded. */
enum weft_reason {
    WEFT_REASON_NONE = 0,
    WEFT_REASON_NOT_ISOLATED = 1,
    WEFT_REASON_ALLOWED_BY_RULE = 2,
    WEFT_REASON_REPLY = 3,
    WEFT_REASON_FROM_OWN_NODE = 4,
    WEFT_REASON_RELATED = 5,
    WEFT_REASON_BALANCED = 6,
    WEFT_REASON_FIRST_DENIAL = 32,
    WEFT_REASON_DEFAULT_DENY = 32,
    WEFT_REASON_DENIED_BY_RULE = 33,
    WEFT_REASON_IDENTITY_UNKNOWN = 34,
    WEFT_REASON_SPOOFED_SOURCE = 35,
    WEFT_REASON_NO_SUCH_POD = 36,
    WEFT_REASON_NO_READY_BACKENDS = 37,
    WEFT_REASON_NOT_TRANSLATED = 38,
    WEFT_REASON_MALFORMED = 39,
    WEFT_REASON_NOT_IP = 40,
    WEFT_REASON_HOP_LIMIT = 41,
    WEFT_REASON_FRAGMENT_UNKNOWN = 42,
    WEFT_REASON_TABLE_FULL = 43,
    WEFT_REASON_ROUTE_MISSING = 44,
    WEFT_REASON_TUNNEL_FAILED = 45,
    WEFT_REASON_ENDPOINT_NOT_READY = 46,
    WEFT_REASON_LINK_LOCAL = 47,
    WEFT_REASON_SOURCE_RANGE = 48,
    WEFT_REASON_NO_LOCAL_BACKENDS = 49,
    WEFT_REASON_NO_FREE_PORT = 50,
    WEFT_REASON_LIMIT = 64,
};
