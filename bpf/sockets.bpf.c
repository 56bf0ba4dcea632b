/* Sockets of pods and of the node: the cgroup hooks of connect, sendmsg, recvmsg and getpeername. What they do lives in lib/sockets.h. */
#include "lib/sockets.h"

#define SOCKET_ALLOW 1
#define SOCKET_REFUSE 0

static __always_inline void read_v4(const struct bpf_sock_addr *socket, struct destination *peer)
{
    set_v4(&peer->addr, socket->user_ip4);
    peer->port = socket->user_port;
    peer->protocol = socket->protocol;
}

static __always_inline void read_v6(const struct bpf_sock_addr *socket, struct destination *peer)
{
    peer->addr.words[0] = socket->user_ip6[0];
    peer->addr.words[1] = socket->user_ip6[1];
    peer->addr.words[2] = socket->user_ip6[2];
    peer->addr.words[3] = socket->user_ip6[3];
    peer->port = socket->user_port;
    peer->protocol = socket->protocol;
}

static __always_inline void write_v4(struct bpf_sock_addr *socket, const struct destination *peer)
{
    socket->user_ip4 = peer->addr.words[3];
    socket->user_port = peer->port;
}

static __always_inline void write_v6(struct bpf_sock_addr *socket, const struct destination *peer)
{
    socket->user_ip6[0] = peer->addr.words[0];
    socket->user_ip6[1] = peer->addr.words[1];
    socket->user_ip6[2] = peer->addr.words[2];
    socket->user_ip6[3] = peer->addr.words[3];
    socket->user_port = peer->port;
}

static __always_inline int leave_v4(struct bpf_sock_addr *socket, enum socket_call call)
{
    struct destination peer;
    read_v4(socket, &peer);
    int result = translate(socket, &peer, call);
    if (result == TRANSLATION_DONE)
        write_v4(socket, &peer);
    return result == TRANSLATION_REFUSED ? SOCKET_REFUSE : SOCKET_ALLOW;
}

static __always_inline int leave_v6(struct bpf_sock_addr *socket, enum socket_call call)
{
    struct destination peer;
    read_v6(socket, &peer);
    int result = translate(socket, &peer, call);
    if (result == TRANSLATION_DONE)
        write_v6(socket, &peer);
    return result == TRANSLATION_REFUSED ? SOCKET_REFUSE : SOCKET_ALLOW;
}

static __always_inline int show_v4(struct bpf_sock_addr *socket)
{
    struct destination peer;
    read_v4(socket, &peer);
    if (translate_back(socket, &peer))
        write_v4(socket, &peer);
    return SOCKET_ALLOW;
}

static __always_inline int show_v6(struct bpf_sock_addr *socket)
{
    struct destination peer;
    read_v6(socket, &peer);
    if (translate_back(socket, &peer))
        write_v6(socket, &peer);
    return SOCKET_ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *socket)
{
    return leave_v4(socket, CALL_CONNECT);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *socket)
{
    return leave_v6(socket, CALL_CONNECT);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *socket)
{
    return leave_v4(socket, CALL_SEND);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *socket)
{
    return leave_v6(socket, CALL_SEND);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *socket)
{
    return show_v4(socket);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *socket)
{
    return show_v6(socket);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *socket)
{
    return show_v4(socket);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *socket)
{
    return show_v6(socket);
}
