//! The settings as they are written: every key, declared once, with a value of the right type.
//!
//! To add a key, declare it here and use its field in the check of its section.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::declaration::{KeyDeclaration, KeyType, TableDeclaration, declare, raw_tables};
use super::key_path::{KeyPath, PathSegment};
use crate::model::rule::MAX_JOINED_GROUPS;

/// The control socket, unless the settings name another one.
pub const DEFAULT_SOCKET: &str = "/run/mcastor/mcastor.sock";

/// The default of `plane.bpffs`.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/mcastor";

raw_tables! {
    /// Every key of the settings, with its meaning.
    struct RawSettings {
        http: Table(RawHttp);
        control: Table(RawControl);
        state: Table(RawState);
        docker: Table(RawDocker);
        plane: Table(RawPlane);
        log: Table(RawLog);
        interface: Tables(RawInterface);
        route: Tables(RawRoute);
        join: Tables(RawJoin);
        proxy: Tables(RawProxy);
        discovery: Tables(RawDiscovery);
        mrdisc: Table(RawMrdisc);
        mnat: Table(RawMnat);
        amt: Table(RawAmt);
        monitor: Table(RawMonitor);
        limits: Table(RawLimits);
    }

    /// The HTTP listener.
    struct RawHttp {
        /// The address that serves /metrics, /healthz, /readyz and /api/v1, or a UNIX socket such
        /// as "unix:/run/mcastor/http.sock". "off" disables the listener.
        listen: String, default_string("127.0.0.1:9464"),
            range("address and port, `\"unix:PATH\"`, or `\"off\"`");
        /// Names under which the address is reached, besides IP addresses, localhost, the name of
        /// the machine and names without a dot. Requests for other hosts are refused.
        hosts: Strings, default_described("`[]`"), range("host names without port"),
            example("[\"mcastor.example.net\"]");
        /// false turns /api/v1 and the page at / off.
        api: Boolean, default_boolean(true);
    }

    /// The control socket.
    struct RawControl {
        /// The UNIX socket that `mcastor show`, `add`, `reload` and other commands connect to.
        socket: String, default_string(DEFAULT_SOCKET), absolute_path(),
            range("absolute path, at most 107 bytes");
    }

    /// What was learned and outlives the process: memberships, queriers, MNAT mappings. See
    /// docs/redundancy.md.
    struct RawState {
        /// The folder of the state, for one process alone. "off" keeps no state. Beside the control
        /// socket mcastor.sock it is "state", beside a socket NAME.sock it is "NAME.state".
        dir: String, default_described("`state` beside the control socket"),
            range("absolute path, or `\"off\"`"), example("\"/run/mcastor/state\"");
    }

    /// The Docker Engine that resolves the names "container:NAME", "network:NAME" and
    /// "label:KEY=VALUE". Such a name can be used wherever an interface name can.
    struct RawDocker {
        /// The UNIX socket of the engine.
        socket: String, default_string("/var/run/docker.sock"), absolute_path(),
            range("absolute path, at most 107 bytes");
    }

    /// How packets are captured and sent.
    struct RawPlane {
        /// "packet" uses packet sockets. "ebpf" also forwards in the kernel, by BPF programs, which
        /// need CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: see docs/ebpf.md. "auto" is "ebpf" where the
        /// kernel takes the programs, else "packet". The log says which, and why.
        kind: String, default_string("auto"), words(&["auto", "packet", "ebpf"]);
        /// Sends past the queueing discipline. Tcpdump does not see the packets then.
        qdisc_bypass: Boolean, default_boolean(false);
        /// For how many microseconds after a packet the thread polls for the next one before
        /// it sleeps. Applies at 7,500 to 30,000 packets per second that the kernel does not forward;
        /// there it saves 20 us of latency and uses up to a whole core. 0 disables it.
        busy_poll: Integer, default_integer(200), integers(0, 1000), unit("microseconds");
        /// With "ebpf": how many packets per second of flows that are new, or that no route takes,
        /// an interface passes to the process, on each core. More are dropped as unknown_flood.
        /// IGMP and MLD always pass. 0: no limit.
        unknown_packets: Integer, default_integer(200000), integers(0, 1000000000);
        /// With "ebpf": a folder of a BPF file system, in which programs and tables are kept, so
        /// that the kernel forwards on if mcastor ends unexpectedly, and the next mcastor continues
        /// with them. Without such a file system the kernel forwards on too, and the next mcastor
        /// starts with empty tables. "off": the kernel stops to forward when mcastor ends.
        bpffs: String, default_string(DEFAULT_BPFFS),
            range("absolute path, or `\"off\"`");
        /// How long the kernel forwards without mcastor.
        orphan_after: String, default_string("10m"), durations_ms(1000, 86_400_000);
        /// Whether another mcastor in the same network namespace may take packets from the same
        /// interfaces, to forward other streams. If both forward the same stream, each packet is
        /// sent twice.
        shared: Boolean, default_boolean(false);
    }

    /// The log.
    struct RawLog {
        /// A level, or filter directives such as "info,mcastor::settings=debug".
        level: String, default_string("info"), range(
            "`\"error\"`, `\"warn\"`, `\"info\"`, `\"debug\"`, `\"trace\"`, `\"off\"`, or filter \
             directives"
        );
        /// "text" for people; "json" for one JSON object per line.
        format: String, default_string("text"), words(&["text", "json"]);
    }

    /// Options of an interface. An interface without options needs no entry.
    struct RawInterface {
        /// A name or a pattern: * matches any characters, ? matches one.
        name: String, required(), range("interface name or pattern"), example("\"eth1\"");
        /// Only packets that arrive with a TTL (hop limit) above this value leave on the
        /// interface.
        ttl_threshold: Integer, integers(1, 255), example("3");
        /// false excludes the interface from all routes, even where a pattern matches it.
        enabled: Boolean, default_boolean(true);
        /// Sends multicast router advertisements (RFC 4286), so that snooping switches deliver
        /// all groups to the interface.
        mrdisc: Boolean, default_boolean(false);
        /// Captures packets on the interface even if no route or proxy takes them, so that
        /// `show flows --dropped` lists the streams that arrive there.
        capture: Boolean, default_boolean(false);
        /// "packet" keeps what arrives on the interface, and flows that leave on it, from being
        /// forwarded in the kernel. "auto" leaves the choice to `plane.kind`. "peer" is "auto",
        /// but a packet that leaves on a veth, such as that of a container, skips this end of it:
        /// it costs half as much, and tcpdump, nftables and tc on this end do not see it.
        plane: String, default_string("auto"), words(&["auto", "packet", "peer"]);
        version: Table(RawHostVersions), default_described("the versions of the querier"),
            example("{ igmp = 2 }");
        /// The bit rate of the streams that leave on the interface, as IP packets. A new (S,G)
        /// that would exceed it is dropped as `bandwidth`; streams that are forwarded stay.
        bandwidth: String, range("number with bit, kbit, Mbit or Gbit"), example("\"100Mbit\"");
        /// Reports the groups that are joined on the interface at this interval, for networks
        /// that never query but expect reports.
        refresh: String, durations_ms(1000, 3_600_000), example("\"60s\"");
    }

    /// The versions with which groups are joined on the interface, whatever the querier uses.
    struct RawHostVersions {
        /// The version of IGMP.
        igmp: Integer, default_described("the version of the querier"), integers(1, 3),
            example("2");
        /// The version of MLD.
        mld: Integer, default_described("the version of the querier"), integers(1, 2),
            example("1");
    }

    /// A route: packets that arrive on one interface leave on others.
    struct RawRoute {
        /// The label of the route in metrics.
        name: String, default_described("`\"FROM (SOURCE, GROUP)\"`"),
            range("visible characters, unique"), example("\"cameras\"");
        /// The ingress interface.
        from: String, required(), range("interface name or pattern"), example("\"eth0\"");
        /// The senders whose packets the route takes.
        source: String, default_described("any"), range("unicast address or prefix"),
            example("\"192.168.1.0/24\"");
        /// Senders inside `source` whose packets the route does not take.
        except_sources: Strings, default_described("`[]`"),
            range("addresses or prefixes inside `source`"),
            example("[\"192.168.1.7\", \"192.168.1.128/25\"]");
        /// The groups whose packets the route takes.
        group: String, required(), range("multicast address or prefix"),
            example("\"225.1.2.0/24\"");
        /// The egress interfaces. An empty list is a stop filter: the route takes its packets
        /// and drops them.
        to: Strings, required(), entries(0, 64),
            range("0 to 64 interface names or patterns; `[]` is a stop filter"),
            example("[\"eth1\", \"veth*\"]");
        /// The TTL (hop limit) of the packets: "decrement", "keep", or a fixed value such as
        /// { set = 8 }.
        ttl: TtlPolicy, default_string("decrement"), words(&["decrement", "keep"]),
            range("`\"decrement\"`, `\"keep\"`, `{ set = 1 }` to `{ set = 255 }`");
        /// Allows groups that must not leave their link otherwise, such as 224.0.0.0/24 and
        /// ff02::/16.
        link_local: Boolean, default_boolean(false);
        /// Forwards packets from link-local sources (169.254.0.0/16, fe80::/10) to groups with a
        /// wider scope, too. Without it they are dropped as link_local_source.
        link_local_sources: Boolean, default_boolean(false);
        /// Which IPv4 packets that are larger than the MTU of the egress are fragmented: "auto"
        /// those without DF, "always" all of them. IPv6 packets are never fragmented.
        fragment: String, default_string("auto"), words(&["auto", "always"]);
        /// Whether to join the groups on `from`, so that snooping switches deliver them: "auto"
        /// joins single groups, true also joins each group of a prefix, false joins none.
        join: JoinPolicy, default_string("auto"), words(&["auto"]),
            range("`\"auto\"`, `true`, `false`"), example("true");
        /// Drops packets that come back within half a second after they were forwarded.
        loop_guard: Boolean,
            default_described("`true` with `\"keep\"` and `{ set = … }`, else `false`"),
            example("false");
        /// "one" forwards each (S,G) from one ingress at a time, and drops the packets that
        /// arrive elsewhere. "all" forwards from every ingress: for copies that all are wanted.
        ingress: String, default_string("one"), words(&["one", "all"]);
        /// How long the active ingress of an (S,G) must be silent before another one takes over.
        takeover: String, default_string("500ms"), durations_ms(10, 3_600_000);
        /// Withholds an (S,G) from an egress while another router sends it there. false where hosts
        /// on the link are not trusted: their copies would stop the stream for the others.
        redundant: Boolean, default_boolean(true);
        /// Examines each stream, so that `show streams` says whether it is healthy and where packets
        /// were lost: as RTP, as MPEG-TS, by "sequence" numbers, only its "rate", or "auto" as what
        /// its packets are. The kernel does not forward such streams. See docs/streams.md.
        monitor: String, words(&["auto", "rtp", "ts", "sequence", "rate"]),
            default_described("not monitored"), example("\"auto\"");
        rewrite: Table(RawTranslation), range("at least one of its three keys"),
            example("{ group = \"239.1.1.1\" }");
        merge: Table(RawMerge), range("at least `with`"),
            example("{ with = \"eth1\", window = \"50ms\", by = \"rtp\" }");
    }

    /// Translates the packets of a route to another source, group or UDP destination port. With
    /// a source and a group of the other IP version, IPv4 becomes IPv6 or IPv6 becomes IPv4.
    struct RawTranslation {
        /// The new source. A prefix maps one to one and keeps the host bits.
        source: String, default_described("unchanged"),
            range("address or prefix, as many addresses as `source` of the route"),
            example("\"10.9.1.2\"");
        /// The new group. A prefix maps one to one and keeps the host bits.
        group: String, default_described("unchanged"),
            range("group or prefix, as many groups as `group` of the route"),
            example("\"239.1.1.1\"");
        /// The new UDP destination port.
        port: Integer, default_described("unchanged"), integers(1, 65535), example("5001");
    }

    /// Merges the packets that arrive on `from` with copies of them that arrive on another
    /// interface: each packet leaves once and in order, whatever one of the two paths loses
    /// (SMPTE ST 2022-7). See redundancy.md.
    struct RawMerge {
        /// The interface on which the copies arrive.
        with: String, required(), range("name of one interface"), example("\"eth1\"");
        /// The longest time by which one path may be behind the other.
        window: String, default_string("50ms"), durations_ms(1, 1000);
        /// What identifies a packet: the sequence number of RTP, that of the test packets of
        /// `mcastor send` ("sequence"), a number in the UDP payload that grows by one with each
        /// packet, or the payload as a whole, where packets leave in the order of arrival.
        by: MergeBy, default_string("rtp"), words(&["rtp", "sequence", "payload"]),
            range("`\"rtp\"`, `\"sequence\"`, `\"payload\"`, `{ offset = 4, bytes = 4 }`");
        /// The senders of the copies. The copies leave with the source of the route, if it has one.
        source: String, default_described("`source` of the route"),
            range("address or prefix, as many addresses as `source` of the route"),
            example("\"192.168.2.10\"");
        /// The groups of the copies. They leave with the group of the route.
        group: String, default_described("`group` of the route"),
            range("group or prefix, as many groups as `group` of the route"),
            example("\"239.2.1.1\"");
    }

    /// A group that is joined on an interface, whether a route forwards it or not.
    struct RawJoin {
        /// The interface to join on.
        interface: String, required(), range("interface name or pattern"), example("\"eth0\"");
        /// The only source whose packets are requested (IGMPv3, MLDv2).
        source: String, default_described("any"), range("one unicast address"),
            example("\"10.0.0.10\"");
        /// The group. A prefix joins each of its groups, at most 4096.
        group: String, required(),
            range("multicast address, or prefix of at most 4096 groups"),
            example("\"232.1.2.3\"");
    }

    /// An IGMP and MLD proxy (RFC 4605): hosts on the downstream interfaces receive from
    /// upstream the groups that they join.
    struct RawProxy {
        /// The label of the proxy in metrics.
        name: String, default_described("`\"proxy UPSTREAM\"`"),
            range("visible characters, unique"), example("\"containers\"");
        /// The interfaces on which streams arrive. With several, an (S,G) is forwarded from one
        /// at a time.
        upstream: Strings, default_described("the interface of the default route"),
            entries(1, 64), range("1 to 64 interface names or patterns"), example("[\"eth0\"]");
        /// The interfaces on which the hosts are.
        downstream: Strings, required(), entries(1, 64),
            range("1 to 64 interface names or patterns"), example("[\"br-*\", \"docker0\"]");
        /// Forwards packets of downstream senders to the upstream interface too.
        upward: Boolean, default_boolean(true);
        /// Whether to send queries: "auto" takes part in the querier election, "on" always
        /// queries, "off" only listens. A snooping bridge that receives queries stops flooding
        /// groups to receivers that never report them.
        querier: String, default_string("auto"), words(&["auto", "on", "off"]);
        version: Table(RawVersions), default_described("the defaults of its keys"),
            example("{ igmp = 3, mld = 2 }");
        /// The only groups to proxy. An empty list permits all.
        groups: Strings, default_described("any"), range("groups or prefixes"),
            example("[\"239.0.0.0/8\", \"ff3e::/32\"]");
        /// Groups that are not proxied, even where `groups` permits them.
        deny_groups: Strings, default_described("`[]`"), range("groups or prefixes"),
            example("[\"239.255.0.0/16\"]");
        /// The only sources to proxy. An empty list permits all.
        sources: Strings, default_described("any"), range("addresses or prefixes"),
            example("[\"10.0.0.0/8\", \"2001:db8::/32\"]");
        /// Sources that are not proxied, even where `sources` permits them.
        deny_sources: Strings, default_described("`[]`"), range("addresses or prefixes"),
            example("[\"10.0.0.7\"]");
        /// Ends a stream at the leave of its last member, without waiting for the answer to a
        /// query.
        fast_leave: Boolean, default_boolean(false);
        /// The TTL of forwarded packets, as in a route.
        ttl: TtlPolicy, default_string("decrement"), words(&["decrement", "keep"]),
            range("as `route.ttl`");
        /// Forwards packets from link-local sources, as in a route.
        link_local_sources: Boolean, default_boolean(false);
        /// Which packets that are larger than the MTU of the egress are fragmented, as in a
        /// route.
        fragment: String, default_string("auto"), words(&["auto", "always"]);
        /// "standard" accepts only reports with TTL 1 and a source on the link, and with router
        /// alert for MLD; "strict" requires router alert for IGMP too, as the RFCs do; "lenient"
        /// accepts reports that lack these.
        header_checks: String, default_string("standard"),
            words(&["standard", "strict", "lenient"]);
        /// Accepts reports that request every source of a group in the source-specific range
        /// (232.0.0.0/8, ff3x::/32), which RFC 4604 tells routers to ignore.
        any_source_in_ssm: Boolean, default_boolean(false);
        /// How long the active ingress of an (S,G) must be silent before another one takes over.
        takeover: String, default_string("500ms"), durations_ms(10, 3_600_000);
        /// Withholds an (S,G) from an interface while another router sends it there. false where
        /// hosts on the link are not trusted: their copies would stop the stream for the others.
        redundant: Boolean, default_boolean(true);
        /// Examines the streams, as in a route.
        monitor: String, words(&["auto", "rtp", "ts", "sequence", "rate"]),
            default_described("not monitored"), example("\"auto\"");
        timers: Table(RawProxyTimers), default_described("the defaults of its keys"),
            example("{ query_interval = \"60s\" }");
        limits: Table(RawProxyLimits), default_described("the defaults of its keys"),
            example("{ groups = 4096 }");
    }

    /// The highest versions to use. Hosts and queriers of older versions are supported in
    /// any case.
    struct RawVersions {
        /// The version of IGMP.
        igmp: Integer, default_integer(3), integers(1, 3);
        /// The version of MLD.
        mld: Integer, default_integer(2), integers(1, 2);
    }

    /// The timers of RFC 9776 section 8 and RFC 9777 section 9.
    struct RawProxyTimers {
        /// The robustness variable: one less than this many messages in a row may be lost.
        robustness: Integer, default_integer(2), integers(1, 7);
        /// The time between two general queries.
        query_interval: String, default_string("125s"), durations_ms(1000, 31_744_000);
        /// The time that hosts have to answer a general query.
        query_response_interval: String,
            default_described("`\"10s\"`, at most half the query interval"),
            durations_ms(100, 3_174_400), range("100ms to less than the query interval"),
            example("\"10s\"");
        /// The time that hosts have to answer a query after a leave.
        last_member_query_interval: String, default_string("1s"), durations_ms(100, 3_174_400);
        /// The number of queries after a leave.
        last_member_query_count: Integer, default_described("the robustness variable"),
            integers(1, 7), example("2");
        /// The number of general queries at startup.
        startup_query_count: Integer, default_described("the robustness variable"),
            integers(1, 7), example("2");
        /// The time between two general queries at startup.
        startup_query_interval: String, default_described("a quarter of the query interval"),
            durations_ms(100, 31_744_000), example("\"31s\"");
    }

    /// Limits of the state that a proxy stores for each downstream interface and IP version.
    /// Reports beyond a limit are refused and counted.
    struct RawProxyLimits {
        /// The number of groups.
        groups: Integer, default_integer(4096), integers(1, 1_000_000);
        /// The number of sources of one group.
        sources_per_group: Integer, default_integer(256), integers(1, 1_000_000);
        /// The number of reports per second, IGMP and MLD together.
        reports_per_second: Integer, default_integer(10_000), integers(1, 1_000_000);
    }

    /// Discovery between networks: what devices on one interface offer is found, and reached, from
    /// another. See docs/discovery.md.
    struct RawDiscovery {
        /// The name in `show discovery`.
        name: String, default_described("the interfaces"), range("visible characters, unique"),
            example("\"home\"");
        /// The interfaces between which offers and questions cross, in every direction.
        between: Strings, entries(1, 64), range("interface names or patterns"),
            example("[\"eth0\", \"br-*\"]");
        /// For one direction: the interfaces of the devices that offer something.
        from: Strings, entries(1, 64), range("interface names or patterns"),
            example("[\"eth0\"]");
        /// With `from`: the interfaces of the hosts that search.
        to: Strings, entries(1, 64), range("interface names or patterns"),
            example("[\"vlan20\"]");
        /// The protocols: their names, a group with a port, or "broadcast:PORT".
        protocols: Strings, required(), entries(1, 32),
            range("`\"mdns\"`, `\"ssdp\"`, `\"ws-discovery\"`, `\"llmnr\"`, `\"coap\"`, `\"knx\"`, \
                `\"slp\"`, `\"sap\"`, `\"dds\"`, `\"dds:DOMAIN\"`, `\"GROUP:PORT\"`, `\"broadcast:PORT\"`"),
            example("[\"mdns\", \"ssdp\", \"ws-discovery\"]");
        /// How unicast answers come back: "relay" through this router, from the address of the
        /// device; "direct" by the routes of the device, which receives the address of the asker.
        /// "auto" is "relay" where the protocol permits it.
        answers: String, default_string("auto"), words(&["auto", "relay", "direct"]);
        /// "rewrite" replaces addresses that the other interface cannot use, such as those of
        /// containers, or leaves the offer out. "keep" changes nothing.
        addresses: String, default_string("rewrite"), words(&["rewrite", "keep"]);
        allow: Tables(RawOfferRule), inside("discovery"), default_described("everything"),
            example("[{ service = \"_ipp._tcp\" }]");
        deny: Tables(RawOfferRule), inside("discovery"), default_described("nothing"),
            example("[{ service = \"_ssh._tcp\" }]");
        limits: Table(RawDiscoveryLimits), default_described("the defaults of its keys"),
            example("{ questions = 512 }");
    }

    /// A rule about what is offered. It matches where all its keys match; * and ? are patterns.
    struct RawOfferRule {
        /// Service type of DNS-SD.
        service: String, example("\"_googlecast._tcp\"");
        /// Instance name of DNS-SD.
        instance: String, example("\"Living Room*\"");
        /// Host name, without ".local".
        name: String, example("\"printer-*\"");
        /// Address of the device, or a prefix.
        device: String, range("address or prefix"), example("\"192.168.20.7\"");
        /// Link-layer address of the device.
        mac: String, range("six octets in hexadecimal"), example("\"02:00:00:00:00:07\"");
        /// Search target (ST) or notification type (NT) of SSDP.
        st: String, example("\"urn:*:MediaServer:*\"");
        /// A type of WS-Discovery, without its namespace.
        types: String, example("\"NetworkVideoTransmitter\"");
        /// The interface of the device.
        from: String, range("interface name or pattern"), example("\"vlan20\"");
        /// The interface of the asker.
        to: String, range("interface name or pattern"), example("\"eth0\"");
    }

    /// Limits of what strangers can create. What exceeds one is withheld and counted.
    struct RawDiscoveryLimits {
        /// The number of open questions.
        questions: Integer, default_integer(512), integers(1, 100_000);
        /// The number of open questions of one address.
        questions_per_asker: Integer, default_integer(32), integers(1, 100_000);
        /// The number of questions and announcements per second that leave on an interface.
        messages_per_second: Integer, default_integer(200), integers(1, 100_000);
        /// The number of offers that `show discovery` knows, and of askers.
        offers: Integer, default_integer(2048), integers(1, 100_000);
    }

    /// Multicast router advertisements, for interfaces with `mrdisc = true` (RFC 4286).
    struct RawMrdisc {
        /// The time between two advertisements.
        interval: String, default_string("20s"), durations_ms(4000, 180_000);
    }

    /// One end of multicast NAT.
    struct RawMnat {
        /// "egress" near the receivers, "ingress" near the senders.
        role: String, required(), words(&["ingress", "egress"]), example("\"egress\"");
        /// The server that assigns the mappings.
        server: String, required(), pattern("^https://"),
            range("https URL with a host and an optional port"),
            example("\"https://mnat.example.net:8443\"");
        /// The CA that signed the certificate of the server.
        ca: String, default_described("the CAs of the system"), absolute_path(),
            example("\"/etc/mnat/ca.pem\"");
        /// The client certificate, with its chain.
        cert: String, absolute_path(), example("\"/etc/mnat/client.pem\"");
        /// The private key of the client certificate.
        key: String, default_described("the file of `cert`"), absolute_path(),
            example("\"/etc/mnat/client.key\"");
        /// The interface on which streams arrive.
        upstream: String, required(), range("interface name"), example("\"xup0\"");
        /// The interface on which streams leave.
        downstream: String, required(), range("another interface name"), example("\"xdn0\"");
        /// The file of joined streams, one `source,group` per line. An egress reads it, an
        /// ingress writes it.
        joinfile: String, absolute_path(), example("\"/var/run/mnat/egress.sgs\"");
        /// The sources from which an egress learns the streams to request: the IGMP and MLD
        /// members on `downstream`, the joinfile, or both.
        joins: Strings, default_described("`[\"members\", \"joinfile\"]`"),
            words(&["members", "joinfile"]),
            range("`\"members\"`, `\"joinfile\"`, or both; egress only"),
            example("[\"members\", \"joinfile\"]");
        /// How long mappings stay in use that the server does not confirm.
        grace: String, default_string("5m"), durations_ms(0, 30 * 86_400_000);
    }

    /// Tunnels to and from networks without multicast (AMT, RFC 7450). See docs/amt.md.
    struct RawAmt {
        gateway: Tables(RawAmtGateway), inside("amt"), default_described("`[]`");
        relay: Tables(RawAmtRelay), inside("amt"), default_described("`[]`");
    }

    /// An interface on which multicast arrives through tunnels to relays.
    struct RawAmtGateway {
        /// The name of the interface, for `from`, `upstream` and `interface` of other tables.
        name: String, required(), range("interface name that the kernel does not use"),
            example("\"internet\"");
        /// Where relays are looked for, in this order: "driad" (AMTRELAY records of the source),
        /// "dns-sd" (a service of the search domain), "anycast", a host name, or an address.
        /// "auto" is "dns-sd", "anycast", "driad".
        relay: StringOrStrings, required(), entries(1, 16),
            range("`\"auto\"`, `\"driad\"`, `\"dns-sd\"`, `\"anycast\"`, a host name or an address, \
                each with an optional port; or a list of them"),
            example("\"driad\"");
        /// The interface on which the tunnels leave.
        interface: String, default_described("by the routes of the kernel"),
            range("interface name"), example("\"eth0\"");
        /// The IP versions of the streams. The tunnels may have either.
        families: Strings, default_described("`[\"ipv4\", \"ipv6\"]`"), words(&["ipv4", "ipv6"]),
            range("`\"ipv4\"`, `\"ipv6\"`, or both"), example("[\"ipv4\", \"ipv6\"]");
        limits: Table(RawAmtGatewayLimits), default_described("no limit"),
            example("{ bandwidth = \"100Mbit\" }");
    }

    /// Limits of a gateway.
    struct RawAmtGatewayLimits {
        /// The bit rate of the streams that arrive, as IP packets. A new (S,G) that would exceed
        /// it is left; streams that are received stay.
        bandwidth: String, range("number with bit, kbit, Mbit or Gbit"), example("\"100Mbit\"");
    }

    /// An interface on which multicast leaves through tunnels to gateways.
    struct RawAmtRelay {
        /// The name of the interface, for `to` and `downstream` of other tables.
        name: String, required(), range("interface name that the kernel does not use"),
            example("\"tunnels\"");
        /// The addresses and ports on which gateways are served.
        listen: Strings, default_described("`[\"0.0.0.0:2268\", \"[::]:2268\"]`"), entries(1, 16),
            range("addresses and ports"), example("[\"0.0.0.0:2268\", \"[::]:2268\"]");
        /// The addresses to which discovered gateways send their requests: at most one for each IP
        /// version.
        advertise: Strings, default_described("the address that was discovered"), entries(1, 2),
            range("addresses of this host"), example("[\"192.0.2.1\"]");
        /// The time after which gateways report their groups again.
        query_interval: String, default_string("125s"), durations_ms(1000, 31_744_000);
        /// The size of the largest packet inside a tunnel. Larger ones are fragmented or dropped,
        /// as on other interfaces.
        mtu: Integer, default_integer(1450), integers(576, 65_000), unit("bytes");
        /// Whether datagrams that exceed the MTU of the path are fragmented, outside the tunnel. With
        /// `false`, they are not sent, and counted in `mcastor_amt_failed_copies_total`.
        fragment: Boolean, default_boolean(true);
        limits: Table(RawAmtLimits), default_described("the defaults of its keys"),
            example("{ gateways = 10000 }");
    }

    /// Limits of a relay.
    struct RawAmtLimits {
        /// The number of gateways. Further ones are told to use another relay. When half of them
        /// exist, a /24 or /48 may have a sixteenth of them, or 16 if that is more.
        gateways: Integer, default_integer(10_000), integers(1, 1_000_000);
        /// The number of groups of one gateway, for each IP version.
        groups_per_gateway: Integer, default_integer(256), integers(1, 65_536);
        /// The number of answers per second to a /24 or /48 of senders that have no tunnel yet, and to
        /// each gateway with a tunnel.
        answers_per_prefix: Integer, default_integer(100), integers(1, 1_000_000);
        /// The number of answers per second to all senders that have no tunnel yet.
        answers: Integer, default_integer(5_000), integers(1, 1_000_000);
        /// The bit rate of the streams in all tunnels, as IP packets: each gateway counts. A new
        /// (S,G) that would exceed it is dropped as `bandwidth`; streams that are sent stay.
        bandwidth: String, range("number with bit, kbit, Mbit or Gbit"), example("\"1Gbit\"");
    }

    /// The number of flows, (S,G) pairs being forwarded, that are tracked.
    struct RawLimits {
        /// The number of flows of all interfaces together. At the limit, the flow of the same
        /// interface that is idle longest is removed.
        flows: Integer, default_integer(65_536), integers(1, 10_000_000);
        /// The seconds after its last packet when a flow is removed.
        flow_idle: Integer, default_integer(60), integers(1, 3600), unit("seconds");
        /// The number of streams that are monitored. Further ones are forwarded as usual, and
        /// counted as left out. A stream takes about 20 kB of memory.
        monitored_streams: Integer, default_integer(1000), integers(0, 100_000);
    }

    /// Monitored streams: those of groups, whichever route forwards them, and the events of all that
    /// are monitored. See docs/streams.md.
    struct RawMonitor {
        /// Groups whose streams are monitored in every route and proxy.
        groups: Strings, default_described("`[]`"), range("groups or prefixes"),
            example("[\"239.1.0.0/16\"]");
        /// How the streams of `groups` are examined, as `monitor` of a route.
        kind: String, default_string("auto"), words(&["auto", "rtp", "ts", "sequence", "rate"]);
        /// Where the UDP payload has the sequence number of streams with "sequence".
        sequence_offset: Integer, default_described("that of `mcastor send`"),
            integers(0, 65_000), unit("bytes"), example("0");
        /// The length of that number: 2, 4 or 8. It is a big-endian number that grows by one.
        sequence_bytes: Integer, default_described("4 with `sequence_offset`"), integers(2, 8),
            range("2, 4 or 8"), example("4");
        /// A stream without packets for this time is silent.
        silent_after: String, default_string("2s"), durations_ms(1000, 3_600_000);
        /// Loss is reported when more than this number of a million packets were lost in a minute.
        loss_ppm: Integer, default_integer(1000), integers(0, 1_000_000);
        /// A change of the bit rate by more than this is reported. 0: none.
        rate_percent: Integer, default_integer(50), integers(0, 1000), unit("percent");
        /// Where alerts are sent, in the format of Alertmanager.
        webhook: String, pattern("^https?://"), range("`http://HOST:PORT/PATH` or `https://`..."),
            example("\"http://127.0.0.1:9093/api/v2/alerts\"");
    }

    /// A number in the UDP payload.
    struct RawMergeField {
        /// The offset of its first byte, which is the most significant one.
        offset: Integer, required(), integers(0, 9000), example("4");
        /// Its length.
        bytes: Integer, required(), integers(2, 8), unit("bytes"), example("4");
    }

    /// A fixed TTL.
    struct RawTtlSet {
        /// The TTL (hop limit) of every packet.
        set: Integer, required(), integers(1, 255), example("8");
    }
}

// The texts of `join.group` name this number.
const _: () = assert!(MAX_JOINED_GROUPS == 4096);

/// The valid forms of a TTL policy, for error messages.
pub(super) const TTL_FORMS: &str = "\"decrement\", \"keep\" or { set = 1 to 255 }";
/// The valid forms of a join policy, for error messages.
pub(super) const JOIN_FORMS: &str = "\"auto\", true or false";

/// Returns the type of the value at `path`, and the declaration of the last key on it.
///
/// The declaration is absent at the empty path. Returns nothing where the settings have no such
/// path.
pub(super) fn find_key(path: &KeyPath) -> Option<(KeyType, Option<&'static KeyDeclaration>)> {
    let mut key_type = KeyType::Table(&RawSettings::DECLARATION);
    let mut declaration = None;
    let mut inside_entry = false;
    for segment in &path.0 {
        match (segment, key_type) {
            (PathSegment::Index(_), KeyType::Tables(_)) if !inside_entry => inside_entry = true,
            (PathSegment::Index(_), KeyType::Strings | KeyType::StringOrStrings) => {
                key_type = KeyType::String;
            }
            (PathSegment::Key(_), KeyType::Tables(_)) if !inside_entry => return None,
            (PathSegment::Key(name), _) => {
                let key = key_type.keys().iter().find(|key| key.name == name)?;
                inside_entry = false;
                key_type = key.key_type;
                declaration = Some(key);
            }
            (PathSegment::Index(_), _) => return None,
        }
    }
    Some((key_type, declaration))
}

/// The valid forms of what identifies a packet of a merge, for error messages.
pub(super) const MERGE_FORMS: &str =
    "\"rtp\", \"sequence\", \"payload\" or { offset = 4, bytes = 4 }";

/// A word, or where a number is.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a word or a table")]
pub(super) enum RawMergeBy {
    Word(String),
    Field(RawTable<RawMergeField>),
}

/// A list of strings, or one of them.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub(super) enum RawStrings {
    One(String),
    Many(Vec<Option<String>>),
}

/// `"auto"`, `true` or `false`.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a word or a boolean")]
pub(super) enum RawJoinPolicy {
    Flag(bool),
    Word(String),
}

/// `"keep"`, `{ set = 8 }`, or a bare number. The check refuses the number with a hint.
#[derive(Debug)]
pub(super) enum RawTtlPolicy {
    Word(String),
    Set(RawTtlSet),
    Number(i64),
}

impl<'de> Deserialize<'de> for RawTtlPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TtlVisitor;
        impl<'de> Visitor<'de> for TtlVisitor {
            type Value = RawTtlPolicy;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a table")
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<RawTtlPolicy, E> {
                Ok(RawTtlPolicy::Word(word.into()))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<RawTtlPolicy, E> {
                Ok(RawTtlPolicy::Number(number))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<RawTtlPolicy, E> {
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                Ok(RawTtlPolicy::Number(number))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawTtlPolicy, A::Error> {
                RawTtlSet::deserialize(MapAccessDeserializer::new(map)).map(RawTtlPolicy::Set)
            }
        }
        deserializer.deserialize_any(TtlVisitor)
    }
}

/// A table. A derived struct alone would also accept a list of its fields in order.
#[derive(Debug)]
pub(super) struct RawTable<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for RawTable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = RawTable<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawTable<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(RawTable)
            }
        }
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_key_follows_tables_and_lists() {
        let route = KeyPath::root("route");
        assert!(matches!(
            find_key(&route.index(3).key("group")),
            Some((KeyType::String, Some(key))) if key.name == "group"
        ));
        assert!(matches!(
            find_key(&route.index(0).key("to").index(1)),
            Some((KeyType::String, _))
        ));
        assert!(matches!(
            find_key(&route.index(0).key("ttl").key("set")),
            Some((KeyType::Integer, _))
        ));
        for wrong in [
            route.key("group"),
            route.index(0).index(0),
            route.index(0).key("group").index(0),
            KeyPath::root("http").index(0),
            KeyPath::root("htp"),
        ] {
            assert!(find_key(&wrong).is_none(), "{wrong}");
        }
    }

    /// serde names the fields of a struct when it refuses an unknown one. Compares these names
    /// with the declaration.
    #[test]
    fn structs_have_exactly_the_declared_keys() {
        fn fields_of_struct(tree: serde_json::Value) -> Vec<String> {
            let error = serde_json::from_value::<RawSettings>(tree)
                .unwrap_err()
                .to_string();
            assert!(error.contains("unknown field `zzz`"), "{error}");
            let names = error.split('`').skip(3).step_by(2);
            names.map(String::from).collect()
        }
        fn declared(keys: &[KeyDeclaration]) -> Vec<String> {
            keys.iter().map(|key| key.name.to_string()).collect()
        }
        let wrong = serde_json::json!({ "zzz": 0 });
        let tables = RawSettings::DECLARATION.keys;
        assert_eq!(fields_of_struct(wrong.clone()), declared(tables));
        for table in tables {
            let tree = match table.key_type {
                KeyType::Tables(_) => serde_json::json!({ table.name: [wrong] }),
                _ => serde_json::json!({ table.name: wrong }),
            };
            let keys = table.key_type.keys();
            assert_eq!(fields_of_struct(tree), declared(keys), "{}", table.name);
            for key in keys {
                if let KeyType::WordOrTable(inner) | KeyType::Table(inner) = key.key_type {
                    let tree = serde_json::json!({ table.name: [{ key.name: wrong }] });
                    assert_eq!(fields_of_struct(tree), declared(inner.keys));
                }
            }
        }
    }
}
