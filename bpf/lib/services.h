/* From a service's address to one of its backends, for sockets and packets alike. Sockets' own part lives in sockets.h. */
#pragma once
#include <bpf/bpf_endian.h>

#include "addresses.h"
#include "maps.h"

#define NANOSECONDS 1000000000ULL
#define SLOTS_PER_WORD 4

/* Who asks for whom, as on the wire; the client's port is 0 where nobody knows it yet. Ports in host order. */
struct asking {
    struct weft_addr client;
    struct weft_addr addr;
    __u16 client_port;
    __u16 port;
    __u8 protocol;
};

/* Which of a frontend's two lists. */
enum scope {
    SCOPE_CLUSTER,
    SCOPE_EDGE,
};

/* What an address is to services. */
enum standing {
    STANDING_OTHER,
    /* Of this node or another: node ports answer there. */
    STANDING_NODE,
    /* In the services' prefixes, whether or not anybody serves it. */
    STANDING_SERVICES,
};

static __always_inline enum standing standing_of(const struct weft_addr *addr)
{
    const struct weft_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, addr);
    if (endpoint)
        return endpoint->kind == WEFT_ENDPOINT_HOST ? STANDING_NODE : STANDING_OTHER;
    struct weft_prefix key = {.bits = 128, .addr = *addr};
    const struct weft_route *route = bpf_map_lookup_elem(&routes, &key);
    if (!route)
        return STANDING_OTHER;
    if (route->kind == WEFT_ROUTE_REMOTE && !(route->flags & WEFT_ROUTE_IS_POD))
        return STANDING_NODE;
    return route->kind == WEFT_ROUTE_SERVICES ? STANDING_SERVICES : STANDING_OTHER;
}

/* The frontend of exactly this address, protocol and port (network order). */
static __always_inline const struct weft_service *find_frontend(const struct weft_addr *addr, __u16 port, __u8 protocol)
{
    struct weft_service_key key = {.addr = *addr, .port = port, .protocol = protocol};
    return bpf_map_lookup_elem(&services, &key);
}

/* The node port, if `addr` is a node's: its frontend has the family's unspecified address. */
static __always_inline const struct weft_service *find_node_port(const struct weft_addr *addr, __u16 port, __u8 protocol)
{
    struct weft_service_key key = {.port = port, .protocol = protocol};
    if (is_v4(addr))
        set_v4(&key.addr, 0);
    return bpf_map_lookup_elem(&services, &key);
}

static __always_inline bool is_member(__u32 list, const struct weft_backend *backend)
{
    struct weft_member_key key = {.list = list, .addr = backend->addr, .port = backend->port};
    return bpf_map_lookup_elem(&members, &key);
}

static __always_inline __u32 rotate(__u32 word, __u32 bits)
{
    return word << bits | word >> (32 - bits);
}

/* weft_plan::maglev::Connection::hash: MurmurHash3 (x86, 32 bit) over ten words. */
static __always_inline __u32 mix(__u32 hash, __u32 word)
{
    hash ^= rotate(word * 0xcc9e2d51, 15) * 0x1b873593;
    return rotate(hash, 13) * 5 + 0xe6546b64;
}

static __always_inline __u32 hash_of(const struct asking *asking)
{
    __u32 hash = 0;
#pragma unroll
    for (int word = 0; word < 4; word++)
        hash = mix(hash, bpf_ntohl(asking->client.words[word]));
#pragma unroll
    for (int word = 0; word < 4; word++)
        hash = mix(hash, bpf_ntohl(asking->addr.words[word]));
    hash = mix(hash, (__u32)asking->client_port << 16 | asking->port);
    hash = mix(hash, asking->protocol) ^ 40;
    hash = (hash ^ hash >> 16) * 0x85ebca6b;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35;
    return hash ^ hash >> 16;
}

/* A table of another size than `size` is one that is being replaced: the first slot then serves, and always exists. */
static __always_inline __u32 hashed_slot(__u32 list, __u32 size, __u32 hash)
{
    void *table = bpf_map_lookup_elem(&maglev, &list);
    if (!table || !size)
        return 0;
    __u32 slot = hash % size, word = slot / SLOTS_PER_WORD;
    const __u64 *slots = bpf_map_lookup_elem(table, &word);
    return slots ? (*slots >> slot % SLOTS_PER_WORD * 16) & 0xffff : 0;
}

static __always_inline bool backend_at(__u32 list, __u32 slot, struct weft_backend *backend)
{
    struct weft_backend_key key = {.list = list, .slot = slot};
    const struct weft_backend *found = bpf_map_lookup_elem(&backends, &key);
    if (!found) {
        /* The list shrank between two look-ups; the first slot goes last. */
        key.slot = 0;
        found = bpf_map_lookup_elem(&backends, &key);
    }
    if (!found)
        return false;
    *backend = *found;
    return true;
}

/* The backend of the client's last connection, if that is recent and the backend still a member. */
static __always_inline bool recall(const struct weft_affinity_key *key, __u32 seconds, __u32 list, struct weft_backend *backend)
{
    struct weft_affinity *known = bpf_map_lookup_elem(&affinities, key);
    if (!known)
        return false;
    /* Read before the clock, and once: another processor may write a later time meanwhile. */
    __u64 last_used = *(volatile __u64 *)&known->last_used, now = bpf_ktime_get_ns();
    if (now - last_used >= seconds * NANOSECONDS)
        return false;
    *backend = known->backend;
    if (!is_member(list, backend))
        return false;
    known->last_used = now;
    return true;
}

static __always_inline bool choose(const struct weft_service *service, const struct asking *asking, enum scope scope,
                                   struct weft_backend *backend)
{
    if (scope == SCOPE_EDGE)
        return service->edge_hashed_slots &&
               backend_at(service->edge_list, hashed_slot(service->edge_list, service->edge_hashed_slots, hash_of(asking)), backend);
    __u32 slots = service->slots;
    if (!slots)
        return false;
    __u32 slot = service->flags & WEFT_SERVICE_HASHED ? hashed_slot(service->list, service->hashed_slots, hash_of(asking))
                                                      : bpf_get_prandom_u32() % slots;
    return backend_at(service->list, slot, backend);
}

/* One backend for whom `asking` describes; false: there is none. `service` is the frontend's entry in `services`. */
static __noinline bool pick_backend(const struct weft_service *service, const struct asking *asking, enum scope scope,
                                    struct weft_backend *backend)
{
    if (!service || !asking || !backend)
        return false;
    __u32 seconds = service->affinity;
    if (!seconds)
        return choose(service, asking, scope, backend);
    struct weft_affinity_key key = {.client = asking->client, .service = service->id};
    if (recall(&key, seconds, scope == SCOPE_EDGE ? service->edge_list : service->list, backend))
        return true;
    if (!choose(service, asking, scope, backend))
        return false;
    struct weft_affinity chosen = {.last_used = bpf_ktime_get_ns(), .backend = *backend};
    bpf_map_update_elem(&affinities, &key, &chosen, BPF_ANY);
    return true;
}
