/* Translated connections: their entries, and rewriting a packet as one says. Choosing backends lives in services.h, when to
 * ask for one in edge.h. */
#pragma once
#include "forward.h"

#define CHECKSUM_OF_IPV4 (ETH_HLEN + offsetof(struct ipv4_header, checksum))
#define ADDRESSES_OF_IPV4 (ETH_HLEN + offsetof(struct ipv4_header, source))
#define ADDRESSES_OF_IPV6 (ETH_HLEN + offsetof(struct ipv6_header, source))
#define CHECKSUM_OF_ICMP 2
#define ECHO_ID 4
#define ICMP_HEADER 8
#define PROTOCOL_DCCP 33
#define PROTOCOL_UDPLITE 136

/* `source` and `destination` of packets, keys and entries are neighbours. */
#define BOTH_ADDRESSES (2 * sizeof(struct weft_addr))

/* Of the packets that answer `packet`. */
static __always_inline void nat_key_back(const struct packet *packet, struct weft_nat_key *key)
{
    key->source = packet->destination;
    key->destination = packet->source;
    key->source_port = packet->destination_port;
    key->destination_port = packet->source_port;
    key->protocol = packet->protocol;
    __builtin_memset(key->reserved, 0, sizeof(key->reserved));
}

/* Of the packets that answer what `entry` makes: the connection's other entry. */
static __always_inline void other_key(const struct weft_nat *entry, __u8 protocol, struct weft_nat_key *key)
{
    key->source = entry->destination;
    key->destination = entry->source;
    key->source_port = entry->destination_port;
    key->destination_port = entry->source_port;
    key->protocol = protocol;
    __builtin_memset(key->reserved, 0, sizeof(key->reserved));
}

/* Each side's flags are kept in its own entry; together they say how far the connection is. */
static __always_inline void follow_nat(const struct packet *packet, struct weft_nat *entry)
{
    entry->last_seen = bpf_ktime_get_coarse_ns();
    __u8 flags = packet->tcp_flags;
    bool reply = entry->flags & WEFT_NAT_REPLY;
    if (packet->protocol != PROTOCOL_TCP)
        return;
    if (flags & TCP_SYN)
        entry->tcp = reply ? WEFT_FLOW_ESTABLISHED : 0;
    else if (entry->flags & (WEFT_NAT_REPLY | WEFT_NAT_DSR) && flags & TCP_ACK)
        /* A connection that was found in its middle, or whose replies do not pass here. */
        entry->tcp |= WEFT_FLOW_ESTABLISHED;
    if (flags & TCP_FIN)
        entry->tcp |= reply ? WEFT_FLOW_FIN_RESPONDER : WEFT_FLOW_FIN_OPENER;
    if (flags & TCP_RST)
        entry->tcp |= WEFT_FLOW_RESET;
}

/* Where TCP and UDP, and what is built like it, keep their checksum. */
static __always_inline __u32 checksum_at(const struct packet *packet)
{
    return packet->transport + (packet->protocol == PROTOCOL_TCP ? 16 : 6);
}

static __always_inline bool is_icmp(__u8 protocol)
{
    return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6;
}

/* Whether a packet may get another port on its way; ICMP echo's is its identifier. */
static __always_inline bool has_own_port(__u8 protocol)
{
    return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || is_icmp(protocol);
}

/* The IP header's addresses. `diff` is what they change in a sum over them. */
static __always_inline bool put_addresses(struct __sk_buff *skb, bool is_v6, const struct weft_addr *both, __u32 diff)
{
    /* A card's sum over the whole packet stays right: over IPv4 because the header's checksum makes up for the change, over
     * IPv6 because the transport's does, for which the flags on either side account. */
    if (is_v6)
        return !bpf_skb_store_bytes(skb, ADDRESSES_OF_IPV6, both, BOTH_ADDRESSES, BPF_F_RECOMPUTE_CSUM);
    __u32 v4[2] = {both[0].words[3], both[1].words[3]};
    return !bpf_l3_csum_replace(skb, CHECKSUM_OF_IPV4, 0, diff, 0) &&
           !bpf_skb_store_bytes(skb, ADDRESSES_OF_IPV4, v4, sizeof(v4), 0);
}

static __always_inline __u32 ports_word(__u16 source, __u16 destination)
{
    return (__u32)bpf_htons(destination) << 16 | bpf_htons(source);
}

/* ICMP's checksum, and an echo's identifier. */
static __always_inline bool put_echo(struct __sk_buff *skb, const struct packet *packet, __u16 id, __u32 diff)
{
    __u32 sum = packet->transport + CHECKSUM_OF_ICMP;
    __u16 before = bpf_htons(packet->source_port), after = bpf_htons(id);
    if (packet->is_v6 && packet->protocol == PROTOCOL_ICMPV6 && bpf_l4_csum_replace(skb, sum, 0, diff, BPF_F_PSEUDO_HDR))
        return false;
    return before == after || (!bpf_l4_csum_replace(skb, sum, before, after, sizeof(after)) &&
                               !bpf_skb_store_bytes(skb, packet->transport + ECHO_ID, &after, sizeof(after), 0));
}

/* The transport's ports and checksum; only in a packet's first fragment. */
static __always_inline bool put_ports_of(struct __sk_buff *skb, const struct packet *packet, const struct weft_nat *to, __u32 diff)
{
    __u32 before = ports_word(packet->source_port, packet->destination_port), after = ports_word(to->source_port, to->destination_port);
    /* A datagram without a checksum stays one (RFC 768). */
    __u64 flags = packet->protocol == PROTOCOL_UDP ? BPF_F_MARK_MANGLED_0 : 0;
    if (is_icmp(packet->protocol))
        return put_echo(skb, packet, to->source_port, diff);
    /* Others have no checksum over addresses and ports, or one that ports, which they keep, are in, and addresses are not. */
    if (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP && packet->protocol != PROTOCOL_UDPLITE &&
        packet->protocol != PROTOCOL_DCCP)
        return true;
    if (bpf_l4_csum_replace(skb, checksum_at(packet), 0, diff, BPF_F_PSEUDO_HDR | flags))
        return false;
    if (before == after)
        return true;
    return !bpf_l4_csum_replace(skb, checksum_at(packet), before, after, sizeof(after) | flags) &&
           !bpf_skb_store_bytes(skb, packet->transport, &after, sizeof(after), 0);
}

/* The packet becomes what `to` says, and so does `packet`. Not for ICMP errors. */
__noinline int rewrite(struct __sk_buff *skb, struct packet *packet, const struct weft_nat *to)
{
    if (!packet || !to)
        return 0;
    __u32 diff = bpf_csum_diff((__be32 *)&packet->source, BOTH_ADDRESSES, (__be32 *)&to->source, BOTH_ADDRESSES, 0);
    if (!put_addresses(skb, packet->is_v6, &to->source, diff))
        return 0;
    if (packet->fragment != FRAGMENT_LATER && !put_ports_of(skb, packet, to, diff))
        return 0;
    packet->source = to->source;
    packet->destination = to->destination;
    packet->source_port = to->source_port;
    packet->destination_port = to->destination_port;
    return 1;
}

/* `sum` is where the message's checksum is, that goes over what it quotes. */
static __always_inline bool put_quoted_ports(struct __sk_buff *skb, const struct packet *quoted, __u32 sum, __u32 before, __u32 after)
{
    __u16 id = after;
    if (is_icmp(quoted->protocol))
        return !bpf_l4_csum_replace(skb, sum, (__u16)before, id, sizeof(id)) &&
               !bpf_skb_store_bytes(skb, quoted->transport + ECHO_ID, &id, sizeof(id), 0);
    return !bpf_l4_csum_replace(skb, sum, before, after, sizeof(after)) &&
           !bpf_skb_store_bytes(skb, quoted->transport, &after, sizeof(after), 0);
}

/* The packet that an ICMP error quotes, in the other side's terms: what `to`, its answer's entry, says, turned round. The
 * transport's checksum in the quotation stays that of the packet as it was here. */
static __always_inline bool rewrite_quoted(struct __sk_buff *skb, const struct packet *error, const struct packet *quoted,
                                           const struct weft_nat *to)
{
    struct weft_addr both[2] = {to->destination, to->source};
    __u32 at = error->transport + ICMP_HEADER, sum = error->transport + CHECKSUM_OF_ICMP;
    __u32 before = ports_word(quoted->source_port, quoted->destination_port), after = ports_word(to->destination_port, to->source_port);
    __u32 diff = bpf_csum_diff((__be32 *)&quoted->source, BOTH_ADDRESSES, (__be32 *)both, BOTH_ADDRESSES, 0);
    if (before != after && !put_quoted_ports(skb, quoted, sum, before, after))
        return false;
    if (error->is_v6)
        return !bpf_l4_csum_replace(skb, sum, 0, diff, 0) &&
               !bpf_skb_store_bytes(skb, at + offsetof(struct ipv6_header, source), both, sizeof(both), 0);
    /* The quoted header's checksum changes against its addresses, so the sum over the message does not. */
    __u32 v4[2] = {both[0].words[3], both[1].words[3]};
    return !bpf_l3_csum_replace(skb, at + offsetof(struct ipv4_header, checksum), 0, diff, 0) &&
           !bpf_skb_store_bytes(skb, at + offsetof(struct ipv4_header, source), v4, sizeof(v4), 0);
}

/* An ICMP error about a translated packet is translated as an answer to it (RFC 5508, 4.2). */
static __always_inline bool rewrite_error(struct __sk_buff *skb, struct packet *error, const struct packet *quoted,
                                          const struct weft_nat *to)
{
    /* Whoever sent it, it comes from where answers come from, if that is another than the packet went to. */
    struct weft_addr both[2] = {same_addr(&to->source, &quoted->destination) ? error->source : to->source, to->destination};
    __u32 diff = bpf_csum_diff((__be32 *)&error->source, BOTH_ADDRESSES, (__be32 *)both, BOTH_ADDRESSES, 0);
    if (!rewrite_quoted(skb, error, quoted, to) || !put_addresses(skb, error->is_v6, both, diff))
        return false;
    if (error->is_v6 && bpf_l4_csum_replace(skb, error->transport + CHECKSUM_OF_ICMP, 0, diff, BPF_F_PSEUDO_HDR))
        return false;
    error->source = both[0];
    error->destination = both[1];
    return true;
}

enum error_kind {
    /* Of clients' packets, before policy is asked. */
    ERROR_ABOUT_REPLY,
    /* Of backends' packets, and of pods' from outside, after it. */
    ERROR_ABOUT_REQUEST,
    /* Of pods' about what came from outside, after it. */
    ERROR_ABOUT_ANSWER,
};

enum translated {
    NOT_TRANSLATED = 0,
    TRANSLATED = 1,
    TRANSLATION_BROKEN = 2,
    /* What a masqueraded packet has caused. */
    TRANSLATED_BACK = 3,
};

/* Whether an error about what `flags`' entry answers is of this kind. */
static __always_inline bool is_kind_of(__u32 kind, __u8 flags)
{
    return kind == ERROR_ABOUT_REQUEST ? flags & WEFT_NAT_REPLY
           : kind == ERROR_ABOUT_ANSWER ? flags == WEFT_NAT_MASQUERADED
                                        : !flags;
}

/* Where the backend is that answers the client itself, if an ICMP error is about such an answer. */
static __noinline bool find_sent_on(struct __sk_buff *skb, const struct packet *error, struct weft_end *backend)
{
    struct packet quoted = {};
    struct weft_nat_key key;
    if (!error || !backend || !parse_quoted(skb, error, &quoted))
        return false;
    nat_key_back(&quoted, &key);
    const struct weft_nat *entry = bpf_map_lookup_elem(&nat, &key);
    if (!entry || !(entry->flags & WEFT_NAT_DSR))
        return false;
    resolve(&entry->destination, backend);
    return true;
}

/* Rewrites an ICMP error about a packet that was translated on its way here. */
__noinline int translate_error(struct __sk_buff *skb, struct packet *error, __u32 kind)
{
    struct packet quoted = {};
    struct weft_nat_key key;
    if (!error || !parse_quoted(skb, error, &quoted))
        return NOT_TRANSLATED;
    nat_key_back(&quoted, &key);
    const struct weft_nat *entry = bpf_map_lookup_elem(&nat, &key);
    if (!entry || !is_kind_of(kind, entry->flags))
        return NOT_TRANSLATED;
    bool is_back = kind == ERROR_ABOUT_REQUEST && entry->flags & WEFT_NAT_MASQUERADED;
    if (!rewrite_error(skb, error, &quoted, entry))
        return TRANSLATION_BROKEN;
    return is_back ? TRANSLATED_BACK : TRANSLATED;
}
