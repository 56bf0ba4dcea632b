/* Next hops on the uplink, remembered for a moment: most packets then ask for neither a route nor a neighbour. What is put
 * before a packet with them lives in forward.h and tunnel.h. */
#pragma once
#include "parse.h"

#define ADDRESS_FAMILY_V4 2
#define ADDRESS_FAMILY_V6 10

/* Of the timer: 0.1 to 1 s. The packet that finds a hop older than that goes the kernel's own way, which keeps the neighbour
 * alive and notices one that moved. */
#define HOP_TICKS 128
/* One that cannot be used is asked for sooner. */
#define MISSING_HOP_TICKS 16

/* Ethernet, IPv4, UDP and VXLAN (RFC 7348) as they come before an inner frame. */
#define OUTER_IP ETH_HLEN
#define OUTER_UDP (OUTER_IP + sizeof(struct ipv4_header))
#define OUTER_VXLAN (OUTER_UDP + 8)
#define TUNNEL_ROOM (OUTER_VXLAN + 8)
#define OUTER_TTL 64
#define VXLAN_HAS_VNI bpf_htonl(0x08000000)

/* Neighbours in number are neighbours in the table: they do not push each other out. */
static __always_inline __u32 hop_slot(const struct weft_addr *via)
{
    __u32 low = bpf_ntohl(via->words[3]);
    return (low ^ low >> HOP_SLOT_BITS) & ((1 << HOP_SLOT_BITS) - 1);
}

/* All but the fields that differ between packets, which count as zero in the sum. */
static __always_inline void prepare_outer(struct weft_hop *hop, __u32 source)
{
    __u16 *ip = (__u16 *)&hop->head[OUTER_IP];
    __u32 destination = hop->via.words[3], sum = 0;
    *(__u16 *)&hop->head[12] = bpf_htons(ETH_P_IP);
    ip[0] = bpf_htons(0x4500);
    ip[1] = ip[2] = ip[3] = ip[5] = 0;
    ip[4] = bpf_htons(OUTER_TTL << 8 | PROTOCOL_UDP);
    ip[6] = source;
    ip[7] = source >> 16;
    ip[8] = destination;
    ip[9] = destination >> 16;
#pragma unroll
    for (__u32 word = 0; word < 10; word++)
        sum += ip[word];
    hop->sum = sum;
    *(__u32 *)&hop->head[OUTER_UDP] = bpf_htonl(weft_config.tunnel_port);
    *(__u32 *)&hop->head[OUTER_UDP + 4] = 0;
    *(__u32 *)&hop->head[OUTER_VXLAN] = VXLAN_HAS_VNI;
    *(__u32 *)&hop->head[OUTER_VXLAN + 4] = bpf_htonl(weft_config.vni << 8);
}

/* Left without an MTU where the way does not lead through the uplink, or the neighbour is not known. */
static __noinline int learn_hop(struct __sk_buff *skb, const struct weft_addr *via, struct weft_hop *hop)
{
    if (!via || !hop)
        return 0;
    __u32 zero = 0, family = !is_v4(via);
    const struct weft_addr *own = bpf_map_lookup_elem(&node_addresses, &family);
    struct bpf_fib_lookup *way = bpf_map_lookup_elem(&way_draft, &zero);
    hop->via = *via;
    hop->mtu = 0;
    hop->until = bpf_jiffies64() + MISSING_HOP_TICKS;
    if (!own || !way)
        return 0;
    __builtin_memset(way, 0, sizeof(*way));
    /* A length asks for the way's MTU. */
    way->tot_len = 1;
    way->ifindex = weft_config.uplink_ifindex;
    if (is_v4(via)) {
        way->family = ADDRESS_FAMILY_V4;
        way->ipv4_src = own->words[3];
        way->ipv4_dst = via->words[3];
    } else {
        way->family = ADDRESS_FAMILY_V6;
        __builtin_memcpy(way->ipv6_src, own, sizeof(way->ipv6_src));
        __builtin_memcpy(way->ipv6_dst, via, sizeof(way->ipv6_dst));
    }
    if (bpf_fib_lookup(skb, way, sizeof(*way), 0) || way->ifindex != weft_config.uplink_ifindex)
        return 0;
    __builtin_memcpy(&hop->head[0], way->dmac, sizeof(way->dmac));
    __builtin_memcpy(&hop->head[6], way->smac, sizeof(way->smac));
    if (is_v4(via))
        prepare_outer(hop, own->words[3]);
    hop->mtu = way->mtu_result;
    hop->until = bpf_jiffies64() + HOP_TICKS;
    return 0;
}

/* NULL: the packet has to go the kernel's own way-> */
static __always_inline struct weft_hop *find_hop(struct __sk_buff *skb, const struct weft_addr *via)
{
    __u32 slot = hop_slot(via);
    struct weft_hop *hop = bpf_map_lookup_elem(&hops, &slot);
    if (!hop)
        return NULL;
    if ((__s64)(hop->until - bpf_jiffies64()) > 0)
        return hop->mtu && same_addr(&hop->via, via) ? hop : NULL;
    learn_hop(skb, via, hop);
    return NULL;
}
