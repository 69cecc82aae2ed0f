//! All messages between actors.
//!
//! ```text
//!                     LinksChanged                    Publish
//!   links ----------------------------> routing ----------------------> supervisor
//!     ^-------- AnnounceLinks ----------| | | ^                           | starts and stops
//!                                       | | | |                           v every actor
//!   docker ----- AliasesChanged ------->| | | |       interface --- CaptureOpened ---> supervisor
//!                                         | | |           |
//!   joins  <--- SetJoins, UpdateJoins ----| | |           |-- Transmit ----> forwarder
//!          ---- Republish ----------------->| |           |
//!          <--- HostMessages, HostMessagesLost ---|-|-----|
//!                                           | |           |-- MembershipMessages, MessagesLost --|
//!   membership <-- ServeInterfaces ---------| |                                                |
//!              -- MembershipStarted, MembershipChanged, LearningComplete -> routing membership <--|
//!                                             |
//!   amt <------ ServeTunnels --- routing      joins --- TunnelJoins ---> amt
//!       ------- TunnelsStarted, MembershipChanged -> routing
//!       ------- ReportTunnelJoins -----> joins
//!
//!   discovery <---- DiscoveryLinks ----- routing
//!             ----- DiscoveryStarted --> routing
//!
//!   streams --- SendAlerts ---> webhook
//!
//!   mnat ------ MnatRoutesChanged, ReportMembers
//!        <----- MembersChanged, RoutesRefused, RetryRefused --- routing
//!
//!   frontend and app:
//!     routing    ApplyChange, ReplaceRules, Barrier, QueryRouting
//!     joins      QueryHostGroups, KeepMemberships
//!     membership QueryMembers, QueryQueriers, QueryRefused
//!     mnat       QueryMnat, ConfigureMnat
//!     amt        QueryTunnels, ConfigureTunnels, HandOverRelays, ResumeRelays,
//!                CountCopies
//!     discovery  QueryDiscovery, ConfigureDiscovery
//!     interface  QueryFlows, QueryDrops, FlushFlows
//!     forwarder  QueryDrops
//!     supervisor Shutdown, RestartChild, PanicIn, ShareCaptures, PauseForwarding,
//!                ResumeForwarding
//!     supervisor to interface: ShareCapture, PauseCapture, ResumeCapture
//!     joins      QueryJoinsApplied          metrics  SetAccepting
//! ```
//!
//! Except for [`QueryDrops`], each message type has one receiver. Except for [`Transmit`],
//! [`MembershipMessages`], [`HostMessages`] and [`SendAlerts`], messages are as rare as changes of the
//! configuration, the interfaces and the memberships. So they are sent with `do_send`, which
//! ignores the mailbox limit: a lost one would leave two actors with different views.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use ipnet::IpNet;

use crate::amt::{GatewayStatus, SavedRelay, TunnelStatus};
use crate::discovery::askers::OpenQuestion;
use crate::discovery::config::DiscoveryRule;
use crate::discovery::observed::{Observation, ObservationKey};
use crate::forward::drop_history::Dropped;
use crate::membership::{GroupStatus, Protocol, QuerierStatus};
use crate::mnat::{Channel, Config, MappingReport, RouteStep};
use crate::model::{
    Aliases, Group, IfName, InterfaceId, Links, PlaneName, ProxyRule, RouteName, SourceFilter,
    Webhook,
};
use crate::pipeline::{CaptureHandle, CapturePosition, Messages, SharedBatch, Slot};
use crate::sys::datagram::DatagramSocket;
use crate::table::RibError;
use crate::table::flows::{FlowFilter, FlowRecord};
use crate::table::joins::DesiredMemberships;
use crate::table::rib_change::RibChange;
use crate::table::{EgressId, Fib, ReportOptions, Rib};

/// Routing to supervisor: a snapshot to forward by.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish {
    /// The forwarding table.
    pub fib: Arc<Fib>,
    /// The links that it was built for; `None` if the interfaces are those of the former table.
    pub links: Option<Arc<Links>>,
}

/// Interface to supervisor: whether the capture could be opened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CaptureOpened {
    /// The interface.
    pub index: InterfaceId,
    /// The error of the kernel, if any.
    pub result: io::Result<()>,
}

/// App to supervisor: stops the actors in the order in which packets flow. The answer comes when
/// every packet that was received is sent or counted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// App to supervisor: starts a new instance of the child with this role. A former instance has
/// received [`Stop`](super::supervision::Stop).
#[derive(Message)]
#[rtype(result = "()")]
pub struct RestartChild(pub &'static str);

/// App to the HTTP server: whether it accepts connections. Those that it has accepted continue.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetAccepting(pub bool);

/// App to supervisor: returns the open captures for another process, and keeps their modes until
/// [`ResumeForwarding`]. The error names an interface whose capture cannot be passed on.
#[derive(Message)]
#[rtype(result = "Result<Vec<(InterfaceId, CaptureHandle)>, String>")]
pub struct ShareCaptures;

/// Supervisor to interface: returns the open capture for another process. `None` if the actor only
/// recognises other forwarders.
#[derive(Message)]
#[rtype(result = "io::Result<Option<CaptureHandle>>")]
pub struct ShareCapture;

/// App to supervisor: stops to read all captures. The answer comes when every packet that was read
/// is sent or counted: where another process continues.
#[derive(Message)]
#[rtype(result = "Vec<(InterfaceId, CapturePosition)>")]
pub struct PauseForwarding;

/// Supervisor to interface: stops to read the capture. The answer comes when every packet that was
/// read is sent or counted.
#[derive(Message)]
#[rtype(result = "Option<CapturePosition>")]
pub struct PauseCapture;

/// App to supervisor: ends [`PauseForwarding`] and [`ShareCaptures`]. This process forwards again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResumeForwarding {
    /// Whether another process may have read the captures, so that they are opened again.
    pub reopen: bool,
}

/// Supervisor to interface: ends [`PauseCapture`] and [`ShareCapture`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResumeCapture {
    /// Whether another process may have read the capture, so that it is opened again.
    pub reopen: bool,
}

/// App to joins: whether the kernel has all memberships that were requested so far.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct QueryJoinsApplied;

/// App to supervisor, in tests: makes the actor with this `actor` label panic. If several have
/// the label, the one of the interface with the lowest index panics.
#[derive(Message)]
#[rtype(result = "Result<String, String>")]
pub struct PanicIn(pub String);

/// Links to routing: all interfaces of the kernel.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LinksChanged(pub Links);

/// Routing to links: send [`LinksChanged`], because routing was restarted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AnnounceLinks;

/// Docker to routing: the container engine's names of interfaces changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AliasesChanged;

/// Joins to routing: publish again without a change, because the sender was restarted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Republish;

/// An interface on which this host may join groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoiningInterface {
    /// Current name.
    pub name: IfName,
    /// Size of the largest IP packet in bytes.
    pub mtu: u32,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// The addresses of this host.
    pub addresses: Vec<IpAddr>,
    /// Whether the membership actor also receives, and counts, the messages that arrive here.
    pub serves_members: bool,
    /// How this host reports its memberships.
    pub reports: ReportOptions,
    /// The plane that serves it; `None` for the default plane.
    pub plane: Option<PlaneName>,
}

/// Routing to joins: all memberships of this host.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetJoins {
    /// The memberships.
    pub joins: DesiredMemberships,
    /// The links that are up and on which rules may join groups.
    pub interfaces: BTreeMap<InterfaceId, JoiningInterface>,
}

/// Routing to joins: memberships that changed on the links of the last [`SetJoins`]. A filter
/// that matches no source ends a membership.
#[derive(Message)]
#[rtype(result = "()")]
pub struct UpdateJoins(pub DesiredMemberships);

/// An interface on which the membership actor serves members or announces the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedInterface {
    /// Current name.
    pub name: IfName,
    /// Size of the largest IP packet in bytes.
    pub mtu: u32,
    /// Addresses of this host.
    pub addresses: Vec<IpAddr>,
    /// The subnets, and the peers of a point-to-point link.
    pub on_link: Vec<IpNet>,
    /// The proxy that has it as a downstream interface.
    pub proxy: Option<Arc<ProxyRule>>,
    /// Interval of multicast router advertisements (RFC 4286); `None` sends none.
    pub mrdisc: Option<Duration>,
    /// The plane that serves it; `None` for the default plane.
    pub plane: Option<PlaneName>,
}

/// Routing to membership: all interfaces to serve. They exist and are up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ServeInterfaces {
    /// The interfaces.
    pub interfaces: BTreeMap<InterfaceId, ServedInterface>,
    /// Whether routing was restarted and needs the memberships of every group.
    pub all: bool,
}

/// Interface to membership: captured IGMP, MLD and multicast router discovery messages.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MembershipMessages {
    /// The interface that received them.
    pub index: InterfaceId,
    /// The messages.
    pub messages: Messages,
}

/// Interface to joins: captured IGMP and MLD messages of an interface on which this host may join
/// groups.
#[derive(Message)]
#[rtype(result = "()")]
pub struct HostMessages {
    /// The interface that received them.
    pub index: InterfaceId,
    /// The messages.
    pub messages: Messages,
}

/// Interface to joins: messages were lost, or may have been. A query may be among them.
#[derive(Message)]
#[rtype(result = "()")]
pub struct HostMessagesLost {
    /// The interface.
    pub index: InterfaceId,
}

/// App to joins, before [`Shutdown`]: another process continues the memberships of this host, so
/// they end without a leave, and the keeper holds the sockets until then.
#[derive(Message)]
#[rtype(result = "()")]
pub struct KeepMemberships;

/// Interface to membership: membership messages were lost, or may have been. A report may be among
/// them.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MessagesLost {
    /// The interface.
    pub index: InterfaceId,
}

/// Routing to AMT: the proxies whose downstream interfaces are relays. The answer are
/// [`MembershipChanged`] messages with all members.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ServeTunnels(pub BTreeMap<InterfaceId, Arc<ProxyRule>>);

/// AMT to routing: the AMT actor was started and knows no members. Requests [`ServeTunnels`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct TunnelsStarted;

/// Joins to AMT: memberships of this host on a tunnel interface.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TunnelJoins {
    /// The interface.
    pub index: InterfaceId,
    /// Whether all memberships are listed, so that others have ended.
    pub is_complete: bool,
    /// Filters by group. A filter that matches no source ends a membership.
    pub filters: Vec<(Group, SourceFilter)>,
}

/// AMT to joins: send all [`TunnelJoins`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReportTunnelJoins;

/// App to AMT: `RouterContext::amt` changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConfigureTunnels;

/// Upgrade to AMT: hands the relays over to another process. Until [`ResumeRelays`], the messages of
/// gateways wait in the sockets. The data path goes on.
#[derive(Message)]
#[rtype(result = "Vec<HandedOverRelay>")]
pub struct HandOverRelays;

/// Upgrade to AMT: serves the gateways again, because no other process does.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResumeRelays;

/// Upgrade to AMT: adds what the data path has counted to the metrics.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CountCopies;

/// A relay for another process.
pub struct HandedOverRelay {
    /// The tunnel interface.
    pub interface: IfName,
    /// Tunnels and secrets.
    pub saved: SavedRelay,
    /// The sockets.
    pub sockets: Vec<Arc<DatagramSocket>>,
}

/// Frontend to AMT: the tunnels.
#[derive(Message)]
#[rtype(result = "Vec<TunnelReport>")]
pub struct QueryTunnels;

/// Routing to discovery: the usable links, with the names of the container engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DiscoveryLinks(pub Arc<Links>);

/// Discovery to routing: the discovery actor was started and knows no links.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DiscoveryStarted;

/// App to discovery: `RouterContext::discovery` changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConfigureDiscovery;

/// Frontend to discovery: what was offered, asked and withheld.
#[derive(Message)]
#[rtype(result = "Vec<DiscoveryReport>")]
pub struct QueryDiscovery;

/// What one `[[discovery]]` has done.
#[derive(Debug, Clone)]
pub struct DiscoveryReport {
    /// The rule.
    pub rule: DiscoveryRule,
    /// The links of devices and of askers that exist.
    pub links: [Vec<IfName>; 2],
    /// The offers, the latest first.
    pub offers: Vec<ObservationReport>,
    /// What was asked for, by asker, the latest first.
    pub asked: Vec<ObservationReport>,
    /// The open questions.
    pub questions: Vec<QuestionReport>,
}

/// An offer or a question that was seen.
#[derive(Debug, Clone)]
pub struct ObservationReport {
    /// The link of the host, and the link where the offer is seen or the question is asked.
    pub ends: [IfName; 2],
    /// Protocol, host, and what it offers or asks for.
    pub key: ObservationKey,
    /// The station, the result, and when.
    pub observation: Observation,
}

/// An open question.
#[derive(Debug, Clone)]
pub struct QuestionReport {
    /// The link of the asker, and the link where the question was asked.
    pub ends: [IfName; 2],
    /// Our port, to which devices answer.
    pub port: u16,
    /// Who asked what, and the answers so far.
    pub question: OpenQuestion,
}

/// A tunnel.
#[derive(Debug, Clone)]
pub struct TunnelReport {
    /// The tunnel interface.
    pub interface: IfName,
    /// The far end.
    pub end: TunnelEnd,
}

/// The far end of a tunnel.
#[derive(Debug, Clone)]
pub enum TunnelEnd {
    /// A relay, with the packets and bytes that it sent.
    Relay(TunnelStatus, (u64, u64)),
    /// A gateway.
    Gateway(GatewayStatus),
}

/// Membership or AMT to routing: memberships behind an interface changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MembershipChanged {
    /// The interface.
    pub index: InterfaceId,
    /// The changed groups. A filter that matches no source means that the group has no members.
    pub changes: Vec<(Group, SourceFilter)>,
}

/// Membership to routing: the membership actor was started and knows no members.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MembershipStarted;

/// Membership to routing: since [`MembershipStarted`], every host has been queried and has had the
/// time to answer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LearningComplete;

/// MNAT to routing: changes of the routes of multicast NAT.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MnatRoutesChanged {
    /// Interface on which packets arrive.
    pub upstream: IfName,
    /// Interface on which packets leave.
    pub downstream: IfName,
    /// Whether the steps list every route, so that routing removes all other MNAT routes.
    pub replace_all: bool,
    /// The changes, in order.
    pub steps: Vec<RouteStep>,
}

impl MnatRoutesChanged {
    /// Returns a message that removes every MNAT route.
    pub fn remove_all(config: &Config) -> Self {
        Self {
            upstream: config.upstream.clone(),
            downstream: config.downstream.clone(),
            replace_all: true,
            steps: Vec::new(),
        }
    }
}

/// MNAT to routing: send [`MembersChanged`] with all members of the downstream interface.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReportMembers;

/// Routing to MNAT: all streams that members behind the downstream interface joined.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MembersChanged(pub BTreeSet<Channel>);

/// Routing to MNAT: MNAT routes that the routing table refused.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RoutesRefused {
    /// Whether the list is complete, so that no other route is refused.
    pub complete: bool,
    /// Names of the routes and the reasons.
    pub refused: Vec<(RouteName, String)>,
}

/// Routing to MNAT: other routes changed, so send the refused routes again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RetryRefused;

/// App to MNAT: new settings with the same role as before. `None` removes the routes and stops
/// the actor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConfigureMnat(pub Option<Arc<Config>>);

/// Interface to forwarder: the packets of a batch that leave on its egress interface.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Transmit {
    /// The forwarding table that the packets were switched by.
    pub fib: Arc<Fib>,
    /// The egress in this forwarding table.
    pub egress: EgressId,
    /// The bytes of the batch.
    pub batch: Arc<SharedBatch>,
    /// The packets.
    pub slots: Vec<Slot>,
    /// Dropped when the packets are sent. Its reference count tells the interface actor how many
    /// of its batches wait.
    pub waiting: Arc<()>,
}

/// Batches of one interface actor that may wait for a busy egress. A waiting batch may hold a
/// block of the capture ring, so busy egresses must not hold all blocks.
pub const MAX_WAITING_BATCHES: usize = 8;

/// App to routing: replaces all rules, as after a reload of the settings.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReplaceRules(pub Rib);

/// Frontend to routing: changes one rule. Answers with a sentence that says what changed.
#[derive(Message)]
#[rtype(result = "Result<String, RibError>")]
pub struct ApplyChange(pub RibChange);

/// Frontend to routing: answers when the snapshot in force contains every change that routing
/// received before this message.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Barrier;

/// Frontend to routing: the tables of routing.
#[derive(Message)]
#[rtype(result = "RoutingTables")]
pub struct QueryRouting;

/// The answer to [`QueryRouting`].
#[derive(MessageResponse)]
pub struct RoutingTables {
    /// The rules.
    pub rib: Arc<Rib>,
    /// The interfaces, with the names of the container engine.
    pub links: Arc<Links>,
    /// The forwarding table that was published last.
    pub fib: Arc<Fib>,
    /// The names of the container engine.
    pub aliases: Arc<Aliases>,
}

/// Streams to webhook: a request with alerts. It is dropped when too many wait.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SendAlerts {
    /// Where the request is sent.
    pub webhook: Webhook,
    /// The alerts in JSON.
    pub body: String,
}

/// Frontend to joins: the memberships of this host.
#[derive(Message)]
#[rtype(result = "Vec<HostGroup>")]
pub struct QueryHostGroups;

/// A group that this machine joined as a host.
#[derive(Debug, Clone)]
pub struct HostGroup {
    /// The interface.
    pub index: InterfaceId,
    /// Its name, if the link is up.
    pub interface: Option<IfName>,
    /// The group.
    pub group: Group,
    /// The requested sources.
    pub filter: SourceFilter,
    /// Why it is not reported, or why routers may ignore the reports.
    pub error: Option<String>,
    /// The version of the reports.
    pub version: Option<&'static str>,
}

/// Frontend to membership: the groups with members.
#[derive(Message)]
#[rtype(result = "Vec<MemberGroup>")]
pub struct QueryMembers;

/// A group with members behind a downstream interface.
#[derive(Debug, Clone)]
pub struct MemberGroup {
    /// The downstream interface.
    pub interface: IfName,
    /// The protocol of the members.
    pub protocol: Protocol,
    /// The state of the group.
    pub status: GroupStatus,
}

/// Frontend to membership: the querier of each downstream interface and protocol.
#[derive(Message)]
#[rtype(result = "BTreeMap<InterfaceId, Vec<(Protocol, QuerierStatus)>>")]
pub struct QueryQueriers;

/// Frontend to membership: the refused messages that name a group.
#[derive(Message)]
#[rtype(result = "Vec<RefusedMessages>")]
pub struct QueryRefused {
    /// The group.
    pub group: Group,
}

/// Refused messages that name the same group, for one reason, on one interface.
#[derive(Debug, Clone)]
pub struct RefusedMessages {
    /// The interface.
    pub interface: IfName,
    /// The label of the reason.
    pub reason: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What can be done; `None` if nothing needs to be done.
    pub remedy: Option<&'static str>,
    /// Number of messages.
    pub messages: u64,
    /// The sender of the last one, if it has a valid address.
    pub last_sender: Option<IpAddr>,
    /// How long ago the last one was.
    pub last: Duration,
}

/// Frontend to MNAT: its state.
#[derive(Message)]
#[rtype(result = "MnatStatus")]
pub struct QueryMnat;

/// The answer to [`QueryMnat`].
#[derive(MessageResponse)]
pub struct MnatStatus {
    /// The settings in force.
    pub config: Arc<Config>,
    /// Whether the server answers.
    pub is_up: bool,
    /// The last error of the server, until the next success.
    pub error: Option<String>,
    /// The mapped and the requested streams.
    pub mappings: Vec<MappingReport>,
    /// Whether routing has received the routes of the mappings.
    pub are_routes_sent: bool,
}

/// Most flows that one [`QueryFlows`] examines. At about 30 ns for each, the data thread is
/// occupied for less than the time between two batches.
pub const FLOWS_PER_QUERY: usize = 1024;

/// Frontend to interface: the next flows, at most [`FLOWS_PER_QUERY`] of them.
#[derive(Message)]
#[rtype(result = "FlowPage")]
pub struct QueryFlows {
    /// The position of the first flow to examine: 0, or [`FlowPage::next`].
    pub position: usize,
    /// The flows to return.
    pub filter: FlowFilter,
}

/// The answer to [`QueryFlows`]: plain data, which the frontend renders.
#[derive(MessageResponse)]
pub struct FlowPage {
    /// The interface.
    pub index: InterfaceId,
    /// Its name.
    pub interface: IfName,
    /// The flows.
    pub flows: Vec<FlowRecord>,
    /// Position of the next page; `None` after the last flow.
    pub next: Option<usize>,
}

/// Frontend to interface or forwarder: what was dropped there, at most
/// [`MAX_DROP_KEYS`](crate::forward::drop_history::MAX_DROP_KEYS) records.
#[derive(Message)]
#[rtype(result = "DropPage")]
pub struct QueryDrops;

/// The answer to [`QueryDrops`]: plain data, which the frontend renders.
#[derive(MessageResponse)]
pub struct DropPage {
    /// The ingress for an interface actor, the egress for a forwarder.
    pub interface: IfName,
    /// When the flows of the interface were last flushed, in milliseconds of the monotonic clock.
    pub flushed_ms: u64,
    /// What was dropped.
    pub drops: Vec<Dropped>,
}

/// Frontend to interface: ends all flows. Answers with their number.
#[derive(Message)]
#[rtype(result = "u64")]
pub struct FlushFlows;
