/* What an address is to this node: one of its pods, itself, or somewhere else. Policy on it lives in policy.h. */
#pragma once
#include "parse.h"

static __always_inline void copy_target(__u32 *to, const __u32 *from)
{
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
}

static __always_inline void resolve_route(const struct weft_addr *addr, struct weft_end *end)
{
    struct weft_prefix key = {.bits = 128, .addr = *addr};
    const struct weft_route *route = bpf_map_lookup_elem(&routes, &key);
    __u8 kind = route ? route->kind : WEFT_ROUTE_NONE;
    if (route && kind == WEFT_ROUTE_REMOTE) {
        end->kind = route->flags & WEFT_ROUTE_IS_POD ? WEFT_END_REMOTE_POD : WEFT_END_REMOTE;
        copy_target(end->target, route->via.words);
        end->target[3] = route->via.words[3];
        return;
    }
    end->kind = kind == WEFT_ROUTE_OWN_PODS       ? WEFT_END_OWN_PODS
                : kind == WEFT_ROUTE_SERVICES     ? WEFT_END_SERVICES
                : kind == WEFT_ROUTE_CLUSTER_PODS ? WEFT_END_CLUSTER_PODS
                                                  : WEFT_END_OUTSIDE;
    if (route && kind == WEFT_ROUTE_OUTSIDE)
        end->target[0] = route->flags;
}

static __always_inline void describe_endpoint(const struct weft_endpoint *endpoint, struct weft_end *end)
{
    end->kind = endpoint->kind == WEFT_ENDPOINT_POD ? WEFT_END_POD : WEFT_END_HOST;
    end->ifindex = endpoint->ifindex;
    copy_target(end->target, (const __u32 *)endpoint->pod_mac);
    end->target[3] = 0;
}

/* Returns the endpoint if the address ends on this node. */
static __always_inline const struct weft_endpoint *resolve(const struct weft_addr *addr, struct weft_end *end)
{
    const struct weft_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, addr);
    if (endpoint) {
        describe_endpoint(endpoint, end);
        return endpoint;
    }
    __builtin_memset(end, 0, sizeof(*end));
    resolve_route(addr, end);
    return NULL;
}

/* What a packet's addresses are to this node, asked once; what its destination is besides is in the verdict. */
struct ends {
    struct weft_end *source;
    const struct weft_endpoint *sender;
    const struct weft_endpoint *receiver;
};

/* False: never. */
static __always_inline bool resolve_source(const struct packet *packet, struct ends *ends)
{
    __u32 zero = 0;
    ends->source = bpf_map_lookup_elem(&source_draft, &zero);
    if (!ends->source)
        return false;
    ends->sender = resolve(&packet->source, ends->source);
    return true;
}

/* Whether it is the pod behind this device. */
static __always_inline bool is_at(const struct weft_end *end, __u32 ifindex)
{
    return end->kind == WEFT_END_POD && end->ifindex == ifindex;
}

/* Addresses of the cluster that lead nowhere are not: a packet to them is allowed, and then refused. */
static __always_inline bool is_reachable(const struct weft_end *end)
{
    return end->kind < WEFT_END_OWN_PODS || end->kind == WEFT_END_OUTSIDE;
}
