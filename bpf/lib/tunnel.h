/* VXLAN: outer headers written here where the next hop is known, and by the tunnel device where it is not or something else
 * is unusual. Taking them off lives in from_tunnel.h. */
#pragma once
#include "hops.h"

#define DROP 2

/* In tc_index on the way from here to the tunnel device's own program: asking for the key again would cost more. Without a key
 * the device drops a packet, so that nobody gains by setting it. */
#define HAS_TUNNEL_KEY 0x7776

#define LONGEST_TCP 60

#define TUNNEL_FLAGS                                                                                          \
    (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | \
     BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN))

static __always_inline bool set_tunnel(struct __sk_buff *skb, const struct weft_addr *via)
{
    struct bpf_tunnel_key key = {.tunnel_id = weft_config.vni, .tunnel_ttl = OUTER_TTL};
    if (is_v4(via)) {
        key.remote_ipv4 = bpf_ntohl(via->words[3]);
        /* RFC 7348, 5: zero over IPv4; the inner packet has its own checksums. */
        return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
    }
    __builtin_memcpy(key.remote_ipv6, via->words, sizeof(key.remote_ipv6));
    return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6);
}

/* Of an inner packet: what the outer header shows of its congestion marks (RFC 6040, 4.1, in compatibility with all receivers, as
 * the tunnel device has it). */
static __always_inline __u8 outer_marks(const void *ip, __u16 type)
{
    __u8 marks = type == bpf_htons(ETH_P_IP) ? ((const __u8 *)ip)[1] : ((const __u8 *)ip)[1] >> 4;
    marks &= 3;
    return marks == 3 ? 2 : marks;
}

/* From the start of the IP header to the end of TCP's. 0: not a packet of which the kernel makes segments here. */
static __always_inline __u32 tcp_headers(const void *frame, const void *end, __u16 type)
{
    const __u8 *ip = frame + ETH_HLEN;
    bool is_ip4 = type == bpf_htons(ETH_P_IP);
    __u32 length = is_ip4 ? (ip[0] & 0xf) * 4 : sizeof(struct ipv6_header);
    const __u8 *tcp = ip + length;
    if ((const void *)(tcp + 13) > end || (is_ip4 ? ip[9] : ip[6]) != PROTOCOL_TCP)
        return 0;
    return length + (tcp[12] >> 4) * 4;
}

/* Whether its packets, as they will be on the wire, fit the way. */
static __always_inline bool fits(struct __sk_buff *skb, const struct weft_hop *hop, const void *frame, const void *end, __u16 type)
{
    __u32 length = skb->len + TUNNEL_ROOM - OUTER_IP, segment = skb->gso_size;
    if (!segment)
        return length <= hop->mtu;
    __u32 headers = tcp_headers(frame, end, type);
    return headers && length <= 0xffff && segment + headers + TUNNEL_ROOM <= hop->mtu;
}

static __always_inline __u16 fold_sum(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

/* In words as large as the frame's alignment allows: what is copied byte by byte costs more than the look-ups it spares. */
static __always_inline void write_outer(void *frame, struct weft_hop *hop, __u32 length, __u32 segments, __u8 marks, __u32 hash)
{
    const __u64 *head = (const __u64 *)hop->head;
    volatile __u64 *to = frame;
    to[0] = head[0];
    to[1] = head[1];
    to[2] = head[2];
    to[3] = head[3];
    to[4] = head[4];
    to[5] = head[5];
    *(volatile __u16 *)(frame + 48) = *(const __u16 *)(hop->head + 48);
    __u16 total = bpf_htons(length), id = bpf_htons(hop->id);
    hop->id += segments ? segments : 1;
    *(volatile __u8 *)(frame + OUTER_IP + 1) = marks;
    *(volatile __u16 *)(frame + OUTER_IP + 2) = total;
    *(volatile __u16 *)(frame + OUTER_IP + 4) = id;
    *(volatile __u16 *)(frame + OUTER_IP + 10) = fold_sum(hop->sum + total + id + bpf_htons(marks));
    /* RFC 7348, 5: of the dynamic range, and the same for all packets of an inner flow. */
    *(volatile __u16 *)(frame + OUTER_UDP) = bpf_htons(0xc000 | (hash & 0x3fff));
    *(volatile __u16 *)(frame + OUTER_UDP + 4) = bpf_htons(length - sizeof(struct ipv4_header));
}

/* 0: the packet is as it was; DROP: it is lost. */
static __noinline int encapsulate(struct __sk_buff *skb, struct weft_hop *hop)
{
    void *frame = frame_start(skb);
    if (!hop || frame + ETH_HLEN + sizeof(struct ipv4_header) > frame_end(skb))
        return 0;
    __u32 inner[3];
    for (__u32 word = 0; word < 3; word++)
        inner[word] = ((const __u32 *)frame)[word];
    __u16 type = *(const __u16 *)(frame + 12);
    if (!fits(skb, hop, frame, frame_end(skb), type))
        return 0;
    __u8 marks = outer_marks(frame + ETH_HLEN, type);
    __u32 length = skb->len + TUNNEL_ROOM - OUTER_IP, segments = skb->gso_segs;
    __u32 hash = bpf_get_hash_recalc(skb);
    if (bpf_skb_adjust_room(skb, TUNNEL_ROOM, BPF_ADJ_ROOM_MAC, TUNNEL_FLAGS))
        return 0;
    frame = frame_start(skb);
    if (frame + TUNNEL_ROOM + ETH_HLEN > frame_end(skb))
        return DROP;
    write_outer(frame, hop, length, segments, marks, hash);
    frame += TUNNEL_ROOM;
    for (__u32 word = 0; word < 3; word++)
        ((__u32 *)frame)[word] = inner[word];
    *(__u16 *)(frame + 12) = type;
    return bpf_redirect(weft_config.uplink_ifindex, 0);
}

/* DROP: the packet is lost, and not yet counted. */
static __always_inline int send_tunnelled(struct __sk_buff *skb, const struct weft_addr *via)
{
    struct weft_hop *hop = is_v4(via) ? find_hop(skb, via) : NULL;
    int action = hop ? encapsulate(skb, hop) : 0;
    if (action)
        return action;
    if (!set_tunnel(skb, via))
        return DROP;
    skb->tc_index = HAS_TUNNEL_KEY;
    return bpf_redirect(weft_config.tunnel_ifindex, 0);
}
