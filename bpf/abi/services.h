/* Service frontends, their backends and the way back for datagrams. Twin of core/abi/src/services.rs. No logic here. */
#pragma once
#include "endpoints.h"

/* Map `services`. Ports are in network order, as socket hooks have them. */
struct weft_service_key {
    struct weft_addr addr;
    __u16 port;
    __u8 protocol;
    __u8 reserved;
};

struct weft_service {
    __u32 id;
    __u32 backends;
};

/* Map `backends`: slots 0..weft_service.backends of a service. */
struct weft_backend_key {
    __u32 service;
    __u32 slot;
};

struct weft_backend {
    struct weft_addr addr;
    __u16 port;
    __u16 reserved;
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
