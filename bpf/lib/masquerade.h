/* Pods' packets to outside the cluster: they leave with the node's address, and a port of the node's where their protocol has ports.
 * What answers them comes back through edge.h. */
#pragma once
#include "edge.h"

/* Which device, and not which neighbour. Newer than the headers this may be built with. */
#define FIB_LOOKUP_SKIP_NEIGH (1U << 2)

/* Where the node's routes lead out of another device, the stack sends the packet, as it is. */
static __noinline bool leaves_by_uplink(struct __sk_buff *skb, const struct packet *packet)
{
    if (!packet)
        return false;
    struct bpf_fib_lookup route = {.ifindex = skb->ifindex, .l4_protocol = packet->protocol};
    if (packet->is_v6) {
        route.family = ADDRESS_FAMILY_V6;
        __builtin_memcpy(route.ipv6_src, packet->source.words, sizeof(route.ipv6_src));
        __builtin_memcpy(route.ipv6_dst, packet->destination.words, sizeof(route.ipv6_dst));
    } else {
        route.family = ADDRESS_FAMILY_V4;
        route.ipv4_src = packet->source.words[3];
        route.ipv4_dst = packet->destination.words[3];
    }
    return bpf_fib_lookup(skb, &route, sizeof(route), FIB_LOOKUP_SKIP_NEIGH) == BPF_FIB_LKUP_RET_SUCCESS &&
           route.ifindex == weft_config.uplink_ifindex;
}

/* The source port is kept where it is one of the node's for this. What has none, or cannot have another, is one pod's at a time. */
static __always_inline bool claim_masquerade(struct weft_translation *draft)
{
    __u16 port = draft->key.source_port;
    if (!has_own_port(draft->key.protocol) || !port)
        return claim(draft, false) || claim(draft, true);
    if (port < weft_config.nat_ports[0] || port > weft_config.nat_ports[1])
        draft->to.source_port = 0;
    return claim_port(draft, draft->hash);
}

/* A connection of its own for the draft's key. */
static __noinline int open_masquerade(const struct packet *packet)
{
    struct weft_translation *draft = translation();
    if (!draft || !packet)
        return WEFT_REASON_TABLE_FULL;
    const struct weft_addr *own = own_address(packet->is_v6);
    /* Nothing tells whose the answers to other ICMP messages than echo are. */
    if (!own || (is_icmp(packet->protocol) && !packet->source_port))
        return WEFT_REASON_NO_FREE_PORT;
    struct asking asking = {
        .client = packet->source,
        .addr = packet->destination,
        .client_port = packet->source_port,
        .port = packet->destination_port,
        .protocol = packet->protocol,
    };
    draft->hash = hash_of(&asking);
    __builtin_memset(&draft->to, 0, sizeof(draft->to));
    draft->to.source = *own;
    draft->to.source_port = packet->source_port;
    draft->to.destination = packet->destination;
    draft->to.destination_port = packet->destination_port;
    draft->to.flags = WEFT_NAT_MASQUERADED;
    draft->to.created = bpf_ktime_get_coarse_ns();
    follow_nat(packet, &draft->to);
    put_other(draft);
    if (!claim_masquerade(draft))
        return WEFT_REASON_NO_FREE_PORT;
    return bpf_map_update_elem(&nat, &draft->key, &draft->to, BPF_ANY) ? WEFT_REASON_TABLE_FULL : WEFT_REASON_NONE;
}

/* The packet's entry, if it is one of the node's present address. What begins anew may begin with another. */
static __always_inline struct weft_nat *find_masquerade(const struct packet *packet, const struct weft_nat_key *key)
{
    struct weft_nat *entry = bpf_map_lookup_elem(&nat, key);
    if (!entry || entry->flags != WEFT_NAT_MASQUERADED)
        return NULL;
    if (packet->protocol == PROTOCOL_TCP && !is_opening(packet))
        return entry;
    const struct weft_addr *own = own_address(packet->is_v6);
    return own && same_addr(own, &entry->source) ? entry : NULL;
}

/* CONNECTION_REQUEST: the draft's `to` says what the packet becomes. CONNECTION_NONE: it stays as it is. Else the reason why it is
 * dropped. */
static __noinline int find_or_open_masquerade(struct __sk_buff *skb, const struct packet *packet)
{
    struct weft_translation *draft = translation();
    if (!draft || !packet)
        return WEFT_REASON_TABLE_FULL;
    nat_key(packet, &draft->key);
    struct weft_nat *entry = find_masquerade(packet, &draft->key);
    if (entry)
        return keep_connection(packet, entry, draft);
    if (!leaves_by_uplink(skb, packet))
        return CONNECTION_NONE;
    int refused = open_masquerade(packet);
    return refused ? refused : CONNECTION_REQUEST;
}

/* After policy; `reason` is its verdict's. */
__noinline int masquerade(struct __sk_buff *skb, __u32 reason)
{
    struct packet packet = {};
    if (parse_network(skb, &packet) || parse_transport(skb, &packet) || complete_fragment(&packet))
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, WEFT_REASON_MALFORMED);
    /* The stack answers with the ICMP error. */
    int connection = packet.hop_limit <= 1 ? CONNECTION_NONE : CONNECTION_REQUEST, translated = NOT_TRANSLATED;
    if (connection && packet.is_icmp_error)
        translated = translate_error(skb, &packet, ERROR_ABOUT_ANSWER);
    if (connection && translated == NOT_TRANSLATED) {
        connection = find_or_open_masquerade(skb, &packet);
        struct weft_translation *draft = translation();
        if (connection == CONNECTION_REQUEST)
            translated = draft && rewrite(skb, &packet, &draft->to) ? TRANSLATED : TRANSLATION_BROKEN;
    }
    if (is_denial(connection) || translated == TRANSLATION_BROKEN)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_POD, is_denial(connection) ? connection : WEFT_REASON_MALFORMED);
    count(reason, 1, skb->len);
    return connection == CONNECTION_NONE ? TO_STACK : send_out(skb, &packet, WEFT_HOOK_FROM_POD);
}
