/* Comparing and classifying addresses. Nothing here reads a map. */
#pragma once
#include <bpf/bpf_endian.h>
#include <stdbool.h>

#include "../abi/endpoints.h"

#define V4_MAPPED_WORD bpf_htonl(0x0000ffff)

static __always_inline void set_v4(struct weft_addr *addr, __u32 v4)
{
    addr->words[0] = 0;
    addr->words[1] = 0;
    addr->words[2] = V4_MAPPED_WORD;
    addr->words[3] = v4;
}

static __always_inline bool is_v4(const struct weft_addr *addr)
{
    return !addr->words[0] && !addr->words[1] && addr->words[2] == V4_MAPPED_WORD;
}

static __always_inline bool same_addr(const struct weft_addr *one, const struct weft_addr *other)
{
    return one->words[0] == other->words[0] && one->words[1] == other->words[1] && one->words[2] == other->words[2] &&
           one->words[3] == other->words[3];
}

/* Negative, zero or positive, as memcmp over the bytes on the wire. */
static __always_inline int compare_addr(const struct weft_addr *one, const struct weft_addr *other)
{
#pragma unroll
    for (int word = 0; word < 4; word++) {
        __u32 left = bpf_ntohl(one->words[word]), right = bpf_ntohl(other->words[word]);
        if (left != right)
            return left < right ? -1 : 1;
    }
    return 0;
}

/* Destinations that stay on a link: 169.254.0.0/16, multicast and broadcast; fe80::/10 and ff00::/8. */
static __always_inline bool is_link_local(const struct weft_addr *addr)
{
    if (is_v4(addr)) {
        __u32 v4 = bpf_ntohl(addr->words[3]);
        return v4 >> 16 == 0xa9fe || v4 >> 28 == 0xe || v4 == 0xffffffff;
    }
    __u32 first = bpf_ntohl(addr->words[0]);
    return first >> 22 == 0x3fa || first >> 24 == 0xff;
}
