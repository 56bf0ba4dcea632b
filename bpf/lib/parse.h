/* From bytes to `struct packet`: addresses, ports, protocol. Broken and fragmented packets end or are completed here. */
#pragma once
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <stddef.h>

#include "addresses.h"
#include "maps.h"

#define EXTENSION_HEADERS 8
#define DIRECT_REACH 128
#define TCP_SYN 0x02
#define TCP_FIN 0x01
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_AUTHENTICATION 51
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_SCTP 132

enum fragment_place {
    FRAGMENT_WHOLE,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
};

struct packet {
    struct weft_addr source;
    struct weft_addr destination;
    /* Host order. */
    __u16 source_port;
    __u16 destination_port;
    /* Where the transport header starts and the IP packet ends, from the start of the frame. */
    __u32 transport;
    __u32 end;
    __u32 fragment_id;
    __u8 protocol;
    __u8 fragment_protocol;
    __u8 fragment;
    __u8 tcp_flags;
    __u8 hop_limit;
    __u8 is_icmp_error;
    __u8 is_v6;
    /* What its flow is to be marked with. */
    __u8 flow_flags;
};

struct ipv4_header {
    __u8 version_ihl;
    __u8 tos;
    __u16 total_length;
    __u16 id;
    __u16 fragment;
    __u8 ttl;
    __u8 protocol;
    __u16 checksum;
    __u32 source;
    __u32 destination;
};

struct ipv6_header {
    __u32 version_class_flow;
    __u16 payload_length;
    __u8 next_header;
    __u8 hop_limit;
    struct weft_addr source;
    struct weft_addr destination;
};

/* The compiler would otherwise do arithmetic on these fields that the verifier forbids on packet pointers. */
static __always_inline void *frame_start(struct __sk_buff *skb)
{
    void *start;
    asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(start) : "r"(skb), "i"(offsetof(struct __sk_buff, data)));
    return start;
}

static __always_inline void *frame_end(struct __sk_buff *skb)
{
    void *end;
    asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(skb), "i"(offsetof(struct __sk_buff, data_end)));
    return end;
}

/* `size` bytes, a multiple of four, at `offset`. Headers are mostly in the linear part, where no helper is needed. */
static __always_inline bool read_frame(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
    if (offset <= DIRECT_REACH) {
        void *at = frame_start(skb) + offset;
        if (at + size <= frame_end(skb)) {
            for (__u32 word = 0; word < size / 4; word++)
                ((__u32 *)to)[word] = ((const __u32 *)at)[word];
            return true;
        }
    }
    return !bpf_skb_load_bytes(skb, offset, to, size);
}

static __always_inline __u8 parse_ipv4(struct __sk_buff *skb, struct packet *packet, __u32 at, __u32 limit)
{
    struct ipv4_header ip;
    if (!read_frame(skb, at, &ip, sizeof(ip)))
        return WEFT_REASON_MALFORMED;
    __u32 header = (ip.version_ihl & 0xf) * 4, total = bpf_ntohs(ip.total_length);
    if (ip.version_ihl >> 4 != 4 || header < sizeof(ip) || total < header)
        return WEFT_REASON_MALFORMED;
    set_v4(&packet->source, ip.source);
    set_v4(&packet->destination, ip.destination);
    packet->protocol = packet->fragment_protocol = ip.protocol;
    packet->hop_limit = ip.ttl;
    packet->is_v6 = 0;
    packet->transport = at + header;
    packet->end = at + total;
    packet->fragment_id = ip.id;
    __u16 fragment = bpf_ntohs(ip.fragment);
    packet->fragment = fragment & 0x1fff ? FRAGMENT_LATER : fragment & 0x2000 ? FRAGMENT_FIRST : FRAGMENT_WHOLE;
    return packet->end > limit ? WEFT_REASON_MALFORMED : WEFT_REASON_NONE;
}

static __always_inline __u8 parse_ipv6(struct __sk_buff *skb, struct packet *packet, __u32 at, __u32 limit)
{
    struct ipv6_header ip;
    if (!read_frame(skb, at, &ip, sizeof(ip)))
        return WEFT_REASON_MALFORMED;
    if (bpf_ntohl(ip.version_class_flow) >> 28 != 6)
        return WEFT_REASON_MALFORMED;
    packet->source = ip.source;
    packet->destination = ip.destination;
    packet->protocol = ip.next_header;
    packet->hop_limit = ip.hop_limit;
    packet->is_v6 = 1;
    packet->transport = at + sizeof(ip);
    packet->end = at + sizeof(ip) + bpf_ntohs(ip.payload_length);
    packet->fragment = FRAGMENT_WHOLE;
    /* RFC 4291 has no such packets on a wire, and they would pass for IPv4 in our keys. */
    if (is_v4(&ip.source) || is_v4(&ip.destination))
        return WEFT_REASON_MALFORMED;
    return packet->end > limit ? WEFT_REASON_MALFORMED : WEFT_REASON_NONE;
}

/* The headers between IPv6's own and the transport's (RFC 8200, 4). A function of its own, not static, so that the
 * verifier walks its loop once and not again at every place that calls it; so are the next two. */
__noinline __u8 skip_extensions(struct __sk_buff *skb, struct packet *packet)
{
    if (!packet)
        return WEFT_REASON_MALFORMED;
    for (int count = 0; count <= EXTENSION_HEADERS; count++) {
        __u8 protocol = packet->protocol;
        if (protocol != 0 && protocol != 43 && protocol != 60 && protocol != PROTOCOL_FRAGMENT &&
            protocol != PROTOCOL_AUTHENTICATION)
            return WEFT_REASON_NONE;
        __u8 header[8];
        if (count == EXTENSION_HEADERS || packet->transport + sizeof(header) > packet->end ||
            bpf_skb_load_bytes(skb, packet->transport, header, sizeof(header)))
            return WEFT_REASON_MALFORMED;
        packet->protocol = header[0];
        if (protocol == PROTOCOL_FRAGMENT) {
            __u16 place = header[2] << 8 | header[3];
            packet->fragment = place & 0xfff8 ? FRAGMENT_LATER : place & 1 ? FRAGMENT_FIRST : FRAGMENT_WHOLE;
            packet->fragment_protocol = header[0];
            __builtin_memcpy(&packet->fragment_id, &header[4], sizeof(packet->fragment_id));
            packet->transport += 8;
            if (packet->fragment == FRAGMENT_LATER)
                return WEFT_REASON_NONE;
        } else {
            packet->transport += protocol == PROTOCOL_AUTHENTICATION ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
        }
        if (packet->transport > packet->end)
            return WEFT_REASON_MALFORMED;
    }
    return WEFT_REASON_MALFORMED;
}

/* The IP header alone: enough to know where a packet goes. */
static __always_inline __u8 parse_network(struct __sk_buff *skb, struct packet *packet)
{
    if (skb->vlan_present)
        return WEFT_REASON_NOT_IP;
    if (skb->protocol == bpf_htons(ETH_P_IP))
        return parse_ipv4(skb, packet, ETH_HLEN, skb->len);
    if (skb->protocol == bpf_htons(ETH_P_IPV6))
        return parse_ipv6(skb, packet, ETH_HLEN, skb->len);
    return WEFT_REASON_NOT_IP;
}

/* Echo has an identifier, and errors quote another packet; everything else of ICMP has no ports. */
static __always_inline void parse_icmp(struct packet *packet, const __u8 *header)
{
    __u8 type = header[0];
    bool echo = packet->is_v6 ? type == 128 || type == 129 : type == 8 || type == 0;
    if (echo)
        packet->source_port = packet->destination_port = header[4] << 8 | header[5];
    packet->is_icmp_error = packet->is_v6 ? type >= 1 && type <= 4 : type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

__noinline __u8 parse_ports(struct __sk_buff *skb, struct packet *packet, __u32 quoted)
{
    if (!packet)
        return WEFT_REASON_MALFORMED;
    __u8 protocol = packet->protocol;
    bool icmp = protocol == (packet->is_v6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP);
    if (protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP && protocol != PROTOCOL_SCTP && !icmp)
        return WEFT_REASON_NONE;
    __u8 header[8] __attribute__((aligned(4)));
    if (packet->transport + sizeof(header) > packet->end || !read_frame(skb, packet->transport, header, sizeof(header)))
        return WEFT_REASON_MALFORMED;
    if (icmp) {
        parse_icmp(packet, header);
        return WEFT_REASON_NONE;
    }
    packet->source_port = header[0] << 8 | header[1];
    packet->destination_port = header[2] << 8 | header[3];
    if (quoted || protocol == PROTOCOL_UDP)
        return WEFT_REASON_NONE;
    if (protocol == PROTOCOL_SCTP)
        return packet->transport + 12 > packet->end ? WEFT_REASON_MALFORMED : WEFT_REASON_NONE;
    __u8 rest[4] __attribute__((aligned(4)));
    if (packet->transport + 20 > packet->end || !read_frame(skb, packet->transport + 12, rest, sizeof(rest)))
        return WEFT_REASON_MALFORMED;
    __u32 length = (rest[0] >> 4) * 4;
    packet->tcp_flags = rest[1];
    return length < 20 || packet->transport + length > packet->end ? WEFT_REASON_MALFORMED : WEFT_REASON_NONE;
}

/* First fragments are remembered, later ones take their ports from that. */
static __noinline __u8 complete_fragment(struct packet *packet)
{
    if (!packet)
        return WEFT_REASON_MALFORMED;
    if (packet->fragment == FRAGMENT_WHOLE)
        return WEFT_REASON_NONE;
    struct weft_fragment_key key = {
        .source = packet->source,
        .destination = packet->destination,
        .id = packet->fragment_id,
        .protocol = packet->fragment_protocol,
    };
    if (packet->fragment == FRAGMENT_FIRST) {
        struct weft_fragment first = {
            .source_port = packet->source_port,
            .destination_port = packet->destination_port,
            .protocol = packet->protocol,
        };
        return bpf_map_update_elem(&fragments, &key, &first, BPF_ANY) ? WEFT_REASON_TABLE_FULL : WEFT_REASON_NONE;
    }
    const struct weft_fragment *first = bpf_map_lookup_elem(&fragments, &key);
    if (!first)
        return WEFT_REASON_FRAGMENT_UNKNOWN;
    packet->source_port = first->source_port;
    packet->destination_port = first->destination_port;
    packet->protocol = first->protocol;
    return WEFT_REASON_NONE;
}

/* What follows the IP header; `packet` has been through parse_network. Fragments are still to be completed. */
static __always_inline __u8 parse_transport(struct __sk_buff *skb, struct packet *packet)
{
    __u8 broken = packet->is_v6 ? skip_extensions(skb, packet) : WEFT_REASON_NONE;
    if (broken || packet->fragment == FRAGMENT_LATER)
        return broken;
    return parse_ports(skb, packet, 0);
}

/* The packet an ICMP error quotes (RFC 792, RFC 4443), which may be cut short. False: it tells nothing of use. */
static __always_inline bool parse_quoted(struct __sk_buff *skb, const struct packet *error, struct packet *quoted)
{
    __u32 at = error->transport + 8;
    if (at + (error->is_v6 ? sizeof(struct ipv6_header) : sizeof(struct ipv4_header)) > error->end)
        return false;
    __u8 broken = error->is_v6 ? parse_ipv6(skb, quoted, at, ~0U) : parse_ipv4(skb, quoted, at, ~0U);
    if (broken)
        return false;
    quoted->end = error->end;
    if (error->is_v6 && skip_extensions(skb, quoted))
        return false;
    if (quoted->fragment == FRAGMENT_LATER || parse_ports(skb, quoted, 1))
        return false;
    return same_addr(&quoted->source, &error->destination);
}
