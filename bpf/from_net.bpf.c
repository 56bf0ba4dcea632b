/* What other machines send: tcx ingress on the uplink and on the tunnel device. */
#include "lib/announce.h"
#include "lib/edge.h"
#include "lib/from_tunnel.h"

#define PACKET_FOR_US 0
#define PACKET_FOR_OTHERS 3
/* Its destination is no pod of this node; not one of the actions that a program may return. */
#define NOT_FOR_POD (-3)
/* It is now one to a pod, and answers what that has sent to outside. */
#define BACK_TO_POD (-5)

static __always_inline int to_node(struct __sk_buff *skb)
{
    /* Inner frames carry the sender's idea of a link address. */
    if (weft_config.tunnel_ifindex && skb->ifindex == weft_config.tunnel_ifindex)
        bpf_skb_change_type(skb, PACKET_FOR_US);
    return TO_STACK;
}

static __always_inline bool came_through(struct __sk_buff *skb, const struct weft_addr *via)
{
    struct bpf_tunnel_key key = {};
    if (is_v4(via))
        return !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) && bpf_htonl(key.remote_ipv4) == via->words[3];
    return !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6) &&
           same_addr((const struct weft_addr *)key.remote_ipv6, via);
}

/* Whether a packet from such a source may come this way. */
static __always_inline bool is_spoofed(struct __sk_buff *skb, const struct weft_end *from)
{
    __u32 kind = from->kind;
    if (kind == WEFT_END_POD || kind == WEFT_END_HOST || kind == WEFT_END_OWN_PODS)
        return true;
    if (weft_config.routing != WEFT_ROUTING_VXLAN)
        return false;
    if (skb->ifindex != weft_config.tunnel_ifindex)
        return kind == WEFT_END_REMOTE_POD || kind == WEFT_END_CLUSTER_PODS;
    if (kind != WEFT_END_REMOTE && kind != WEFT_END_REMOTE_POD)
        return true;
    return !came_through(skb, (const struct weft_addr *)from->target);
}

static __always_inline bool is_known(struct __sk_buff *skb, const struct found *found)
{
    return !is_spoofed(skb, &found->flow->ends[found->from_b ? 1 : 0]);
}

static __noinline int from_net_known(struct __sk_buff *skb)
{
    struct plain plain;
    if (!read_plain(skb, &plain, WEFT_HOOK_FROM_NET))
        return NOT_KNOWN;
    struct weft_flow *flow = bpf_map_lookup_elem(&flows, &plain.key);
    if (!flow)
        return NOT_KNOWN;
    const struct weft_end *from = &flow->ends[plain.from_b ? 1 : 0], *to = &flow->ends[plain.from_b ? 0 : 1];
    if (to->kind != WEFT_END_POD || !is_open(flow, to) || is_spoofed(skb, from) || !rewrite_plain(skb, &plain, to))
        return NOT_KNOWN;
    account(skb, &plain, flow, WEFT_HOOK_FROM_NET);
    return bpf_redirect_peer(to->ifindex, 0);
}

/* The general way: any packet at all. `flow_flags`, with FLOW_BACK, are those of a packet that was translated, and whose source has
 * been looked at. */
__noinline int from_net_any(struct __sk_buff *skb, __u32 flow_flags)
{
    struct packet packet = {.flow_flags = flow_flags};
    struct verdict verdict = {};
    struct found found;
    struct ends ends;
    if (parse_network(skb, &packet))
        return to_node(skb);
    ends.receiver = bpf_map_lookup_elem(&endpoints, &packet.destination);
    if (!ends.receiver || ends.receiver->kind != WEFT_ENDPOINT_POD)
        return NOT_FOR_POD;
    __u8 broken = parse_transport(skb, &packet);
    if (!broken && find_current(&packet, &found) && (flow_flags || is_known(skb, &found))) {
        follow_flow(skb, &packet, &found, WEFT_HOOK_FROM_NET, &verdict);
    } else {
        describe_endpoint(ends.receiver, &verdict.to);
        if (!resolve_source(&packet, &ends))
            return DROP;
        if (!flow_flags && is_spoofed(skb, ends.source))
            broken = WEFT_REASON_SPOOFED_SOURCE;
        if (broken)
            return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, broken);
        track(skb, &packet, &ends, &found, WEFT_HOOK_FROM_NET, &verdict);
    }
    if (is_denial(verdict.reason))
        return refuse(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
    if (verdict.flags & WEFT_FLOW_NAT && !(flow_flags & WEFT_FLOW_NAT))
        return ANSWERS | verdict.reason;
    if (packet.hop_limit <= 1)
        to_node(skb);
    return deliver(skb, &packet, WEFT_HOOK_FROM_NET, &verdict);
}

/* A node sends on what it got from outside, unchanged; nobody else's tunnel may. */
static __always_inline bool came_from_node(struct __sk_buff *skb)
{
    struct bpf_tunnel_key key = {};
    struct weft_addr remote;
    struct weft_end end = {};
    if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
        set_v4(&remote, bpf_htonl(key.remote_ipv4));
    else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
        __builtin_memcpy(&remote, key.remote_ipv6, sizeof(remote));
    else
        return false;
    resolve_route(&remote, &end);
    return end.kind == WEFT_END_REMOTE;
}

static __noinline bool is_spoofed_client(struct __sk_buff *skb, const struct packet *packet)
{
    struct weft_end from;
    resolve(&packet->source, &from);
    bool tunnelled = weft_config.tunnel_ifindex && skb->ifindex == weft_config.tunnel_ifindex;
    if (tunnelled && from.kind == WEFT_END_OUTSIDE)
        return !came_from_node(skb);
    return is_spoofed(skb, &from);
}

/* Other nodes' tunnels end in the stack: the only packets to the node of which there are many. */
static __always_inline bool is_tunnels(const struct packet *packet)
{
    return weft_config.tunnel_port && packet->protocol == PROTOCOL_UDP && packet->destination_port == weft_config.tunnel_port;
}

/* Back along the way it came. */
static __always_inline int refuse_aloud(struct __sk_buff *skb, const struct packet *packet, __u8 reason)
{
    refuse_with(skb, packet, WEFT_HOOK_FROM_NET, reason);
    if (!turn_into_refusal(skb, packet, reason))
        return DROP;
    return skb->ifindex == weft_config.uplink_ifindex ? bpf_redirect(skb->ifindex, 0)
                                                      : bpf_redirect_neigh(weft_config.uplink_ifindex, NULL, 0, 0);
}

/* What no service here has. */
static __noinline int leave_to_node(struct __sk_buff *skb, const struct packet *packet, const struct weft_end *to)
{
    if (!is_service_address(to))
        return to_node(skb);
    bool has_ports = packet->protocol == PROTOCOL_TCP || packet->protocol == PROTOCOL_UDP;
    return has_ports ? refuse_aloud(skb, packet, WEFT_REASON_NOT_TRANSLATED)
                     : refuse_with(skb, packet, WEFT_HOOK_FROM_NET, WEFT_REASON_NOT_TRANSLATED);
}

/* Unchanged to the backend's node, which chooses the same one. */
static __noinline int send_on(struct __sk_buff *skb, const struct packet *packet, const struct weft_end *backend, __u8 reason)
{
    struct verdict verdict = {.reason = reason, .to = *backend};
    if (backend->kind != WEFT_END_REMOTE && backend->kind != WEFT_END_REMOTE_POD)
        return refuse_with(skb, packet, WEFT_HOOK_FROM_NET, WEFT_REASON_ROUTE_MISSING);
    return send_remote(skb, packet, WEFT_HOOK_FROM_NET, &verdict);
}

/* A packet of a translated connection. NOT_KNOWN, BACK_TO_POD: it is now one to a pod of this node. */
static __noinline int forward_connection(struct __sk_buff *skb, struct packet *packet, int connection,
                                              struct weft_translation *draft)
{
    struct verdict verdict = {.reason = WEFT_REASON_BALANCED};
    resolve(&draft->to.destination, &verdict.to);
    if (verdict.to.kind != WEFT_END_HOST && packet->hop_limit <= 1)
        return refuse_aloud(skb, packet, WEFT_REASON_HOP_LIMIT);
    if (connection == CONNECTION_SENT_ON)
        return send_on(skb, packet, &verdict.to, WEFT_REASON_BALANCED);
    if (!rewrite(skb, packet, &draft->to))
        return refuse_with(skb, packet, WEFT_HOOK_FROM_NET, WEFT_REASON_MALFORMED);
    if (verdict.to.kind == WEFT_END_POD)
        return draft->to.flags & WEFT_NAT_MASQUERADED ? BACK_TO_POD : NOT_KNOWN;
    if (verdict.to.kind == WEFT_END_HOST)
        return to_node(skb);
    return send_translated(skb, packet, WEFT_HOOK_FROM_NET, &verdict);
}

/* An ICMP error after its translation. */
static __noinline int send_error(struct __sk_buff *skb, struct packet *packet, int translated)
{
    struct verdict verdict = {.reason = WEFT_REASON_RELATED};
    if (translated == TRANSLATION_BROKEN)
        return refuse_with(skb, packet, WEFT_HOOK_FROM_NET, WEFT_REASON_MALFORMED);
    resolve(&packet->destination, &verdict.to);
    if (verdict.to.kind == WEFT_END_POD)
        return translated == TRANSLATED_BACK ? BACK_TO_POD : NOT_KNOWN;
    if (verdict.to.kind == WEFT_END_HOST)
        return to_node(skb);
    return send_translated(skb, packet, WEFT_HOOK_FROM_NET, &verdict);
}

/* About what a backend elsewhere has answered itself. */
static __noinline int send_error_on(struct __sk_buff *skb, struct packet *packet, const struct weft_end *to)
{
    struct weft_end backend = {};
    return find_sent_on(skb, packet, &backend) ? send_on(skb, packet, &backend, WEFT_REASON_RELATED) : leave_to_node(skb, packet, to);
}

/* An ICMP error to the node, or to a service's address, may be about a translated packet of either direction. */
static __noinline int forward_error(struct __sk_buff *skb, struct packet *packet, const struct weft_end *to)
{
    if (packet->hop_limit <= 1 || is_spoofed_client(skb, packet))
        return to_node(skb);
    int translated = translate_error(skb, packet, ERROR_ABOUT_REPLY);
    if (translated == NOT_TRANSLATED)
        translated = translate_error(skb, packet, ERROR_ABOUT_REQUEST);
    return translated == NOT_TRANSLATED ? send_error_on(skb, packet, to) : send_error(skb, packet, translated);
}

/* What is not for a pod: for a frontend, of a translated connection, or the stack's. NOT_KNOWN, BACK_TO_POD: it is now one to a pod. */
__noinline int from_net_edge(struct __sk_buff *skb)
{
    struct packet packet = {};
    struct weft_end to;
    if (parse_network(skb, &packet))
        return to_node(skb);
    resolve(&packet.destination, &to);
    if (to.kind == WEFT_END_OWN_PODS)
        return refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, WEFT_REASON_NO_SUCH_POD);
    if (is_link_local(&packet.destination) || parse_transport(skb, &packet) || is_tunnels(&packet))
        return to_node(skb);
    if (packet.fragment != FRAGMENT_WHOLE && complete_fragment(&packet))
        return to_node(skb);
    if (packet.is_icmp_error)
        return forward_error(skb, &packet, &to);
    if (is_spoofed_client(skb, &packet))
        return to_node(skb);
    int connection = find_connection(skb, &packet, to.kind, SCOPE_EDGE);
    struct weft_translation *draft = translation();
    if (connection == CONNECTION_NONE || !draft)
        return leave_to_node(skb, &packet, &to);
    if (is_denial(connection))
        return is_answered(connection) ? refuse_aloud(skb, &packet, connection)
                                       : refuse_with(skb, &packet, WEFT_HOOK_FROM_NET, connection);
    return forward_connection(skb, &packet, connection, draft);
}

/* A bridge that floods, and a card that listens to all, bring frames that are not for this node. */
static __always_inline bool is_for_others(struct __sk_buff *skb)
{
    return skb->pkt_type == PACKET_FOR_OTHERS && skb->ifindex == weft_config.uplink_ifindex;
}

SEC("tc")
int from_net(struct __sk_buff *skb)
{
    if (is_for_others(skb))
        return TO_STACK;
    int action = from_tunnel(skb);
    if (action == NOT_KNOWN)
        action = from_net_known(skb);
    if (action == NOT_KNOWN)
        action = answer_neighbours(skb);
    if (action == NOT_ANNOUNCED)
        action = from_net_any(skb, 0);
    if (action == NOT_FOR_POD) {
        action = from_net_edge(skb);
        if (action == NOT_KNOWN || action == BACK_TO_POD)
            action = from_net_any(skb, action == NOT_KNOWN ? WEFT_FLOW_NAT : FLOW_BACK);
    }
    return action >= ANSWERS ? answer_translated(skb, WEFT_HOOK_FROM_NET, action & 0xff) : action;
}
