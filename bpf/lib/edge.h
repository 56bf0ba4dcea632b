/* Packets to service frontends: which connection, which backend, and what the packet becomes. The hooks decide where it goes
 * then. Rewriting lives in nat.h, choosing in services.h, the order of the steps is docs/design/services.md's. */
#pragma once
#include "nat.h"
#include "services.h"
#include "refusal.h"

/* Set in what the general ways return for a packet of a flow that is translated: the rest is the verdict's reason. */
#define ANSWERS 0x100

/* Set in what they return for a packet to outside the cluster. */
#define LEAVES 0x200

/* Destinations outside that know pods' own addresses are sent to as they are. */
static __always_inline bool is_masqueraded(const struct weft_end *to)
{
    return to->kind == WEFT_END_OUTSIDE && !(to->target[0] & WEFT_ROUTE_AS_IS);
}

/* Packets from outside to a port that no service has there would go round: the address leads back to this node. */
static __always_inline bool is_service_address(const struct weft_end *to)
{
    return to->kind == WEFT_END_SERVICES || (to->kind == WEFT_END_OUTSIDE && to->target[0] & WEFT_ROUTE_IS_FRONTEND);
}

/* How often a free port is looked for. */
#define PORT_TRIES 24
/* How long a connection has to be silent before its port is taken for another, where none is free. */
#define SPARE_AFTER (30 * SECOND)

/* What `find_connection` found; numbers from WEFT_REASON_FIRST_DENIAL on are reasons. */
enum connection {
    CONNECTION_NONE = 0,
    /* From the client: the draft's `to` says what it becomes. */
    CONNECTION_REQUEST = 1,
    /* From the backend. */
    CONNECTION_REPLY = 2,
    /* From the client, and sent on as it is to the node of the draft's `to.destination`. */
    CONNECTION_SENT_ON = 3,
};

static __always_inline struct weft_translation *translation(void)
{
    __u32 zero = 0;
    return bpf_map_lookup_elem(&translation_draft, &zero);
}

/* Zero words: the node has no address of the family. */
static __always_inline const struct weft_addr *own_address(bool is_v6)
{
    __u32 slot = is_v6;
    const struct weft_addr *addr = bpf_map_lookup_elem(&node_addresses, &slot);
    return addr && (addr->words[3] || addr->words[0]) ? addr : NULL;
}

static __always_inline bool is_node(__u32 kind)
{
    return kind == WEFT_END_HOST || kind == WEFT_END_REMOTE;
}

/* `kind` is what the packet's destination is to this node. */
static __always_inline const struct weft_service *find_service_of(const struct packet *packet, __u32 kind, enum scope scope)
{
    __u16 port = bpf_htons(packet->destination_port);
    const struct weft_service *service = find_frontend(&packet->destination, port, packet->protocol);
    if (!service && is_node(kind))
        service = find_node_port(&packet->destination, port, packet->protocol);
    if (!service || (scope == SCOPE_EDGE && !(service->flags & WEFT_SERVICE_EDGE)))
        return NULL;
    if (kind != WEFT_END_HOST)
        return service;
    /* The name server's address is the node's own, whatever a service says. */
    struct weft_end end = {};
    resolve_route(&packet->destination, &end);
    return end.kind == WEFT_END_SERVICES ? NULL : service;
}

static __always_inline bool may_come(const struct weft_service *service, const struct weft_addr *client)
{
    if (!(service->flags & WEFT_SERVICE_SOURCE_RANGES))
        return true;
    struct weft_source_key key = {.bits = WEFT_SOURCE_BITS_SERVICE + 128, .service = service->id, .addr = *client};
    return bpf_map_lookup_elem(&source_ranges, &key);
}

/* A backend gone, or a frontend: both directions are forgotten. */
static __always_inline void forget(const struct weft_nat_key *key, const struct weft_nat *entry, struct weft_nat_key *other)
{
    other_key(entry, key->protocol, other);
    if (!(entry->flags & WEFT_NAT_DSR))
        bpf_map_delete_elem(&nat, other);
    bpf_map_delete_elem(&nat, key);
}

static __always_inline bool is_same_connection(const struct weft_nat *reply, const struct weft_nat_key *key)
{
    return reply->destination_port == key->source_port && reply->source_port == key->destination_port &&
           same_addr(&reply->destination, &key->source) && same_addr(&reply->source, &key->destination);
}

/* What the draft's connection becomes on its way back, or the other way round. */
static __always_inline void put_other(struct weft_translation *draft)
{
    draft->back = draft->to;
    draft->back.source = draft->key.destination;
    draft->back.source_port = draft->key.destination_port;
    draft->back.destination = draft->key.source;
    draft->back.destination_port = draft->key.source_port;
    draft->back.flags ^= WEFT_NAT_REPLY;
    draft->back.tcp = 0;
}

/* The table may have lost one direction of a connection. The one that is left says all of it. */
static __noinline void mend_connection(struct weft_translation *draft)
{
    if (!draft || draft->to.flags & WEFT_NAT_DSR)
        return;
    other_key(&draft->to, draft->key.protocol, &draft->other);
    if (bpf_map_lookup_elem(&nat, &draft->other))
        return;
    put_other(draft);
    bpf_map_update_elem(&nat, &draft->other, &draft->back, BPF_NOEXIST);
}

/* Whether the connection whose replies `back` is for may be given up for another: no data can follow on it, or it is silent, and was
 * never established or is closing. `there` is its other entry, if it is left. */
static __always_inline bool is_spare(const struct weft_nat *back, const struct weft_nat *there)
{
    __u8 both = WEFT_FLOW_FIN_OPENER | WEFT_FLOW_FIN_RESPONDER, tcp = back->tcp | (there ? there->tcp : WEFT_FLOW_FIN_OPENER);
    if (tcp & WEFT_FLOW_RESET || (tcp & both) == both)
        return true;
    __u64 last_seen = there && there->last_seen > back->last_seen ? there->last_seen : back->last_seen, now = bpf_ktime_get_coarse_ns();
    /* The other entry may only have been evicted. */
    bool is_open = back->tcp & WEFT_FLOW_ESTABLISHED && !(back->tcp & both) && !(there && there->tcp & both);
    return !is_open && now > last_seen && now - last_seen > SPARE_AFTER;
}

/* Whether the draft's connection now owns its reply's key. */
static __always_inline bool claim(struct weft_translation *draft, bool from_ended)
{
    /* An echo's identifier is the same both ways. */
    if (is_icmp(draft->key.protocol))
        draft->to.destination_port = draft->to.source_port;
    other_key(&draft->to, draft->key.protocol, &draft->other);
    if (!bpf_map_update_elem(&nat, &draft->other, &draft->back, BPF_NOEXIST))
        return true;
    const struct weft_nat *taken = bpf_map_lookup_elem(&nat, &draft->other);
    /* Its own, from before the table lost the other direction. */
    if (taken && !is_same_connection(taken, &draft->key)) {
        other_key(taken, draft->key.protocol, &draft->earlier);
        if (!from_ended || !is_spare(taken, bpf_map_lookup_elem(&nat, &draft->earlier)))
            return false;
        bpf_map_delete_elem(&nat, &draft->earlier);
    }
    return !bpf_map_update_elem(&nat, &draft->other, &draft->back, BPF_ANY);
}

/* Two connections to one backend may not look alike there: one of them gets another port. */
static __noinline bool claim_port(struct weft_translation *draft, __u32 hash)
{
    if (!draft)
        return false;
    if (draft->to.source_port && claim(draft, false))
        return true;
    __u32 first = weft_config.nat_ports[0], count = weft_config.nat_ports[1] - first + 1;
    /* Where all are taken, those of connections that are over or silent are taken over. */
    for (int try = 0; try < 2 * PORT_TRIES; try++) {
        /* Tries lie apart, so that neighbours do not run into each other. */
        draft->to.source_port = first + (hash + try * 127) % count;
        if (claim(draft, try >= PORT_TRIES))
            return true;
    }
    return false;
}

static __always_inline void report_connection(struct __sk_buff *skb, const struct weft_translation *draft, __u8 hook)
{
    struct weft_event *event = reserve_event(WEFT_EVENT_TRANSLATED, hook, WEFT_REASON_NONE);
    if (!event)
        return;
    event->source = draft->key.source;
    event->destination = draft->key.destination;
    event->source_port = draft->key.source_port;
    event->destination_port = draft->key.destination_port;
    event->protocol = draft->key.protocol;
    event->service = draft->to.service;
    event->backend = draft->to.destination;
    event->backend_port = draft->to.destination_port;
    event->ifindex = skb->ifindex;
    event->length = skb->len;
    submit_event(event);
}

/* How the chosen backend is reached: with the client's address where replies pass here anyway. */
static __always_inline __u8 address_backend(struct weft_translation *draft, const struct weft_service *service, bool is_v6,
                                            enum scope scope)
{
    struct weft_end end;
    resolve(&draft->to.destination, &end);
    bool here = end.kind == WEFT_END_POD || end.kind == WEFT_END_HOST, elsewhere = end.kind == WEFT_END_REMOTE || end.kind == WEFT_END_REMOTE_POD;
    if (scope == SCOPE_EDGE && elsewhere && service->flags & WEFT_SERVICE_EDGE_DSR) {
        draft->to.flags = WEFT_NAT_DSR;
        return WEFT_REASON_NONE;
    }
    /* A pod takes no packets from its own address. */
    bool itself = same_addr(&draft->to.destination, &draft->key.source);
    if (scope == SCOPE_CLUSTER ? !itself : here)
        return WEFT_REASON_NONE;
    const struct weft_addr *own = own_address(is_v6);
    if (!own)
        return WEFT_REASON_NO_FREE_PORT;
    draft->to.source = *own;
    draft->to.source_port = 0;
    return WEFT_REASON_NONE;
}

static __always_inline __u8 no_backend(__u32 flags, enum scope scope)
{
    __u32 elsewhere = scope == SCOPE_EDGE ? WEFT_SERVICE_EDGE_ELSEWHERE : WEFT_SERVICE_LOCAL_ELSEWHERE;
    return flags & elsewhere ? WEFT_REASON_NO_LOCAL_BACKENDS : WEFT_REASON_NO_READY_BACKENDS;
}

/* The draft's backend for the packet. A function of its own, so that its stack is not on top of what comes after. */
static __noinline int choose_backend(const struct packet *packet, const struct weft_service *service, enum scope scope)
{
    struct weft_translation *draft = translation();
    if (!draft || !packet || !service)
        return WEFT_REASON_TABLE_FULL;
    struct asking asking = {
        .client = packet->source,
        .addr = packet->destination,
        .client_port = packet->source_port,
        .port = packet->destination_port,
        .protocol = packet->protocol,
    };
    draft->hash = hash_of(&asking);
    /* Nodes that share the address then agree about a client without telling each other. */
    if (service->affinity && scope == SCOPE_EDGE)
        asking.client_port = 0;
    return pick_backend(service, &asking, scope, &draft->backend) ? WEFT_REASON_NONE : no_backend(service->flags, scope);
}

/* A connection of its own for the draft's key, with the draft's backend. */
static __noinline int open_connection(struct __sk_buff *skb, const struct packet *packet, const struct weft_service *service,
                                      enum scope scope)
{
    struct weft_translation *draft = translation();
    if (!draft || !packet || !service)
        return WEFT_REASON_TABLE_FULL;
    __builtin_memset(&draft->to, 0, sizeof(draft->to));
    draft->to.source = packet->source;
    draft->to.source_port = packet->source_port;
    draft->to.destination = draft->backend.addr;
    draft->to.destination_port = bpf_ntohs(draft->backend.port);
    draft->to.service = service->id;
    draft->to.list = scope == SCOPE_EDGE ? service->edge_list : service->list;
    draft->to.created = bpf_ktime_get_coarse_ns();
    __u8 reason = address_backend(draft, service, packet->is_v6, scope);
    if (reason)
        return reason;
    follow_nat(packet, &draft->to);
    if (!(draft->to.flags & WEFT_NAT_DSR)) {
        put_other(draft);
        if (!claim_port(draft, draft->hash))
            return WEFT_REASON_NO_FREE_PORT;
    }
    if (bpf_map_update_elem(&nat, &draft->key, &draft->to, BPF_ANY))
        return WEFT_REASON_TABLE_FULL;
    report_connection(skb, draft, scope == SCOPE_EDGE ? WEFT_HOOK_FROM_NET : WEFT_HOOK_FROM_POD);
    return draft->to.flags & WEFT_NAT_DSR ? CONNECTION_SENT_ON : CONNECTION_REQUEST;
}

static __always_inline int keep_connection(const struct packet *packet, struct weft_nat *entry, struct weft_translation *draft)
{
    __u64 last_seen = entry->last_seen;
    follow_nat(packet, entry);
    draft->to = *entry;
    /* Once in a tick of the clock is enough. */
    if (entry->last_seen != last_seen)
        mend_connection(draft);
    return draft->to.flags & WEFT_NAT_REPLY ? CONNECTION_REPLY : draft->to.flags & WEFT_NAT_DSR ? CONNECTION_SENT_ON : CONNECTION_REQUEST;
}

static __always_inline bool has_backend(const struct weft_service *service, const struct weft_nat *entry, enum scope scope)
{
    struct weft_backend backend = {.addr = entry->destination, .port = bpf_htons(entry->destination_port)};
    return is_member(scope == SCOPE_EDGE ? service->edge_list : service->list, &backend);
}

/* Whether a TCP packet without an entry may start one: at the edge in the middle of a connection too, because its hash finds
 * the backend again, on another node as well. An answer of somebody else's to a connection of the node's is none. */
static __always_inline bool may_open(const struct packet *packet, enum scope scope)
{
    __u8 flags = packet->tcp_flags;
    if (packet->protocol != PROTOCOL_TCP || is_opening(packet))
        return true;
    return scope == SCOPE_EDGE && !(flags & TCP_SYN) && !(flags & TCP_RST);
}

/* A packet with ports that is not for a pod. `kind` is what its destination is to this node. */
__noinline int find_connection(struct __sk_buff *skb, struct packet *packet, __u32 kind, __u32 scope)
{
    struct weft_translation *draft = translation();
    if (!draft || !packet)
        return CONNECTION_NONE;
    nat_key(packet, &draft->key);
    struct weft_nat *entry = bpf_map_lookup_elem(&nat, &draft->key);
    bool has_service = packet->protocol == PROTOCOL_TCP || packet->protocol == PROTOCOL_UDP;
    bool asks = packet->protocol == PROTOCOL_UDP || is_opening(packet);
    /* Pods' masqueraded packets come by here before policy. */
    if (entry && entry->flags == WEFT_NAT_MASQUERADED)
        entry = NULL;
    if (entry && (!asks || entry->flags & WEFT_NAT_REPLY))
        return keep_connection(packet, entry, draft);
    if (!has_service)
        return CONNECTION_NONE;
    const struct weft_service *service = find_service_of(packet, kind, scope);
    if (!service && entry)
        forget(&draft->key, entry, &draft->other);
    if (!service || (!entry && !may_open(packet, scope)))
        return scope == SCOPE_CLUSTER && kind == WEFT_END_SERVICES ? WEFT_REASON_NOT_TRANSLATED : CONNECTION_NONE;
    if (!may_come(service, &packet->source))
        return WEFT_REASON_SOURCE_RANGE;
    if (entry && has_backend(service, entry, scope))
        return keep_connection(packet, entry, draft);
    int reason = choose_backend(packet, service, scope);
    if (!reason)
        /* The answers of the backend before may still be on their way: their direction stays until it has been silent. */
        return open_connection(skb, packet, service, scope);
    if (entry)
        forget(&draft->key, entry, &draft->other);
    return reason;
}

/* What is refused out loud. */
static __always_inline bool is_answered(int reason)
{
    return reason == WEFT_REASON_NO_READY_BACKENDS || reason == WEFT_REASON_NOT_TRANSLATED || reason == WEFT_REASON_HOP_LIMIT;
}

/* Along the node's own route, whatever source the packet has: the stack would take it for forged. */
static __always_inline int send_out(struct __sk_buff *skb, const struct packet *packet, __u8 hook)
{
    if (!lower_hop_limit(skb, packet))
        return refuse_with(skb, packet, hook, WEFT_REASON_MALFORMED);
    return bpf_redirect_neigh(weft_config.uplink_ifindex, NULL, 0, 0);
}

/* Why nothing can be sent to an address of the cluster; 0: something can. */
static __always_inline __u8 leads_nowhere(__u32 kind)
{
    return kind == WEFT_END_OWN_PODS      ? WEFT_REASON_NO_SUCH_POD
           : kind == WEFT_END_SERVICES    ? WEFT_REASON_NOT_TRANSLATED
           : kind == WEFT_END_CLUSTER_PODS ? WEFT_REASON_ROUTE_MISSING
                                           : WEFT_REASON_NONE;
}

/* Where a translated packet goes that is not for a pod of this node, and not up the stack. */
static __always_inline int send_translated(struct __sk_buff *skb, const struct packet *packet, __u8 hook, struct verdict *verdict)
{
    __u8 nowhere = leads_nowhere(verdict->to.kind);
    if (nowhere)
        return refuse_with(skb, packet, hook, nowhere);
    if (verdict->to.kind == WEFT_END_REMOTE_POD)
        return send_remote(skb, packet, hook, verdict);
    count(verdict->reason, 1, skb->len);
    return send_out(skb, packet, hook);
}

/* A packet that answers a translated one, after policy: it gets the address that its receiver knows. */
__noinline int answer_translated(struct __sk_buff *skb, __u32 hook, __u32 reason)
{
    struct packet packet = {};
    struct verdict verdict = {.reason = reason};
    struct weft_nat_key key;
    int translated = NOT_TRANSLATED;
    if (parse_network(skb, &packet) || parse_transport(skb, &packet) || complete_fragment(&packet))
        return refuse_with(skb, &packet, hook, WEFT_REASON_MALFORMED);
    if (packet.hop_limit > 1 && packet.is_icmp_error) {
        translated = translate_error(skb, &packet, ERROR_ABOUT_REQUEST);
    } else if (packet.hop_limit > 1 || hook == WEFT_HOOK_TO_POD) {
        nat_key(&packet, &key);
        struct weft_nat *entry = bpf_map_lookup_elem(&nat, &key);
        if (entry && entry->flags & WEFT_NAT_REPLY) {
            struct weft_translation *draft = translation();
            if (!draft)
                return DROP;
            draft->key = key;
            keep_connection(&packet, entry, draft);
            translated = rewrite(skb, &packet, &draft->to) ? TRANSLATED : TRANSLATION_BROKEN;
        }
    }
    if (translated == TRANSLATION_BROKEN)
        return refuse_with(skb, &packet, hook, WEFT_REASON_MALFORMED);
    resolve(&packet.destination, &verdict.to);
    __u32 to = verdict.to.kind;
    if (hook != WEFT_HOOK_TO_POD && to == WEFT_END_POD)
        return deliver(skb, &packet, hook, &verdict);
    if (hook != WEFT_HOOK_TO_POD && to != WEFT_END_HOST && (translated == TRANSLATED || leads_nowhere(to)))
        return send_translated(skb, &packet, hook, &verdict);
    if (hook != WEFT_HOOK_TO_POD && (to == WEFT_END_REMOTE || to == WEFT_END_REMOTE_POD))
        return send_remote(skb, &packet, hook, &verdict);
    /* A pod may also speak to a backend outside without the service. */
    if (hook == WEFT_HOOK_FROM_POD && is_masqueraded(&verdict.to))
        return LEAVES | reason;
    count(reason, 1, skb->len);
    return TO_STACK;
}
