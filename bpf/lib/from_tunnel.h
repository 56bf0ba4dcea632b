/* Other nodes' tunnels, as they come in on the uplink. Plain packets of known flows are taken out here; all others are the tunnel
 * device's, and come back through it. */
#pragma once
#include "known.h"

#define INNER_IP (TUNNEL_ROOM + ETH_HLEN)
/* Segments that the kernel has put together go through the device, because nothing here could clear their tunnel's marks. For as
 * long, small packets go with them: they would overtake. */
#define BULK_TICKS 2
/* Older than every kernel with tcx; headers may be older still. */
#define DECAPSULATE_V6 (1ULL << 8)

/* RFC 7348 over plain IPv4, to this node. */
static __always_inline bool is_for_tunnel(struct __sk_buff *skb)
{
    const void *frame = frame_start(skb);
    const struct ipv4_header *ip = frame + OUTER_IP;
    __u32 v4 = 0;
    if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || frame + OUTER_VXLAN > frame_end(skb))
        return false;
    if (ip->version_ihl != 0x45 || ip->protocol != PROTOCOL_UDP || ip->fragment & bpf_htons(0x3fff) ||
        *(const __u16 *)(frame + OUTER_UDP + 2) != bpf_htons(weft_config.tunnel_port))
        return false;
    const struct weft_addr *own = bpf_map_lookup_elem(&node_addresses, &v4);
    return own && own->words[3] == ip->destination;
}

static __always_inline bool has_right_checksum(const struct ipv4_header *ip)
{
    __u32 sum = 0;
#pragma unroll
    for (__u32 word = 0; word < sizeof(*ip) / 2; word++)
        sum += ((const __u16 *)ip)[word];
    return !fold_sum(sum);
}

/* Nothing in the outer headers that the device would have to see to: checksums, congestion, other networks, options. */
static __always_inline bool is_usual_tunnel(struct __sk_buff *skb, const void *frame)
{
    const struct ipv4_header *ip = frame + OUTER_IP;
    __u32 total = bpf_ntohs(ip->total_length);
    return has_right_checksum(ip) && (ip->tos & 3) != 3 && total + OUTER_IP == skb->len &&
           *(const __u16 *)(frame + OUTER_UDP + 4) == bpf_htons(total - sizeof(*ip)) && !*(const __u16 *)(frame + OUTER_UDP + 6) &&
           *(const __u32 *)(frame + OUTER_VXLAN) == VXLAN_HAS_VNI &&
           *(const __u32 *)(frame + OUTER_VXLAN + 4) == bpf_htonl(weft_config.vni << 8);
}

/* False: its flow has bulk on the way, and the packet is to stay behind it. */
static __always_inline bool may_overtake(struct __sk_buff *skb, struct weft_flow *flow)
{
    __u32 tick = bpf_jiffies64();
    if (!skb->gso_size)
        return tick - flow->bulk > BULK_TICKS;
    flow->bulk = tick;
    return false;
}

static __always_inline bool decapsulate(struct __sk_buff *skb, bool is_v6)
{
    if (bpf_skb_adjust_room(skb, -(__s32)TUNNEL_ROOM, BPF_ADJ_ROOM_MAC, is_v6 ? DECAPSULATE_V6 : 0))
        return false;
    void *frame = frame_start(skb);
    if (is_v6 && frame + ETH_HLEN <= frame_end(skb))
        *(__u16 *)(frame + 12) = bpf_htons(ETH_P_IPV6);
    return true;
}

static __noinline int from_tunnel_known(struct __sk_buff *skb)
{
    struct plain plain;
    const void *frame = frame_start(skb);
    if (frame + INNER_IP > frame_end(skb) || !is_usual_tunnel(skb, frame))
        return TO_STACK;
    struct weft_addr via;
    set_v4(&via, ((const struct ipv4_header *)(frame + OUTER_IP))->source);
    __u16 type = *(const __u16 *)(frame + TUNNEL_ROOM + 12);
    bool is_v6 = type == bpf_htons(ETH_P_IPV6);
    if (!(is_v6 ? read_plain_v6(skb, &plain, INNER_IP, WEFT_HOOK_FROM_NET)
                : type == bpf_htons(ETH_P_IP) && read_plain_v4(skb, &plain, INNER_IP, WEFT_HOOK_FROM_NET)))
        return TO_STACK;
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &plain.key);
    if (!flow)
        return TO_STACK;
    const struct weft_end *from = &flow->ends[plain.from_b ? 1 : 0], *to = &flow->ends[plain.from_b ? 0 : 1];
    if (to->kind != WEFT_END_POD || !is_open(flow, to) || (from->kind != WEFT_END_REMOTE_POD && from->kind != WEFT_END_REMOTE) ||
        !same_addr((const struct weft_addr *)from->target, &via) || !may_overtake(skb, flow) || !decapsulate(skb, is_v6))
        return TO_STACK;
    if (!rewrite_plain(skb, &plain, to))
        return refuse_plain(skb, &plain, WEFT_HOOK_FROM_NET, WEFT_REASON_MALFORMED);
    account(skb, &plain, flow, WEFT_HOOK_FROM_NET);
    return bpf_redirect_peer(to->ifindex, 0);
}

/* NOT_KNOWN: it is no tunnel's. */
static __always_inline int from_tunnel(struct __sk_buff *skb)
{
    if (!weft_config.tunnel_ifindex || skb->ifindex != weft_config.uplink_ifindex || !is_for_tunnel(skb))
        return NOT_KNOWN;
    return from_tunnel_known(skb);
}
