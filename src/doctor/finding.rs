//! The problems that `mcastor doctor` finds.

use serde::Serialize;

use crate::wire::reason_enum::reason_enum;

/// How certain it is that a problem exists and keeps packets from their receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// It was observed.
    Certain,
    /// It explains what is usually seen.
    Likely,
    /// It matters in some networks only.
    Possible,
}

reason_enum! {
    /// Why multicast does not arrive. Its label is an anchor of docs/troubleshooting.md.
    enum Cause;
    /// The interface does not exist in this network namespace.
    InterfaceMissing = "interface-missing",
    /// The interface is down.
    InterfaceDown = "interface-down",
    /// The interface has no carrier: the cable, or the other end, is missing or down.
    NoCarrier = "no-carrier",
    /// The interface does not have the flag MULTICAST, so the kernel joins no group on it.
    NoMulticastFlag = "no-multicast-flag",
    /// The running mcastor drops packets.
    PacketsDropped = "packets-dropped",
    /// The running mcastor waits for interfaces of a route, join or proxy.
    InterfacePending = "interface-pending",
    /// The running mcastor has neither routes nor proxies, so it forwards nothing.
    NothingConfigured = "nothing-configured",
    /// No host has joined the group on any interface that can be seen from here.
    NoReport = "no-report",
    /// The kernel drops packets whose source it would not reach over the interface they arrive on.
    ReversePathFilter = "reverse-path-filter",
    /// A program that joins or sends without naming an interface uses another one.
    MulticastRoute = "multicast-route",
    /// The firewall drops IGMP, so hosts cannot join groups.
    FirewallDropsIgmp = "firewall-drops-igmp",
    /// The firewall drops multicast packets.
    FirewallDropsMulticast = "firewall-drops-multicast",
    /// The firewall drops answers to discovery that arrive in fragments.
    DiscoveryFragments = "discovery-fragments",
    /// A rule of the firewall changes the TTL, but has no effect on what mcastor forwards.
    TtlRule = "ttl-rule",
    /// Bridged packets pass the rules of iptables.
    BridgeNetfilter = "bridge-netfilter",
    /// A network of a container engine is internal: its firewall rule drops multicast packets.
    InternalNetwork = "internal-network",
    /// A bridge delivers groups only to ports with members, and no querier keeps these alive.
    SnoopingWithoutQuerier = "snooping-without-querier",
    /// A bridge sends queries, but delivers all groups to all ports.
    QuerierWithoutSnooping = "querier-without-snooping",
    /// Another program routes multicast in the kernel.
    OtherRouter = "other-router",
    /// Another forwarder sends the same streams to an egress.
    DuplicateForwarder = "duplicate-forwarder",
    /// Two interfaces are in the same subnet.
    SameSubnet = "same-subnet",
    /// An egress has a smaller MTU than the ingress of its route.
    MtuMismatch = "mtu-mismatch",
    /// Programs of this host have joined as many groups as the kernel permits for one socket.
    MaxMemberships = "max-memberships",
    /// The socket of the container engine cannot be used.
    EngineSocket = "engine-socket",
    /// The kernel drops captured packets, because mcastor is too slow.
    CaptureDrops = "capture-drops",
    /// The kernel drops packets before any program sees them.
    BacklogDrops = "backlog-drops",
    /// This process lacks a capability that mcastor needs.
    MissingCapability = "missing-capability",
    /// A mcastor that this user starts cannot forward in the kernel. It forwards with packet
    /// sockets, which takes more CPU.
    PacketPlane = "packet-plane",
    /// Packet sockets are not permitted here.
    NoPacketSocket = "no-packet-socket",
    /// The kernel is too old for a feature.
    OldKernel = "old-kernel",
    /// The kernel drops UDP packets whose checksum is wrong.
    ChecksumErrors = "checksum-errors",
    /// The clock was set while this command ran.
    ClockStep = "clock-step",
    /// Packets of the probe did not arrive.
    ProbeLost = "probe-lost",
}

/// A problem that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The label of the problem.
    pub problem: &'static str,
    /// How certain it is.
    pub certainty: Certainty,
    /// What it means.
    pub meaning: &'static str,
    /// What was seen.
    pub evidence: String,
    /// What to do, with a command if there is one.
    pub remedy: String,
}

impl Finding {
    /// Returns a finding.
    pub fn new(
        problem: Cause,
        certainty: Certainty,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            problem: problem.label(),
            certainty,
            meaning: problem.meaning(),
            evidence: evidence.into(),
            remedy: remedy.into(),
        }
    }
}
