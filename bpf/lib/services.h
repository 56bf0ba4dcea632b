/* From a service's address to a backend's and back, at the socket. The hooks' own context handling lives in the hooks. */
#pragma once
#include "events.h"

#define ERROR_REFUSED (-111)

struct destination {
    struct weft_addr addr;
    /* Network order. */
    __u16 port;
    __u8 protocol;
};

enum translation {
    TRANSLATION_NONE,
    TRANSLATION_DONE,
    TRANSLATION_REFUSED,
};

static __always_inline void report_socket(struct bpf_sock_addr *socket, const struct weft_service_key *frontend,
                                          const struct weft_backend *backend, __u32 service, __u8 reason)
{
    struct weft_event *event = reserve_event(backend ? WEFT_EVENT_TRANSLATED : WEFT_EVENT_REFUSED, WEFT_HOOK_SOCKET, reason);
    if (!event)
        return;
    event->socket = bpf_get_socket_cookie(socket);
    event->netns = bpf_get_netns_cookie(socket);
    event->destination = frontend->addr;
    event->destination_port = bpf_ntohs(frontend->port);
    event->protocol = frontend->protocol;
    event->service = service;
    if (backend) {
        event->backend = backend->addr;
        event->backend_port = bpf_ntohs(backend->port);
    }
    submit_event(event);
}

static __always_inline int refuse_socket(struct bpf_sock_addr *socket, const struct weft_service_key *frontend, __u32 service,
                                         __u8 reason)
{
    count(reason, 1, 0);
    if (may_report_denial())
        report_socket(socket, frontend, NULL, service, reason);
    bpf_set_retval(ERROR_REFUSED);
    return TRANSLATION_REFUSED;
}

/* In the services' prefixes, whether or not anybody serves it. */
static __always_inline bool is_service_address(const struct weft_addr *addr)
{
    struct weft_prefix key = {.bits = 128, .addr = *addr};
    const struct weft_route *route = bpf_map_lookup_elem(&routes, &key);
    return route && route->kind == WEFT_ROUTE_SERVICES;
}

/* One of the node's own addresses (the name server's is one), which no service can take from it. */
static __always_inline bool is_node_address(const struct weft_addr *addr)
{
    const struct weft_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, addr);
    return endpoint && endpoint->kind == WEFT_ENDPOINT_HOST;
}

static __always_inline const struct weft_backend *pick_backend(const struct weft_service *service)
{
    struct weft_backend_key key = {.list = service->list};
    __u32 backends_now = service->slots;
    if (!backends_now)
        return NULL;
    key.slot = bpf_get_prandom_u32() % backends_now;
    const struct weft_backend *backend = bpf_map_lookup_elem(&backends, &key);
    if (backend)
        return backend;
    /* The list shrank between the two look-ups; the first slot goes last. */
    key.slot = 0;
    return bpf_map_lookup_elem(&backends, &key);
}

/* False: this socket has sent to that backend under this name before. */
static __always_inline bool remember(struct bpf_sock_addr *socket, const struct weft_service_key *frontend,
                                     const struct weft_backend *backend, __u32 service)
{
    struct weft_reverse_key key = {.socket = bpf_get_socket_cookie(socket), .addr = backend->addr, .port = backend->port};
    struct weft_reverse reverse = {.addr = frontend->addr, .port = frontend->port, .service = service};
    const struct weft_reverse *known = bpf_map_lookup_elem(&reverses, &key);
    if (known && known->service == service)
        return false;
    bpf_map_update_elem(&reverses, &key, &reverse, BPF_ANY);
    return true;
}

static __always_inline int translate(struct bpf_sock_addr *socket, struct destination *destination)
{
    struct weft_service_key key = {.addr = destination->addr, .port = destination->port, .protocol = destination->protocol};
    if (key.protocol != PROTOCOL_TCP && key.protocol != PROTOCOL_UDP)
        return TRANSLATION_NONE;
    const struct weft_service *service = bpf_map_lookup_elem(&services, &key);
    if ((!service && !is_service_address(&key.addr)) || is_node_address(&key.addr))
        return TRANSLATION_NONE;
    if (!service)
        return refuse_socket(socket, &key, 0, WEFT_REASON_NOT_TRANSLATED);
    __u32 id = service->id;
    const struct weft_backend *backend = pick_backend(service);
    if (!backend)
        return refuse_socket(socket, &key, id, WEFT_REASON_NO_READY_BACKENDS);
    if (key.protocol == PROTOCOL_TCP || remember(socket, &key, backend, id))
        report_socket(socket, &key, backend, id, WEFT_REASON_NONE);
    destination->addr = backend->addr;
    destination->port = backend->port;
    return TRANSLATION_DONE;
}

/* The service address under which the socket knows this peer. */
static __always_inline bool translate_back(struct bpf_sock_addr *socket, struct destination *peer)
{
    if (peer->protocol != PROTOCOL_UDP)
        return false;
    struct weft_reverse_key key = {.socket = bpf_get_socket_cookie(socket), .addr = peer->addr, .port = peer->port};
    const struct weft_reverse *reverse = bpf_map_lookup_elem(&reverses, &key);
    if (!reverse)
        return false;
    peer->addr = reverse->addr;
    peer->port = reverse->port;
    return true;
}
