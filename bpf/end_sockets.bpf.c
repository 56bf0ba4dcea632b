/* Ends connected datagram sockets of the node's processes whose backend has left its list. Run once by the agent after each such
 * change; an iterator sees the sockets of the caller's network namespace only. */
#include "lib/services.h"

/* Kernel structures: only what is read, found by the kernel's own type information. */
struct sock_common {
    volatile unsigned char skc_state;
} __attribute__((preserve_access_index));

struct bpf_iter__udp {
    void *meta;
    struct sock_common *udp_sk;
} __attribute__((preserve_access_index));

#define SOCKET_CONNECTED 1

extern int bpf_sock_destroy(struct sock_common *sock) __ksym;

SEC("iter/udp")
int end_sockets(struct bpf_iter__udp *context)
{
    struct sock_common *socket = context->udp_sk;
    if (!socket || socket->skc_state != SOCKET_CONNECTED)
        return 0;
    const struct weft_connected *connected = bpf_sk_storage_get(&connected_sockets, socket, NULL, 0);
    if (!connected)
        return 0;
    struct weft_backend backend = connected->backend;
    if (!is_member(connected->list, &backend))
        bpf_sock_destroy(socket);
    return 0;
}
