/* Moving an allowed packet: hop limit, link addresses, redirects. Whether it may move is decided before. */
#pragma once
#include "flows.h"
#include "tunnel.h"

/* tcx: let the next program, and then the stack, have it. */
#define TO_STACK (-1)

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

static __always_inline int send_direct(struct __sk_buff *skb, const struct weft_addr *via)
{
    const struct weft_hop *hop = find_hop(skb, via);
    if (hop) {
        void *frame = frame_start(skb);
        if (frame + ETH_HLEN <= frame_end(skb)) {
            copy_target(frame, (const __u32 *)hop->head);
            return bpf_redirect(weft_config.uplink_ifindex, 0);
        }
    }
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
        return send_direct(skb, via);
    int action = send_tunnelled(skb, via);
    return action == DROP ? refuse_with(skb, packet, hook, WEFT_REASON_TUNNEL_FAILED) : action;
}
