/* Answering for load balancer addresses on the uplink: ARP requests (RFC 826) and neighbour solicitations (RFC 4861).
 * Which addresses this node answers for is in map `announced`; how it comes to them is docs/design/announcing.md's. */
#pragma once
#include "forward.h"

/* Not one of the actions that a program may return. */
#define NOT_ANNOUNCED (-4)

#define ARP_REQUEST 1
#define ARP_REPLY 2
#define SOLICITATION 135
#define ADVERTISEMENT 136
#define ADVERTISEMENT_SOLICITED 0x40
#define ADVERTISEMENT_OVERRIDE 0x20
#define OPTION_TARGET_LINK_ADDRESS 2

struct arp_frame {
    __u8 to[6];
    __u8 from[6];
    __u16 type;
    __u16 hardware;
    __u16 protocol;
    __u8 hardware_size;
    __u8 protocol_size;
    __u16 operation;
    __u8 sender_mac[6];
    __u8 sender[4];
    __u8 target_mac[6];
    __u8 target[4];
} __attribute__((packed));

/* With the option of its target's link address, whether or not the solicitation had room for it. */
struct advertisement {
    __u8 to[6];
    __u8 from[6];
    __u16 type;
    struct ipv6_header ip;
    __u8 kind;
    __u8 code;
    __u16 checksum;
    __u8 flags;
    __u8 reserved[3];
    struct weft_addr target;
    __u8 option;
    __u8 option_size;
    __u8 link[6];
} __attribute__((packed));

static __always_inline bool is_announced(const struct weft_addr *addr)
{
    return bpf_map_lookup_elem(&announced, addr);
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
    for (int byte = 0; byte < 6; byte++)
        to[byte] = from[byte];
}

/* Whoever has the address as his own is left to the stack, where the agent listens for conflicts. */
static __noinline int answer_arp(struct __sk_buff *skb)
{
    struct arp_frame arp;
    struct weft_addr target;
    if (bpf_skb_load_bytes(skb, 0, &arp, sizeof(arp)))
        return NOT_ANNOUNCED;
    if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_size != 6 || arp.protocol_size != 4 ||
        arp.operation != bpf_htons(ARP_REQUEST) || !__builtin_memcmp(arp.sender, arp.target, sizeof(arp.target)))
        return NOT_ANNOUNCED;
    __u32 v4;
    __builtin_memcpy(&v4, arp.target, sizeof(v4));
    set_v4(&target, v4);
    if (!is_announced(&target))
        return NOT_ANNOUNCED;
    __u8 asked[4];
    __builtin_memcpy(asked, arp.target, sizeof(asked));
    copy_mac(arp.to, arp.from);
    copy_mac(arp.target_mac, arp.sender_mac);
    __builtin_memcpy(arp.target, arp.sender, sizeof(arp.target));
    for (int byte = 0; byte < 6; byte++)
        arp.from[byte] = arp.sender_mac[byte] = weft_config.uplink_mac[byte];
    __builtin_memcpy(arp.sender, asked, sizeof(asked));
    arp.operation = bpf_htons(ARP_REPLY);
    if (bpf_skb_store_bytes(skb, 0, &arp, sizeof(arp), 0))
        return NOT_ANNOUNCED;
    return bpf_redirect(skb->ifindex, 0);
}

/* RFC 4861, 7.2.4: to who asked; who probes before it takes the address (RFC 4862) has none yet, and all nodes are told. */
static __always_inline void address_advertisement(struct advertisement *answer, const struct weft_addr *target)
{
    struct weft_addr asker = answer->ip.source;
    bool probe = !(asker.words[0] | asker.words[1] | asker.words[2] | asker.words[3]);
    if (probe) {
        asker.words[0] = bpf_htonl(0xff020000);
        asker.words[3] = bpf_htonl(1);
        answer->to[0] = answer->to[1] = 0x33;
        answer->to[2] = answer->to[3] = answer->to[4] = 0;
        answer->to[5] = 1;
    } else {
        copy_mac(answer->to, answer->from);
    }
    answer->flags = ADVERTISEMENT_OVERRIDE | (probe ? 0 : ADVERTISEMENT_SOLICITED);
    answer->ip.source = *target;
    answer->ip.destination = asker;
}

/* RFC 4443, 2.3, over the sixty-four bytes from the addresses on, the length and the protocol. */
static __always_inline __u16 advertisement_checksum(struct advertisement *answer)
{
    __u32 words[16];
    __builtin_memcpy(words, &answer->ip.source, sizeof(words));
    __s64 sum = bpf_csum_diff(NULL, 0, words, sizeof(words), bpf_htonl(32 + 58));
    if (sum < 0)
        return 0;
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static __noinline int answer_solicitation(struct __sk_buff *skb)
{
    struct advertisement answer = {};
    __u8 next_header;
    const __u32 solicitation = offsetof(struct advertisement, option);
    if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6_header, next_header), &next_header, 1) ||
        next_header != PROTOCOL_ICMPV6 || bpf_skb_load_bytes(skb, 0, &answer, solicitation))
        return NOT_ANNOUNCED;
    /* RFC 4861, 7.1.1 */
    if (answer.kind != SOLICITATION || answer.code || answer.ip.hop_limit != 255 ||
        bpf_ntohs(answer.ip.payload_length) < 24)
        return NOT_ANNOUNCED;
    struct weft_addr target = answer.target;
    if (!is_announced(&target))
        return NOT_ANNOUNCED;
    if (bpf_skb_change_tail(skb, sizeof(answer), 0))
        return NOT_ANNOUNCED;
    address_advertisement(&answer, &target);
    for (int byte = 0; byte < 6; byte++)
        answer.from[byte] = answer.link[byte] = weft_config.uplink_mac[byte];
    answer.ip.version_class_flow = bpf_htonl(6U << 28);
    answer.ip.payload_length = bpf_htons(32);
    answer.kind = ADVERTISEMENT;
    answer.checksum = 0;
    __builtin_memset(answer.reserved, 0, sizeof(answer.reserved));
    answer.option = OPTION_TARGET_LINK_ADDRESS;
    answer.option_size = 1;
    answer.checksum = advertisement_checksum(&answer);
    if (bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), BPF_F_INVALIDATE_HASH))
        return DROP;
    return bpf_redirect(skb->ifindex, 0);
}

/* What is asked on the uplink about addresses that this node announces; anything else is NOT_ANNOUNCED. */
static __always_inline int answer_neighbours(struct __sk_buff *skb)
{
    if (skb->ifindex != weft_config.uplink_ifindex || skb->vlan_present)
        return NOT_ANNOUNCED;
    if (skb->protocol == bpf_htons(ETH_P_ARP))
        return answer_arp(skb);
    return skb->protocol == bpf_htons(ETH_P_IPV6) ? answer_solicitation(skb) : NOT_ANNOUNCED;
}
