/* What a socket's connect or send to a service becomes, and back. Choosing the backend lives in services.h, the hooks' own context in the hooks. */
#pragma once
#include "events.h"
#include "services.h"

#define ERROR_REFUSED (-111)
#define LOOPBACK_V4 bpf_htonl(0x7f000001)

/* The peer as the program names it. */
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

/* What is done, beside looking up. */
enum socket_call {
    CALL_CONNECT,
    CALL_SEND,
};

/* Of the node's own processes, and pods in the host's network. */
static __always_inline bool is_of_node(struct bpf_sock_addr *socket)
{
    return bpf_get_netns_cookie(socket) == weft_config.host_netns;
}

static __always_inline void report_socket(struct bpf_sock_addr *socket, const struct destination *frontend,
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

static __always_inline int refuse_socket(struct bpf_sock_addr *socket, const struct destination *frontend, __u32 service,
                                         __u8 reason)
{
    count(reason, 1, 0);
    if (may_report_denial())
        report_socket(socket, frontend, NULL, service, reason);
    bpf_set_retval(ERROR_REFUSED);
    return TRANSLATION_REFUSED;
}

static __always_inline bool is_loopback(const struct weft_addr *addr)
{
    if (is_v4(addr))
        return addr->words[3] == LOOPBACK_V4;
    return !addr->words[0] && !addr->words[1] && !addr->words[2] && addr->words[3] == bpf_htonl(1);
}

/* Exact, then the node port of a node's address. `standing` is set where no frontend is found. */
static __always_inline const struct weft_service *find_service(struct bpf_sock_addr *socket, const struct destination *to,
                                                               enum standing *standing)
{
    const struct weft_service *service = find_frontend(&to->addr, to->port, to->protocol);
    if (service)
        return service;
    if (is_loopback(&to->addr)) {
        *standing = STANDING_OTHER;
        service = is_of_node(socket) ? find_node_port(&to->addr, to->port, to->protocol) : NULL;
        return service && service->flags & WEFT_SERVICE_LOCALHOST ? service : NULL;
    }
    *standing = standing_of(&to->addr);
    return *standing == STANDING_NODE ? find_node_port(&to->addr, to->port, to->protocol) : NULL;
}

/* Source address and port of a connect are not known yet: the client is its network namespace. */
static __always_inline void ask(struct bpf_sock_addr *socket, const struct destination *to, struct asking *asking)
{
    __u64 netns = bpf_get_netns_cookie(socket);
    *asking = (struct asking){
        .client = {.words = {0, 0, bpf_htonl(netns >> 32), bpf_htonl((__u32)netns)}},
        .addr = to->addr,
        .port = bpf_ntohs(to->port),
        .protocol = to->protocol,
    };
}

/* The backend that this socket sends to under that name, while the list has it. */
static __always_inline bool stays(struct bpf_sock_addr *socket, const struct destination *to, const struct weft_service *service,
                                  struct weft_backend *backend)
{
    struct weft_reverse_key key = {.socket = bpf_get_socket_cookie(socket), .addr = to->addr, .port = to->port};
    const struct weft_reverse *known = bpf_map_lookup_elem(&choices, &key);
    if (!known || known->service != service->id)
        return false;
    *backend = (struct weft_backend){.addr = known->addr, .port = known->port};
    return is_member(service->list, backend);
}

/* Both ways: so that the next datagram goes to the same backend, and answers come from the service. False: known before. */
static __always_inline bool remember(struct bpf_sock_addr *socket, const struct destination *to, const struct weft_backend *backend,
                                     __u32 service)
{
    __u64 cookie = bpf_get_socket_cookie(socket);
    struct weft_reverse_key key = {.socket = cookie, .addr = backend->addr, .port = backend->port};
    struct weft_reverse value = {.addr = to->addr, .port = to->port, .service = service};
    const struct weft_reverse *known = bpf_map_lookup_elem(&reverses, &key);
    if (known && known->service == service && known->port == to->port && same_addr(&known->addr, &to->addr))
        return false;
    bpf_map_update_elem(&reverses, &key, &value, BPF_ANY);
    key.addr = to->addr;
    key.port = to->port;
    value.addr = backend->addr;
    value.port = backend->port;
    bpf_map_update_elem(&choices, &key, &value, BPF_ANY);
    return true;
}

/* What a datagram socket is connected to, for bpf/end_sockets.bpf.c. */
static __always_inline void note_connected(struct bpf_sock_addr *socket, __u32 list, const struct weft_backend *backend)
{
    struct bpf_sock *own = socket->sk;
    if (!own)
        return;
    struct weft_connected *connected = bpf_sk_storage_get(&connected_sockets, own, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (!connected)
        return;
    connected->list = list;
    connected->backend = *backend;
}

static __always_inline void forget_connected(struct bpf_sock_addr *socket)
{
    struct bpf_sock *own = socket->sk;
    if (own)
        bpf_sk_storage_delete(&connected_sockets, own);
}

/* Only sockets of the node's processes: pods' datagrams are translated one by one, in from_pod. */
static __always_inline bool balance_datagrams(struct bpf_sock_addr *socket, const struct destination *to,
                                              const struct weft_service *service, enum socket_call call,
                                              struct weft_backend *backend)
{
    struct asking asking;
    __u32 list = service->list, id = service->id;
    if (!stays(socket, to, service, backend)) {
        ask(socket, to, &asking);
        if (!pick_backend(service, &asking, SCOPE_CLUSTER, backend))
            return false;
    }
    if (remember(socket, to, backend, id))
        report_socket(socket, to, backend, id, WEFT_REASON_NONE);
    if (call == CALL_CONNECT)
        note_connected(socket, list, backend);
    return true;
}

static __always_inline bool balance_stream(struct bpf_sock_addr *socket, const struct destination *to,
                                           const struct weft_service *service, struct weft_backend *backend)
{
    struct asking asking;
    __u32 id = service->id;
    ask(socket, to, &asking);
    if (!pick_backend(service, &asking, SCOPE_CLUSTER, backend))
        return false;
    report_socket(socket, to, backend, id, WEFT_REASON_NONE);
    return true;
}

static __always_inline int translate(struct bpf_sock_addr *socket, struct destination *to, enum socket_call call)
{
    enum standing standing = STANDING_OTHER;
    struct weft_backend backend;
    bool datagrams = to->protocol == PROTOCOL_UDP;
    if ((to->protocol != PROTOCOL_TCP && !datagrams) || (datagrams && !is_of_node(socket)))
        return TRANSLATION_NONE;
    const struct weft_service *service = find_service(socket, to, &standing);
    if (!service && datagrams && call == CALL_CONNECT)
        forget_connected(socket);
    if (!service && standing == STANDING_SERVICES)
        return refuse_socket(socket, to, 0, WEFT_REASON_NOT_TRANSLATED);
    /* Source ranges are about pods: their packets show the address they come from. */
    if (!service || (service->flags & WEFT_SERVICE_SOURCE_RANGES && !is_of_node(socket)))
        return TRANSLATION_NONE;
    __u32 flags = service->flags, id = service->id;
    bool found = datagrams ? balance_datagrams(socket, to, service, call, &backend) : balance_stream(socket, to, service, &backend);
    if (!found)
        return refuse_socket(socket, to, id,
                             flags & WEFT_SERVICE_LOCAL_ELSEWHERE ? WEFT_REASON_NO_LOCAL_BACKENDS : WEFT_REASON_NO_READY_BACKENDS);
    to->addr = backend.addr;
    to->port = backend.port;
    return TRANSLATION_DONE;
}

/* The service address under which the socket knows this peer. */
static __always_inline bool translate_back(struct bpf_sock_addr *socket, struct destination *peer)
{
    if (peer->protocol != PROTOCOL_UDP || !is_of_node(socket))
        return false;
    struct weft_reverse_key key = {.socket = bpf_get_socket_cookie(socket), .addr = peer->addr, .port = peer->port};
    const struct weft_reverse *reverse = bpf_map_lookup_elem(&reverses, &key);
    if (!reverse)
        return false;
    peer->addr = reverse->addr;
    peer->port = reverse->port;
    return true;
}
