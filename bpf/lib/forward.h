/* Moving an allowed packet: hop limit, link addresses, redirects. Whether it may move is decided before. */
#pragma once
#include "flows.h"

/* tcx: let the next program, and then the stack, have it. */
#define TO_STACK (-1)
#define DROP 2
#define ADDRESS_FAMILY_V4 2
#define ADDRESS_FAMILY_V6 10

/* Every dropped packet ends here. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet, __u8 hook, const struct verdict *verdict)
{
    count(verdict->reason, 1, skb->len);
    if (verdict->reason == WEFT_REASON_LINK_LOCAL || verdict->reason == WEFT_REASON_NOT_IP || !may_report_denial())
        return DROP;
    struct weft_event *event = reserve_event(WEFT_EVENT_DENIED, hook, verdict->reason);
    if (event) {
        describe(event, packet, skb);
        event->egress_rule = verdict->egress_rule;
        event->ingress_rule = verdict->ingress_rule;
        submit_event(event);
    }
    return DROP;
}

static __always_inline int refuse_with(struct __sk_buff *skb, const struct packet *packet, __u8 hook, __u8 reason)
{
    struct verdict verdict = {.reason = reason};
    return refuse(skb, packet, hook, &verdict);
}

static __always_inline void lower_ttl(struct ipv4_header *ip)
{
    /* RFC 1624, 3: the TTL is the high byte of its word. */
    __u32 sum = bpf_ntohs(ip->checksum) + 0x100U;
    ip->checksum = bpf_htons(sum + (sum >= 0xffff));
    ip->ttl--;
}

/* The caller has seen that the limit is above one. */
static __always_inline bool lower_hop_limit(struct __sk_buff *skb, const struct packet *packet)
{
    if (packet->is_v6) {
        __u8 lower = packet->hop_limit - 1;
        /* Nothing in IPv6 makes up for the change in a checksum the card computed over the whole packet. */
        return !bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6_header, hop_limit), &lower, sizeof(lower),
                                    BPF_F_RECOMPUTE_CSUM);
    }
    struct ipv4_header *ip = frame_start(skb) + ETH_HLEN;
    if ((void *)(ip + 1) > frame_end(skb)) {
        if (bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*ip)))
            return false;
        ip = frame_start(skb) + ETH_HLEN;
        if ((void *)(ip + 1) > frame_end(skb))
            return false;
    }
    lower_ttl(ip);
    return true;
}

static __always_inline bool set_link_addresses(struct __sk_buff *skb, const struct weft_end *pod)
{
    void *frame = frame_start(skb);
    if (frame + ETH_HLEN > frame_end(skb))
        return false;
    copy_target(frame, pod->target);
    return true;
}

/* Into a pod of this node, past its host side. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *packet, __u8 hook, const struct verdict *verdict)
{
    if (!verdict->to.ifindex)
        return refuse_with(skb, packet, hook, WEFT_REASON_ENDPOINT_NOT_READY);
    count(verdict->reason, 1, skb->len);
    /* The stack answers with the ICMP error. */
    if (packet->hop_limit <= 1)
        return TO_STACK;
    if (!lower_hop_limit(skb, packet) || !set_link_addresses(skb, &verdict->to))
        return refuse_with(skb, packet, hook, WEFT_REASON_MALFORMED);
    return bpf_redirect_peer(verdict->to.ifindex, 0);
}

static __always_inline int send_direct(const struct weft_addr *via)
{
    struct bpf_redir_neigh next = {};
    if (is_v4(via)) {
        next.nh_family = ADDRESS_FAMILY_V4;
        next.ipv4_nh = via->words[3];
    } else {
        next.nh_family = ADDRESS_FAMILY_V6;
        __builtin_memcpy(next.ipv6_nh, via->words, sizeof(next.ipv6_nh));
    }
    return bpf_redirect_neigh(weft_config.uplink_ifindex, &next, sizeof(next), 0);
}

/* In tc_index on the way from here to the tunnel device's own program: asking for the key again would cost more. Without a key
 * the device drops a packet, so that nobody gains by setting it. */
#define HAS_TUNNEL_KEY 0x7776

static __always_inline int send_tunnelled(struct __sk_buff *skb)
{
    skb->tc_index = HAS_TUNNEL_KEY;
    return bpf_redirect(weft_config.tunnel_ifindex, 0);
}

static __always_inline bool set_tunnel(struct __sk_buff *skb, const struct weft_addr *via)
{
    struct bpf_tunnel_key key = {.tunnel_id = weft_config.vni, .tunnel_ttl = 64};
    if (is_v4(via)) {
        key.remote_ipv4 = bpf_ntohl(via->words[3]);
        /* RFC 7348, 5: zero over IPv4; the inner packet has its own checksums. */
        return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
    }
    __builtin_memcpy(key.remote_ipv6, via->words, sizeof(key.remote_ipv6));
    return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6);
}

/* To another node's pods, or to that node. */
static __always_inline int send_remote(struct __sk_buff *skb, const struct packet *packet, __u8 hook, const struct verdict *verdict)
{
    const struct weft_addr *via = (const struct weft_addr *)verdict->to.target;
    count(verdict->reason, 1, skb->len);
    if (packet->hop_limit <= 1)
        return TO_STACK;
    if (!lower_hop_limit(skb, packet))
        return refuse_with(skb, packet, hook, WEFT_REASON_MALFORMED);
    if (weft_config.routing == WEFT_ROUTING_DIRECT)
        return send_direct(via);
    if (!set_tunnel(skb, via))
        return refuse_with(skb, packet, hook, WEFT_REASON_TUNNEL_FAILED);
    return send_tunnelled(skb);
}
