/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
 *
 * Forwards multicast in the kernel: the offload of the eBPF plane.
 *
 * `capture` is the filter of the capture socket, which the kernel runs before tc. It looks the flow
 * of a packet up and decides who forwards the packet: this program, or the process. It writes the
 * decision into the control block of the packet, and `forward`, at tc ingress, obeys. So each packet
 * is forwarded exactly once, whatever changes meanwhile.
 *
 * When the process has died, there is no capture socket and no decision. `forward` then decides by
 * itself, until the process has been gone for too long.
 *
 * The process writes the tables through shared memory: see tables.rs, which has the same layouts.
 *
 * `make offload-program` compiles this file. forward.o is checked in, because a build must not need
 * clang; a test compares the two.
 */
#include <linux/errno.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Number of interfaces with a program; the process does not use more. */
#define MAX_PORTS 256
/* Egresses of a flow. */
#define MAX_EGRESSES 64
/* Sizes that the process replaces when it loads the program. */
#define FLOWS 65536
#define ACTIONS 4096

/* The mark of the packets that this instance sends, and a number that only this instance knows. */
const volatile __u32 own_mark;
const volatile __u32 own_magic;
/* Packets of unknown flows that an interface passes to the process in a window of time, on each
 * core. */
const volatile __u64 unknown_limit;
/* The window is 2^27 ns, which are 134 ms. */
#define UNKNOWN_WINDOW_BITS 27

/* Who forwards the packets of a flow. */
enum state {
	/* The process. */
	CAPTURED = 0,
	/* The kernel, if the process has sent all packets that it captured. Otherwise the process: so
	 * no packet overtakes another one, also if the kernel leaves some of them to the process. */
	OFFLOADED = 1,
	/* The process, which must not hand it over. */
	KEPT = 2,
};

/* 40 bytes. IPv4 addresses are in the first word, and the others are zero. */
struct flow_key {
	__u32 ifindex;
	__u32 version;
	__be32 source[4];
	__be32 group[4];
};

/* 64 bytes: one cache line. */
struct flow {
	/* Written by the process. Bits 0 and 1: the state. 2: the epoch, which changes with the action.
	 * 8 to 15: packets with a TTL of at most this are left to the process. 16 to 31: so are longer
	 * IP packets. 32 to 45: the port. 48 to 63: the action. */
	__u64 control;
	/* Packets captured, counted before they are in the queue of the socket. */
	__u64 seen;
	/* The same, counted when they are in the queue. */
	__u64 queued;
	/* How many of `seen` the process has sent. Written by the process. */
	__u64 sent;
	/* Packets and IP bytes that the kernel forwarded, by epoch; a GSO packet counts as its
	 * segments. A packet is counted where its action was chosen, so the counts of an epoch are
	 * those of its action. */
	struct {
		__u64 packets;
		__u64 bytes;
	} forwarded[2];
};

/* 40 bytes. The addresses that the packets of a flow get, and the UDP destination port if it is not
 * zero. `change` is the change of their checksum: the sum of the new addresses less that of the
 * old ones. Written by the process. */
struct rewrite {
	__be32 source[4];
	__be32 group[4];
	__u32 change;
	__be16 port;
	__u16 unused;
};

struct egress {
	__u32 ifindex;
	/* The link-layer address of the interface. */
	__u8 mac[ETH_ALEN];
	/* Whether the last copy goes directly to the other end of a veth. */
	__u8 to_peer;
	__u8 unused[5];
	/* Copies that the interface refused because it was down or gone, and for another reason. The
	 * last copy of a packet is not among them: its result is not known here. */
	__u64 down;
	__u64 failed;
};

/* What is done with the packets of flows. Written by the process. */
struct action {
	/* Number of egresses. */
	__u32 egresses;
	/* Whether the packet also continues to the host. */
	__u8 keep_original;
	/* Subtracted from the TTL, unless `set_ttl` is set. */
	__u8 decrement;
	/* The TTL of the packets that leave; 0: as it arrived, less `decrement`. */
	__u8 set_ttl;
	/* Whether each flow has addresses of its own in `rewrites`. */
	__u8 rewrites;
	/* Packets that could not be changed, and were sent on no path. */
	__u64 failed;
	struct egress egress[MAX_EGRESSES];
};

/* What `capture` did with the last packet of a known flow. `forward` sets it back. */
enum pending {
	/* `forward` has seen the packet. If there is a new one, `capture` did not run for it: no capture
	 * is open. */
	NOTHING = 0,
	/* It was left to the kernel. */
	LEFT_TO_KERNEL = 1,
	/* `forward` did not run for such a packet: it is not attached any more. */
	REMOVED = 2,
	/* It was captured. */
	LEFT_TO_PROCESS = 3,
};

/* Per interface: whether the programs work together, and packets that were lost because they did
 * not. One for each CPU. */
struct port {
	__u64 pending;
	__u64 lost;
};

/* What the process says about itself. */
struct instance {
	/* The layout of these tables. */
	__u32 layout;
	/* `own_mark`. */
	__u32 mark;
	/* When it was last alive, and how long the kernel forwards without it, in nanoseconds of the
	 * boot clock. */
	__u64 alive;
	__u64 orphan_after;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct instance);
} instance SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, __u32);
} flow_index SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

/* What of `forwarded` of a flow is in the counters that the process has stored. For the next process;
 * the programs do not use it. */
struct counted {
	__u64 packets[2];
	__u64 bytes[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct counted);
} counted SEC(".maps");

/* Two for each flow: one for each epoch. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * FLOWS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct rewrite);
} rewrites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ACTIONS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct action);
} actions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

/* Packets of flows that the process has not prepared, by interface and CPU: the window of time, how
 * many arrived in it, and how many were not passed to the process since the interface was added. */
struct unknown {
	__u64 window;
	__u64 packets;
	__u64 dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct unknown);
} unknown_packets SEC(".maps");

/* Words of the control block. */
enum {
	/* The magic number and the interface. Without them there is no decision. */
	CB_MAGIC = 0,
	/* Bits 0 to 15: the action. 16 to 29: the port. 30: the epoch. 31: whether the kernel forwards
	 * the packet. */
	CB_DECISION = 1,
	CB_FLOW = 2,
};

#define DECISION_OFFLOADED (1U << 31)
#define DECISION(control) \
	(ACTION(control) | (__u32)PORT(control) << 16 | EPOCH(control) << 30)
#define DECISION_ACTION(decision) ((decision) & 0xffff)
#define DECISION_PORT(decision) ((decision) >> 16 & 0x3fff)
#define DECISION_EPOCH(decision) ((decision) >> 30 & 1)

#define STATE(control) ((control) & 3)
#define EPOCH(control) ((__u32)(control) >> 2 & 1)
#define MIN_TTL(control) ((__u8)((control) >> 8))
#define MAX_LEN(control) ((__u16)((control) >> 16))
#define PORT(control) ((__u32)((control) >> 32) & 0x3fff)
#define ACTION(control) ((__u16)((control) >> 48))

#define ACCEPT 0xffffffff
#define DROP 0

/* What the filter needs of the IP header. */
struct header {
	/* Whether the kernel can forward such a packet. */
	__u32 is_plain;
	__u32 len;
	__u32 header_len;
	__u32 ttl;
};

static __always_inline __u32 accept_link_multicast(struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_MULTICAST ? ACCEPT : DROP;
}

/* Passes a packet of an unknown flow to the process, unless there are too many. */
static __always_inline __u32 accept_unknown(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct unknown *unknown = bpf_map_lookup_elem(&unknown_packets, &ifindex);
	if (!unknown)
		return ACCEPT;
	__u64 packets = skb->gso_size ? skb->gso_segs : 1;
	__u64 window = bpf_ktime_get_ns() >> UNKNOWN_WINDOW_BITS;
	if (unknown->window != window) {
		unknown->window = window;
		unknown->packets = 0;
	}
	unknown->packets += packets;
	if (unknown->packets <= unknown_limit)
		return ACCEPT;
	unknown->dropped += packets;
	return DROP;
}

/* Returns the packets and IP bytes that a packet counts as: a GSO packet as its segments. Returns the
 * longest of them. */
static __always_inline __u32 measure(struct __sk_buff *skb, const struct header *ip,
				     __u64 *packets, __u64 *bytes)
{
	*packets = 1;
	*bytes = ip->len;
	if (!skb->gso_size)
		return ip->len;
	*packets = skb->gso_segs;
	*bytes += (*packets - 1) * (ip->header_len + 8);
	return skb->gso_size + ip->header_len + 8;
}

/* Returns whether the kernel can forward a packet of the flow, as far as the packet matters. */
static __always_inline int fits(struct __sk_buff *skb, const struct header *ip, __u64 control,
				__u64 packets, __u32 longest)
{
	return STATE(control) == OFFLOADED && ip->is_plain && packets &&
	       skb->pkt_type != PACKET_OUTGOING && !skb->vlan_present &&
	       ip->ttl > MIN_TTL(control) && longest <= MAX_LEN(control);
}

static __always_inline void count_forwarded(struct flow *flow, __u64 control, __u64 packets,
					    __u64 bytes)
{
	__u32 epoch = EPOCH(control);
	__sync_fetch_and_add(&flow->forwarded[epoch].packets, packets);
	__sync_fetch_and_add(&flow->forwarded[epoch].bytes, bytes);
}

/* Decides about a packet to a multicast group. */
static __always_inline __u32 decide(struct __sk_buff *skb, struct flow_key *key,
				    const struct header *ip)
{
	__u32 *index = bpf_map_lookup_elem(&flow_index, key);
	if (!index)
		return accept_unknown(skb);
	__u32 id = *index;
	struct flow *flow = bpf_map_lookup_elem(&flows, &id);
	if (!flow)
		return ACCEPT;
	__u64 control = *(volatile __u64 *)&flow->control;
	__u32 port_id = PORT(control);
	struct port *port = bpf_map_lookup_elem(&ports, &port_id);
	if (!port)
		return ACCEPT;

	__u64 pending = port->pending;
	if (pending == LEFT_TO_KERNEL || pending == REMOVED) {
		/* Until the process attaches `forward` again, nothing is counted that `forward` would
		 * count too. */
		if (pending == LEFT_TO_KERNEL) {
			port->pending = REMOVED;
			port->lost++;
		}
		return ACCEPT;
	}
	skb->cb[CB_MAGIC] = own_magic ^ skb->ifindex;
	skb->cb[CB_DECISION] = DECISION(control);
	skb->cb[CB_FLOW] = id;

	__u64 packets, bytes;
	__u32 longest = measure(skb, ip, &packets, &bytes);
	if (fits(skb, ip, control, packets, longest) &&
	    *(volatile __u64 *)&flow->seen == *(volatile __u64 *)&flow->sent) {
		port->pending = LEFT_TO_KERNEL;
		count_forwarded(flow, control, packets, bytes);
		skb->cb[CB_DECISION] = DECISION(control) | DECISION_OFFLOADED;
		return DROP;
	}
	if (skb->pkt_type != PACKET_OUTGOING)
		port->pending = LEFT_TO_PROCESS;
	__sync_fetch_and_add(&flow->seen, 1);
	return ACCEPT;
}

/* Returns a one's complement sum of 16-bit words. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Returns whether the frame holds the IP packet, and nothing else but the padding of a short frame. */
static __always_inline int fills_frame(struct __sk_buff *skb, __u32 packet_len)
{
	__u32 len = packet_len + ETH_HLEN;
	return skb->len == len || (skb->len > len && skb->len <= ETH_ZLEN);
}

/* Reads the flow of an IPv4 packet, and what else the decision needs. */
static __always_inline void read_ipv4(struct __sk_buff *skb, const struct iphdr *ip,
				      struct flow_key *key, struct header *header)
{
	key->ifindex = skb->ifindex;
	key->version = 4;
	key->source[0] = ip->saddr;
	key->group[0] = ip->daddr;
	header->len = bpf_ntohs(ip->tot_len);
	header->header_len = sizeof(*ip);
	header->ttl = ip->ttl;
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;
#pragma unroll
	for (int i = 0; i < sizeof(*ip) / 2; i++)
		sum += words[i];
	header->is_plain = ip->version == 4 && ip->ihl == 5 && ip->protocol == IPPROTO_UDP &&
			   !(ip->frag_off & bpf_htons(0x3fff)) && fold(sum) == 0xffff &&
			   header->len >= sizeof(*ip) + sizeof(struct udphdr) &&
			   fills_frame(skb, header->len);
}

/* Reads the flow of an IPv6 packet, and what else the decision needs. */
static __always_inline void read_ipv6(struct __sk_buff *skb, const struct ipv6hdr *ip,
				      struct flow_key *key, struct header *header)
{
	key->ifindex = skb->ifindex;
	key->version = 6;
	__builtin_memcpy(key->source, &ip->saddr, sizeof(key->source));
	__builtin_memcpy(key->group, &ip->daddr, sizeof(key->group));
	header->len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	header->header_len = sizeof(*ip);
	header->ttl = ip->hop_limit;
	header->is_plain = ip->version == 6 && ip->nexthdr == IPPROTO_UDP &&
			   header->len >= sizeof(*ip) + sizeof(struct udphdr) &&
			   fills_frame(skb, header->len);
}

static __always_inline __u32 capture_ipv4(struct __sk_buff *skb)
{
	struct iphdr ip;
	if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return accept_link_multicast(skb);
	if ((ip.daddr & bpf_htonl(0xf0000000)) != bpf_htonl(0xe0000000)) {
		if (skb->pkt_type == PACKET_MULTICAST)
			return ACCEPT;
		/* IGMP messages to this host. */
		return ip.protocol == IPPROTO_IGMP && skb->pkt_type == PACKET_HOST ? ACCEPT : DROP;
	}
	if (ip.protocol == IPPROTO_IGMP)
		return ACCEPT;
	struct flow_key key = {};
	struct header header = {};
	read_ipv4(skb, &ip, &key, &header);
	return decide(skb, &key, &header);
}

static __always_inline __u32 capture_ipv6(struct __sk_buff *skb)
{
	struct ipv6hdr ip;
	if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return accept_link_multicast(skb);
	if (ip.daddr.s6_addr[0] != 0xff) {
		/* A hop-by-hop options header of eight bytes, then an MLD query. */
		__u8 after[9];
		if (skb->pkt_type == PACKET_MULTICAST)
			return ACCEPT;
		if (ip.nexthdr != 0 ||
		    bpf_skb_load_bytes_relative(skb, sizeof(ip), after, sizeof(after),
						BPF_HDR_START_NET))
			return DROP;
		return after[0] == IPPROTO_ICMPV6 && after[1] == 0 && after[8] == 130 ? ACCEPT : DROP;
	}
	/* MLD messages have a hop-by-hop options header. */
	if (ip.nexthdr == 0)
		return ACCEPT;
	struct flow_key key = {};
	struct header header = {};
	read_ipv6(skb, &ip, &key, &header);
	return decide(skb, &key, &header);
}

/* The rules of `sys/filter.rs`, without those for the loopback interface. */
SEC("socket")
int capture(struct __sk_buff *skb)
{
	if (skb->pkt_type == PACKET_OTHERHOST)
		return DROP;
	if (skb->pkt_type == PACKET_OUTGOING && skb->mark == own_mark)
		return DROP;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return capture_ipv4(skb);
	case bpf_htons(ETH_P_IPV6):
		return capture_ipv6(skb);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return ACCEPT;
	}
	return DROP;
}

/* Sets the TTL or hop limit of the packet. Returns false if its header is not in memory. */
static __always_inline int set_ttl(struct __sk_buff *skb, __u8 ttl)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return 0;
		/* RFC 1624. The TTL is the first byte of its 16-bit word. */
		__u16 before = bpf_htons(ip->ttl << 8), after = bpf_htons(ttl << 8);
		ip->check = ~fold((__u16)~ip->check + (__u16)~before + after);
		ip->ttl = ttl;
		return 1;
	}
	struct ipv6hdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return 0;
	/* No checksum of IPv6 makes up for the change. A sum of the whole packet, which some network
	 * cards give, must change too. The hop limit is the second byte of its word. */
	bpf_csum_update(skb, fold((__u16)~bpf_htons(ip->hop_limit) + bpf_htons(ttl)));
	ip->hop_limit = ttl;
	return 1;
}

/* Where the UDP header starts. */
static __always_inline __u32 udp_at(struct __sk_buff *skb)
{
	return ETH_HLEN + (skb->protocol == bpf_htons(ETH_P_IP) ? sizeof(struct iphdr)
								: sizeof(struct ipv6hdr));
}

/* Copies the addresses and the UDP destination port of the packet to `rewrite`. Returns false if
 * its headers are not in memory. */
static __always_inline int read_stream(struct __sk_buff *skb, struct rewrite *rewrite)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udphdr *udp;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end)
			return 0;
		rewrite->source[0] = ip->saddr;
		rewrite->group[0] = ip->daddr;
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end)
			return 0;
		__builtin_memcpy(rewrite->source, &ip->saddr, sizeof(rewrite->source));
		__builtin_memcpy(rewrite->group, &ip->daddr, sizeof(rewrite->group));
	}
	rewrite->port = udp->dest;
	return 1;
}

/* Writes addresses and port, and updates the checksums (RFC 1624); also a checksum that the network
 * card will complete. A UDP checksum of zero means that there is none. Returns false if that is not
 * possible. */
static __always_inline int write_stream(struct __sk_buff *skb, const struct rewrite *rewrite)
{
	__u32 at = udp_at(skb), check = at + __builtin_offsetof(struct udphdr, check);
	__u32 change = rewrite->change;
	if (bpf_l4_csum_replace(skb, check, 0, change, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0))
		return 0;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udphdr *udp;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end)
			return 0;
		ip->check = ~fold((__u16)~ip->check + change);
		ip->saddr = rewrite->source[0];
		ip->daddr = rewrite->group[0];
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;
		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end)
			return 0;
		/* The change of the UDP checksum makes up for that of the addresses: so a sum of the
		 * whole packet stays the same, but the helper has changed it. */
		bpf_csum_update(skb, change);
		__builtin_memcpy(&ip->saddr, rewrite->source, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, rewrite->group, sizeof(ip->daddr));
	}
	__be16 before = udp->dest, port = rewrite->port;
	if (!port || port == before)
		return 1;
	udp->dest = port;
	return !bpf_l4_csum_replace(skb, check, before, port, BPF_F_MARK_MANGLED_0 | sizeof(port));
}

/* Writes the link-layer addresses. */
static __always_inline int set_addresses(struct __sk_buff *skb, const __u8 *to, const __u8 *from)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *header = data;
	if ((void *)(header + 1) > end)
		return 0;
	__builtin_memcpy(header->h_dest, to, ETH_ALEN);
	__builtin_memcpy(header->h_source, from, ETH_ALEN);
	return 1;
}

/* Writes the link-layer address of the group to `to`, and that of the packet's TTL to `ttl`. */
static __always_inline int read_packet(struct __sk_buff *skb, __u8 *to, __u8 *ttl)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return 0;
		/* RFC 1112 section 6.4. */
		__u32 group = bpf_ntohl(ip->daddr);
		to[0] = 1;
		to[1] = 0;
		to[2] = 0x5e;
		to[3] = (group >> 16) & 0x7f;
		to[4] = group >> 8;
		to[5] = group;
		*ttl = ip->ttl;
		return 1;
	}
	struct ipv6hdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return 0;
	/* RFC 2464 section 7. */
	to[0] = 0x33;
	to[1] = 0x33;
	__builtin_memcpy(to + 2, &ip->daddr.s6_addr[12], 4);
	*ttl = ip->hop_limit;
	return 1;
}

static __always_inline int forward_copies(struct __sk_buff *skb, __u32 decision, __u32 flow_id)
{
	__u32 action_id = DECISION_ACTION(decision);
	struct action *action = bpf_map_lookup_elem(&actions, &action_id);
	/* The process writes no other numbers. */
	if (!action)
		return TC_ACT_SHOT;
	__u32 headers = udp_at(skb) + sizeof(struct udphdr);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + headers > end && bpf_skb_pull_data(skb, headers))
		goto failed;

	__u8 keep = action->keep_original, is_rewritten = action->rewrites;
	__u32 arrived_mark = skb->mark;
	__u8 arrived_addresses[2 * ETH_ALEN];
	if (keep && bpf_skb_load_bytes(skb, 0, arrived_addresses, sizeof(arrived_addresses)))
		goto failed;
	struct rewrite arrived = {};
	if (is_rewritten) {
		__u32 rewrite_id = 2 * flow_id + DECISION_EPOCH(decision);
		struct rewrite *rewrite = bpf_map_lookup_elem(&rewrites, &rewrite_id);
		if (!rewrite)
			goto failed;
		if (keep && !read_stream(skb, &arrived))
			goto failed;
		arrived.change = (__u16)~fold(rewrite->change);
		if (!write_stream(skb, rewrite))
			goto failed;
	}

	__u8 to[ETH_ALEN], arrived_ttl;
	if (!read_packet(skb, to, &arrived_ttl))
		goto failed;
	__u8 ttl = action->set_ttl ?: arrived_ttl - action->decrement;
	if (ttl != arrived_ttl && !set_ttl(skb, ttl))
		goto failed;
	skb->mark = own_mark;

	__u32 egresses = action->egresses;
	for (__u32 i = 0; i < MAX_EGRESSES; i++) {
		if (i >= egresses)
			break;
		struct egress *egress = &action->egress[i];
		if (!set_addresses(skb, to, egress->mac)) {
			__sync_fetch_and_add(&egress->failed, 1);
			continue;
		}
		if (i + 1 == egresses && !keep)
			return egress->to_peer ? bpf_redirect_peer(egress->ifindex, 0)
					       : bpf_redirect(egress->ifindex, 0);
		long result = bpf_clone_redirect(skb, egress->ifindex, 0);
		/* The queueing discipline of a device that is down answers NET_XMIT_CN, which is 2. */
		if (result == -ENETDOWN || result == -ENODEV || result == -ENXIO ||
		    result == -EINVAL || result == 2)
			__sync_fetch_and_add(&egress->down, 1);
		else if (result)
			__sync_fetch_and_add(&egress->failed, 1);
	}
	if (!keep)
		return TC_ACT_SHOT;
	skb->mark = arrived_mark;
	if (ttl != arrived_ttl)
		set_ttl(skb, arrived_ttl);
	if (is_rewritten)
		write_stream(skb, &arrived);
	set_addresses(skb, arrived_addresses, arrived_addresses + ETH_ALEN);
	return TC_ACT_UNSPEC;

failed:
	__sync_fetch_and_add(&action->failed, 1);
	return TC_ACT_SHOT;
}

/* Returns whether the process has been alive lately. */
static __always_inline int may_forward_alone(void)
{
	__u32 first = 0;
	struct instance *known = bpf_map_lookup_elem(&instance, &first);
	return known && bpf_ktime_get_boot_ns() - known->alive < known->orphan_after;
}

/* Decides about a packet without a decision: no capture is open, or another program has overwritten
 * the control block. `flow_id` becomes the flow. Returns the decision; 0 if the packet is not
 * forwarded here. */
static __always_inline __u32 decide_alone(struct __sk_buff *skb, __u32 *flow_id)
{
	struct flow_key key = {};
	struct header header = {};
	/* Not what the host itself sends, which the kernel shows here as received (PACKET_LOOPBACK). */
	if (skb->pkt_type != PACKET_MULTICAST)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		read_ipv4(skb, &ip, &key, &header);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		read_ipv6(skb, &ip, &key, &header);
	} else {
		return 0;
	}
	__u32 *index = bpf_map_lookup_elem(&flow_index, &key);
	if (!index)
		return 0;
	*flow_id = *index;
	struct flow *flow = bpf_map_lookup_elem(&flows, index);
	if (!flow)
		return 0;
	__u64 control = *(volatile __u64 *)&flow->control;
	__u32 port_id = PORT(control);
	struct port *port = bpf_map_lookup_elem(&ports, &port_id);
	if (!port)
		return 0;
	switch (port->pending) {
	case LEFT_TO_KERNEL:
		port->pending = NOTHING;
		return DECISION(control) | DECISION_OFFLOADED;
	case LEFT_TO_PROCESS:
		port->pending = NOTHING;
		__sync_fetch_and_add(&flow->queued, 1);
		return 0;
	case REMOVED:
		return 0;
	}
	__u64 packets, bytes;
	__u32 longest = measure(skb, &header, &packets, &bytes);
	/* What the process had not sent when it died is lost: do not wait for it. */
	if (!fits(skb, &header, control, packets, longest) || !may_forward_alone())
		return 0;
	count_forwarded(flow, control, packets, bytes);
	return DECISION(control) | DECISION_OFFLOADED;
}

/* The kernel has at most 15 characters of a name. By this one, a later process recognises filters. */
SEC("classifier")
int mcastor_forward(struct __sk_buff *skb)
{
	__u32 decision, id = 0;
	if (skb->cb[CB_MAGIC] != (own_magic ^ skb->ifindex)) {
		decision = decide_alone(skb, &id);
		return decision ? forward_copies(skb, decision, id) : TC_ACT_UNSPEC;
	}
	skb->cb[CB_MAGIC] = 0;
	decision = skb->cb[CB_DECISION];
	id = skb->cb[CB_FLOW];
	__u32 port_id = DECISION_PORT(decision);
	struct port *port = bpf_map_lookup_elem(&ports, &port_id);
	if (port)
		port->pending = NOTHING;
	if (decision & DECISION_OFFLOADED)
		return forward_copies(skb, decision, id);
	struct flow *flow = bpf_map_lookup_elem(&flows, &id);
	if (flow)
		__sync_fetch_and_add(&flow->queued, 1);
	return TC_ACT_UNSPEC;
}

/* The helpers need a licence that the kernel counts as compatible with the GPL. It applies to this
 * program only. */
char _license[] SEC("license") = "Dual MIT/GPL";
