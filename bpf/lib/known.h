/* Plain packets of known flows: most packets, and the shortest way for them. Whatever else comes is left untouched for the
 * general way, which gives every packet, and these too, the same answer. */
#pragma once
#include "forward.h"

/* Not one of the actions that a program may return. */
#define NOT_KNOWN (-2)

/* A whole IP packet without options or extension headers that carries TCP or UDP. */
struct plain {
    struct weft_flow_key key __attribute__((aligned(8)));
    bool from_b;
    bool is_v6;
    __u8 protocol;
    __u8 tcp_flags;
};

/* `end` is where the IP packet ends, from the start of the frame. Not for the SYN of a new connection. */
static __always_inline bool read_plain_ports(struct plain *plain, const __u8 *header, const void *frame_end, __u32 at, __u32 end,
                                             __u16 *source, __u16 *destination)
{
    if ((const void *)(header + 8) > frame_end || at + 8 > end)
        return false;
    *source = bpf_ntohs(*(const __u16 *)header);
    *destination = bpf_ntohs(*(const __u16 *)(header + 2));
    plain->tcp_flags = 0;
    if (plain->protocol == PROTOCOL_UDP)
        return true;
    if (plain->protocol != PROTOCOL_TCP || (const void *)(header + 20) > frame_end)
        return false;
    __u32 length = (header[12] >> 4) * 4;
    plain->tcp_flags = header[13];
    return length >= 20 && at + length <= end && (plain->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN;
}

static __always_inline void put_ports(struct plain *plain, __u16 source, __u16 destination)
{
    __u32 a = plain->from_b ? destination : source, b = plain->from_b ? source : destination;
    *(volatile __u64 *)&plain->key.port_a = (__u64)plain->protocol << 32 | b << 16 | a;
}

/* In halves: the table compares keys by eight bytes, and a processor waits for loads wider than the stores before them. */
static __always_inline void put_v4(struct weft_addr *addr, __u32 v4)
{
    volatile __u64 *halves = (volatile __u64 *)addr;
    halves[0] = 0;
    halves[1] = (__u64)v4 << 32 | V4_MAPPED_WORD;
}

static __always_inline bool read_plain_v4(struct __sk_buff *skb, struct plain *plain, __u32 at, __u8 hook)
{
    const struct ipv4_header *ip = frame_start(skb) + at;
    const void *frame_end_at = frame_end(skb);
    __u16 from, to;
    if ((const void *)(ip + 1) > frame_end_at || ip->version_ihl != 0x45 || ip->fragment & bpf_htons(0x3fff) || ip->ttl <= 1)
        return false;
    __u32 end = at + bpf_ntohs(ip->total_length);
    plain->protocol = ip->protocol;
    if (end > skb->len || !read_plain_ports(plain, (const __u8 *)(ip + 1), frame_end_at, at + sizeof(*ip), end, &from, &to))
        return false;
    __u32 source = ip->source, destination = ip->destination;
    __u32 one = bpf_ntohl(source), other = bpf_ntohl(destination);
    if (hook == WEFT_HOOK_FROM_POD && (other >> 16 == 0xa9fe || other >= 0xe0000000))
        return false;
    plain->is_v6 = false;
    plain->from_b = one > other || (one == other && from > to);
    put_v4(&plain->key.a, plain->from_b ? destination : source);
    put_v4(&plain->key.b, plain->from_b ? source : destination);
    put_ports(plain, from, to);
    return true;
}

static __always_inline bool read_plain_v6(struct __sk_buff *skb, struct plain *plain, __u32 at, __u8 hook)
{
    const struct ipv6_header *ip = frame_start(skb) + at;
    const void *frame_end_at = frame_end(skb);
    __u16 from, to;
    if ((const void *)(ip + 1) > frame_end_at || (ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
        ip->hop_limit <= 1)
        return false;
    __u32 end = at + sizeof(*ip) + bpf_ntohs(ip->payload_length);
    plain->protocol = ip->next_header;
    if (end > skb->len || !read_plain_ports(plain, (const __u8 *)(ip + 1), frame_end_at, at + sizeof(*ip), end, &from, &to))
        return false;
    if (is_v4(&ip->source) || is_v4(&ip->destination) || (hook == WEFT_HOOK_FROM_POD && is_link_local(&ip->destination)))
        return false;
    int order = compare_addr(&ip->source, &ip->destination);
    plain->is_v6 = true;
    plain->from_b = order ? order > 0 : from > to;
    if (plain->from_b) {
        plain->key.a = ip->destination;
        plain->key.b = ip->source;
    } else {
        plain->key.a = ip->source;
        plain->key.b = ip->destination;
    }
    put_ports(plain, from, to);
    return true;
}

static __always_inline bool read_plain(struct __sk_buff *skb, struct plain *plain, __u8 hook)
{
    if (skb->vlan_present)
        return false;
    if (skb->protocol == bpf_htons(ETH_P_IP))
        return read_plain_v4(skb, plain, ETH_HLEN, hook);
    return skb->protocol == bpf_htons(ETH_P_IPV6) && read_plain_v6(skb, plain, ETH_HLEN, hook);
}

/* Hop limit and, for a pod, link addresses. False: nothing was changed that the general way would not change as well. */
static __always_inline bool rewrite_plain(struct __sk_buff *skb, const struct plain *plain, const struct weft_end *to)
{
    void *frame = frame_start(skb);
    struct ipv4_header *ip = frame + ETH_HLEN;
    if ((void *)(ip + 1) > frame_end(skb))
        return false;
    if (to->kind == WEFT_END_POD)
        copy_target(frame, to->target);
    if (plain->is_v6) {
        __u8 lower = ((struct ipv6_header *)ip)->hop_limit - 1;
        return !bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6_header, hop_limit), &lower, sizeof(lower),
                                    BPF_F_RECOMPUTE_CSUM);
    }
    lower_ttl(ip);
    return true;
}

static __always_inline void account(struct __sk_buff *skb, const struct plain *plain, struct weft_flow *flow, __u8 hook)
{
    bool from_opener = plain->from_b == (flow->flags & WEFT_FLOW_OPENED_BY_B);
    see(flow);
    if (from_opener) {
        flow->packets[0]++;
        flow->bytes[0] += skb->len;
    } else {
        flow->packets[1]++;
        flow->bytes[1] += skb->len;
    }
    if (plain->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
        follow_tcp(skb, &plain->key, flow, plain->tcp_flags, from_opener, hook);
    count(from_opener ? flow->reason : WEFT_REASON_REPLY, 1, skb->len);
}

/* Whether flow and end are such that nothing but the rewrite can go wrong any more. */
static __always_inline bool is_open(const struct weft_flow *flow, const struct weft_end *to)
{
    bool leads_on = to->kind == WEFT_END_POD ? to->ifindex != 0 : to->kind == WEFT_END_REMOTE || to->kind == WEFT_END_REMOTE_POD;
    return leads_on && flow->epoch == current_epoch() && !is_denial(flow->reason) && !(flow->flags & ~WEFT_FLOW_OPENED_BY_B);
}

static __noinline int refuse_plain(struct __sk_buff *skb, const struct plain *plain, __u8 hook, __u8 reason)
{
    if (!plain)
        return DROP;
    struct packet packet = {
        .source = plain->from_b ? plain->key.b : plain->key.a,
        .destination = plain->from_b ? plain->key.a : plain->key.b,
        .source_port = plain->from_b ? plain->key.port_b : plain->key.port_a,
        .destination_port = plain->from_b ? plain->key.port_a : plain->key.port_b,
        .protocol = plain->protocol,
    };
    return refuse_with(skb, &packet, hook, reason);
}
