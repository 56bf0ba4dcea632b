/* Answers made here, so that who asks for what is not there hears so at once: TCP's reset (RFC 9293, 3.10.7.1), ICMP errors
 * (RFC 792; RFC 4443, 3.1). When to give one is the callers' choice. */
#pragma once
#include "nat.h"

/* A multiple of four. RFC 1812, 4.3.2.3, and RFC 4443, 2.4, have most of the packet quoted; what is refused are openings. */
#define MOST_QUOTED 512
#define ERROR_HOP_LIMIT 64
#define IPV4_DONT_FRAGMENT bpf_htons(0x4000)

enum icmp_error {
    PORT_UNREACHABLE,
    TIME_EXCEEDED,
};

struct icmp_header {
    __u8 type;
    __u8 code;
    __u16 checksum;
    __u32 unused;
};

struct tcp_header {
    __u16 source;
    __u16 destination;
    __u32 sequence;
    __u32 acknowledged;
    __u8 length;
    __u8 flags;
    __u16 window;
    __u16 checksum;
    __u16 urgent;
};

struct ipv4_reset {
    struct ipv4_header ip;
    struct tcp_header tcp;
};

struct ipv6_reset {
    struct ipv6_header ip;
    struct tcp_header tcp;
};

struct ipv4_error {
    struct ipv4_header ip;
    struct icmp_header icmp;
};

struct ipv6_error {
    struct ipv6_header ip;
    struct icmp_header icmp;
};

static __always_inline __u16 folded(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return ~((sum & 0xffff) + (sum >> 16));
}

/* RFC 4443, 2.4 (f); RFC 1812, 4.3.2.8. */
static __always_inline bool may_send_error(void)
{
    __u32 zero = 0;
    struct weft_budget *budget = bpf_map_lookup_elem(&error_budget, &zero);
    if (!budget)
        return false;
    __u64 window = bpf_ktime_get_coarse_ns() / SECOND;
    if (budget->window != window) {
        budget->window = window;
        budget->left = weft_config.icmp_errors;
    }
    if (!budget->left)
        return false;
    budget->left--;
    return true;
}

/* RFC 1122, 3.2.2: not about later fragments, and not to those who are not one host. */
static __always_inline bool may_hear_errors(const struct packet *packet)
{
    const struct weft_addr *source = &packet->source;
    bool is_nobody = !source->words[0] && !source->words[1] && !source->words[3] && (!source->words[2] || is_v4(source));
    return packet->fragment != FRAGMENT_LATER && !packet->is_icmp_error && !is_nobody && !is_link_local(source);
}

/* Whether the transport's checksum is still to be computed, by a card or never: it then covers what comes after, and its field
 * holds the sum over addresses, length and protocol. Such a frame cannot be cut before the field; another is. */
static __always_inline bool is_checksum_open(struct __sk_buff *skb, const struct packet *packet)
{
    return bpf_skb_change_tail(skb, checksum_at(packet), 0);
}

/* The sum over what is quoted, the packet from its IP header on, as it will be when it leaves the machine. */
static __always_inline bool sum_quoted(struct __sk_buff *skb, const struct packet *packet, __u32 length, __u32 *sum)
{
    __u32 zero = 0, header = packet->transport - ETH_HLEN;
    __u16 field = 0;
    struct weft_quotation *quotation = bpf_map_lookup_elem(&quotation_draft, &zero);
    if (!quotation || length < sizeof(struct ipv4_header) || length > MOST_QUOTED)
        return false;
    if (bpf_skb_load_bytes(skb, ETH_HLEN, quotation->bytes, length) ||
        bpf_skb_load_bytes(skb, checksum_at(packet), &field, sizeof(field)))
        return false;
    bool is_open = is_checksum_open(skb, packet);
    if (!is_open && (bpf_skb_change_tail(skb, ETH_HLEN + length, 0) ||
                     bpf_skb_store_bytes(skb, ETH_HLEN, quotation->bytes, length, 0)))
        return false;
    *(__u32 *)&quotation->bytes[length] = 0;
    __u32 summed = is_open ? header : (length + 3) & ~3U;
    if (summed > MOST_QUOTED)
        return false;
    *sum = bpf_csum_diff(NULL, 0, (__be32 *)quotation->bytes, summed, is_open ? (__u16)~field : 0);
    return true;
}

static __always_inline bool put_ipv4_error(struct __sk_buff *skb, const struct packet *packet, __u32 kind, __u32 quoted, __u32 sum)
{
    struct ipv4_error error = {
        .ip =
            {
                .version_ihl = 0x45,
                .total_length = bpf_htons(sizeof(error) + quoted),
                .fragment = IPV4_DONT_FRAGMENT,
                .ttl = ERROR_HOP_LIMIT,
                .protocol = PROTOCOL_ICMP,
                .source = packet->destination.words[3],
                .destination = packet->source.words[3],
            },
        .icmp = {.type = kind == PORT_UNREACHABLE ? 3 : 11, .code = kind == PORT_UNREACHABLE ? 3 : 0},
    };
    error.ip.checksum = folded(bpf_csum_diff(NULL, 0, (__be32 *)&error.ip, sizeof(error.ip), 0));
    error.icmp.checksum = folded(bpf_csum_diff(NULL, 0, (__be32 *)&error.icmp, sizeof(error.icmp), sum));
    return !bpf_skb_store_bytes(skb, ETH_HLEN, &error, sizeof(error), 0);
}

static __always_inline bool put_ipv6_error(struct __sk_buff *skb, const struct packet *packet, __u32 kind, __u32 quoted, __u32 sum)
{
    struct ipv6_error error = {
        .ip =
            {
                .version_class_flow = bpf_htonl(0x60000000),
                .payload_length = bpf_htons(sizeof(error.icmp) + quoted),
                .next_header = PROTOCOL_ICMPV6,
                .hop_limit = ERROR_HOP_LIMIT,
                .source = packet->destination,
                .destination = packet->source,
            },
        .icmp = {.type = kind == PORT_UNREACHABLE ? 1 : 3, .code = kind == PORT_UNREACHABLE ? 4 : 0},
    };
    /* RFC 8200, 8.1: the addresses, the length and the protocol count too. */
    __u32 pseudo[2] = {bpf_htonl(sizeof(error.icmp) + quoted), bpf_htonl(PROTOCOL_ICMPV6)};
    sum = bpf_csum_diff(NULL, 0, (__be32 *)&error.ip.source, 2 * sizeof(struct weft_addr), sum);
    sum = bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(pseudo), sum);
    error.icmp.checksum = folded(bpf_csum_diff(NULL, 0, (__be32 *)&error.icmp, sizeof(error.icmp), sum));
    return !bpf_skb_store_bytes(skb, ETH_HLEN, &error, sizeof(error), 0);
}

static __always_inline bool turn_frame_round(struct __sk_buff *skb)
{
    __u8 addresses[12];
    if (bpf_skb_load_bytes(skb, 0, &addresses[6], 6) || bpf_skb_load_bytes(skb, 6, addresses, 6))
        return false;
    return !bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0);
}

/* The frame becomes one to its sender that quotes it. 0: it could not, or may not; the frame is then of no use any more. */
static __noinline int turn_into_error(struct __sk_buff *skb, const struct packet *packet, __u32 kind)
{
    __u32 sum = 0;
    if (!packet || !may_hear_errors(packet) || !may_send_error())
        return 0;
    __u32 length = packet->end - ETH_HLEN;
    if (length > MOST_QUOTED)
        length = MOST_QUOTED;
    if (bpf_skb_change_tail(skb, ETH_HLEN + length, 0) || !sum_quoted(skb, packet, length, &sum))
        return 0;
    __u32 room = packet->is_v6 ? sizeof(struct ipv6_error) : sizeof(struct ipv4_error);
    if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0))
        return 0;
    bool put = packet->is_v6 ? put_ipv6_error(skb, packet, kind, length, sum) : put_ipv4_error(skb, packet, kind, length, sum);
    return put && turn_frame_round(skb);
}

/* From what was asked to what is answered. */
static __always_inline void answer_segment(const struct tcp_header *asked, const struct packet *packet, struct tcp_header *reset)
{
    __u32 length = packet->end - packet->transport - (asked->length >> 4) * 4;
    bool knows = asked->flags & TCP_ACK;
    length += !!(asked->flags & TCP_SYN) + !!(asked->flags & TCP_FIN);
    reset->source = asked->destination;
    reset->destination = asked->source;
    reset->sequence = knows ? asked->acknowledged : 0;
    reset->acknowledged = knows ? 0 : bpf_htonl(bpf_ntohl(asked->sequence) + length);
    reset->length = sizeof(*reset) / 4 << 4;
    reset->flags = knows ? TCP_RST : TCP_RST | TCP_ACK;
}

/* Over addresses, length and protocol (RFC 9293, 3.1), and the header where nobody else adds that. */
static __always_inline __u16 checksum_reset(const struct packet *packet, const struct tcp_header *tcp, bool is_open)
{
    __u32 pseudo[2] = {bpf_htonl(sizeof(*tcp)), bpf_htonl(PROTOCOL_TCP)};
    __u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(pseudo), 0);
    if (packet->is_v6) {
        sum = bpf_csum_diff(NULL, 0, (__be32 *)&packet->source, BOTH_ADDRESSES, sum);
    } else {
        sum = bpf_csum_diff(NULL, 0, (__be32 *)&packet->source.words[3], sizeof(__u32), sum);
        sum = bpf_csum_diff(NULL, 0, (__be32 *)&packet->destination.words[3], sizeof(__u32), sum);
    }
    if (is_open)
        return ~folded(sum);
    return folded(bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), sum));
}

static __always_inline bool put_ipv4_reset(struct __sk_buff *skb, const struct packet *packet, const struct tcp_header *tcp)
{
    struct ipv4_reset reset = {
        .ip =
            {
                .version_ihl = 0x45,
                .total_length = bpf_htons(sizeof(reset)),
                .fragment = IPV4_DONT_FRAGMENT,
                .ttl = ERROR_HOP_LIMIT,
                .protocol = PROTOCOL_TCP,
                .source = packet->destination.words[3],
                .destination = packet->source.words[3],
            },
        .tcp = *tcp,
    };
    reset.ip.checksum = folded(bpf_csum_diff(NULL, 0, (__be32 *)&reset.ip, sizeof(reset.ip), 0));
    return !bpf_skb_store_bytes(skb, ETH_HLEN, &reset, sizeof(reset), 0);
}

static __always_inline bool put_ipv6_reset(struct __sk_buff *skb, const struct packet *packet, const struct tcp_header *tcp)
{
    struct ipv6_reset reset = {
        .ip =
            {
                .version_class_flow = bpf_htonl(0x60000000),
                .payload_length = bpf_htons(sizeof(reset.tcp)),
                .next_header = PROTOCOL_TCP,
                .hop_limit = ERROR_HOP_LIMIT,
                .source = packet->destination,
                .destination = packet->source,
            },
        .tcp = *tcp,
    };
    return !bpf_skb_store_bytes(skb, ETH_HLEN, &reset, sizeof(reset), BPF_F_RECOMPUTE_CSUM);
}

/* A SYN's sender holds its socket while it sends: it would not act on an ICMP error that is back before it lets go. */
static __noinline int turn_into_reset(struct __sk_buff *skb, const struct packet *packet)
{
    struct tcp_header asked, reset = {};
    if (!packet || packet->fragment != FRAGMENT_WHOLE || packet->tcp_flags & TCP_RST || !may_hear_errors(packet) ||
        bpf_skb_load_bytes(skb, packet->transport, &asked, sizeof(asked)))
        return 0;
    __u32 at = ETH_HLEN + (packet->is_v6 ? sizeof(struct ipv6_header) : sizeof(struct ipv4_header));
    bool is_open = is_checksum_open(skb, packet);
    /* What is still to be computed stays where it was. */
    if ((is_open && packet->transport != at) || bpf_skb_change_tail(skb, at + sizeof(reset), 0))
        return 0;
    answer_segment(&asked, packet, &reset);
    reset.checksum = checksum_reset(packet, &reset, is_open);
    bool put = packet->is_v6 ? put_ipv6_reset(skb, packet, &reset) : put_ipv4_reset(skb, packet, &reset);
    return put && turn_frame_round(skb);
}

/* The frame becomes the answer to its sender. 0: there is none, and the frame is of no use any more. */
__noinline int turn_into_refusal(struct __sk_buff *skb, const struct packet *packet, __u32 reason)
{
    if (!packet)
        return 0;
    if (reason == WEFT_REASON_HOP_LIMIT)
        return turn_into_error(skb, packet, TIME_EXCEEDED);
    if (packet->protocol == PROTOCOL_TCP)
        return turn_into_reset(skb, packet);
    return turn_into_error(skb, packet, PORT_UNREACHABLE);
}
