//! Discovery between networks: asks the questions of one link on others, and brings the answers back.
//!
//! The machine in [`discovery`](crate::discovery) decides; this actor owns its clock and its sockets.
//! Discovery is control traffic: few packets, all of them bounded, so each one passes through the
//! actor. The data path does not take part.

mod fragmented_answers;
mod sockets;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::StreamExt;
use tracing::{info, warn};

use self::fragmented_answers::FragmentedAnswers;
use self::sockets::{FrameBatch, LinkSockets, ReservedPorts};
use crate::actors::child::ChildStart;
use crate::actors::messages::{
    ConfigureDiscovery, DiscoveryLinks, DiscoveryReport, DiscoveryStarted, ObservationReport,
    QueryDiscovery, QuestionReport, RestartChild,
};
use crate::actors::shared::{DiscoverySettings, RouterContext};
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::actors::supervisor::Supervisor;
use crate::discovery::askers::AnswerPort;
use crate::discovery::link_table::link_table;
use crate::discovery::observed::{Observation, ObservationKey, ObservationTable};
use crate::discovery::protocol::DiscoveryProtocol;
use crate::discovery::relay::DiscoveryRelay;
use crate::discovery::relayed_message::{DiscoveryMessage, OutgoingMessage};
use crate::model::{IfName, InterfaceId, Links};
use crate::sys::packet::Frame;
use crate::wire::offload::Offload;
use crate::wire::udp::{UdpDatagram, first_fragment_destination};

/// The `actor` label of the discovery actor.
pub const ACTOR_NAME: &str = "discovery";

/// Interval at which questions expire, metrics are set, and sockets are tried again.
const TICK: Duration = Duration::from_millis(500);
/// When a port is read after the first fragment of an answer: the kernel reassembles it.
const READ_AFTER_FRAGMENT: [Duration; 3] = [
    Duration::from_millis(5),
    Duration::from_millis(50),
    Duration::from_millis(500),
];
/// Datagrams that a link can carry without fragments arrive as packets, and are not read again.
const MIN_REASSEMBLED: usize = 1232;
/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct DiscoveryActor {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    settings: Arc<DiscoverySettings>,
    relay: DiscoveryRelay,
    links: Arc<Links>,
    sockets: BTreeMap<InterfaceId, LinkSockets>,
    ports: ReservedPorts,
    fragmented: FragmentedAnswers,
    /// The last error of opening the sockets of a link.
    errors: BTreeMap<InterfaceId, String>,
}

impl DiscoveryActor {
    /// Returns an actor for the settings in force; `None` without `[[discovery]]`, and in a process
    /// that replaces another one, which still takes part.
    pub fn from_settings(start: &ChildStart) -> Option<Self> {
        let context = start.context();
        let settings = context.discovery.load_full();
        if settings.rules.is_empty() || !context.gate.is_open() {
            return None;
        }
        Some(Self {
            context,
            death_guard: start.death_guard(),
            relay: DiscoveryRelay::new(settings.rules.clone()),
            settings,
            links: Arc::default(),
            sockets: BTreeMap::new(),
            ports: ReservedPorts::default(),
            fragmented: FragmentedAnswers::default(),
            errors: BTreeMap::new(),
        })
    }

    /// Applies the links: opens the sockets of new ones, and closes those of links that are gone.
    fn apply_links(&mut self, ctx: &mut Context<Self>) {
        let rules = &self.settings.rules;
        let table = link_table(&self.links, |link| rules.iter().any(|rule| rule.uses(link)));
        let published = self.context.aliases.load().published.clone();
        self.relay.set_links(table, published, &mut self.ports);
        let links = self.relay.links();
        self.sockets.retain(|link, _| links.contains_key(link));
        self.errors.retain(|link, _| links.contains_key(link));
        self.open_sockets(ctx);
    }

    fn open_sockets(&mut self, ctx: &mut Context<Self>) {
        let mut protocols = self.settings.rules.iter().flat_map(|rule| &rule.protocols);
        let mut ports: Vec<u16> = protocols.by_ref().map(|protocol| protocol.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        for (id, link) in self.relay.links() {
            if self
                .sockets
                .get(id)
                .is_some_and(|sockets| sockets.ports == ports)
            {
                continue;
            }
            let Some(index) = id.ifindex() else { continue };
            let name = &link.link.name;
            match LinkSockets::open(index, link.link.mtu, self.settings.mark, ports.clone()) {
                Ok((sockets, stream, token)) => {
                    let id = *id;
                    let frames = stream.take_until(async move { token.cancelled().await });
                    ctx.add_stream(frames.map(move |batch| FramesOfLink { id, batch }));
                    self.sockets.insert(id, sockets);
                    self.errors.remove(&id);
                    info!(interface = %name, "discovery: taking part on {name}");
                }
                Err(e) => {
                    let error = e.to_string();
                    if self.errors.get(id) != Some(&error) {
                        warn!(interface = %name, "discovery: cannot receive on {name}: {e}; trying again");
                        self.errors.insert(*id, error);
                    }
                }
            }
        }
    }

    /// Handles a message, and sends what follows from it.
    fn handle_message(&mut self, now: Instant, received: &DiscoveryMessage<'_>) {
        let messages = self.relay.handle(now, received, &mut self.ports);
        messages.iter().for_each(|message| self.send(message));
        self.count_withheld();
    }

    fn send(&mut self, message: &OutgoingMessage) {
        let sent = match self.sockets.get(&message.link) {
            Some(sockets) => sockets.send(message),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match sent {
            Ok(()) => {
                let (protocol, kind) = message.kind;
                let families = &self.context.catalog.discovery;
                families.count_message(protocol.label(), kind);
            }
            Err(_) => self.relay.note_send_failure(message),
        }
    }

    fn count_withheld(&mut self) {
        let families = &self.context.catalog.discovery;
        for withheld in self.relay.take_withheld() {
            let (protocol, reason) = (withheld.protocol.label(), withheld.reason.label());
            families.count_withheld(protocol, withheld.kind, reason);
        }
    }

    fn handle_frame(
        &mut self,
        link: InterfaceId,
        frame: &Frame,
        bytes: &[u8],
        ctx: &mut Context<Self>,
    ) {
        // A tag belongs to a VLAN interface, where the frame arrives again.
        if frame.truncated || frame.vlan.is_some_and(|vlan| vlan != 0) {
            return;
        }
        let is_complete = match frame.offload {
            Offload::None => true,
            Offload::Checksum { .. } => false,
            // Several datagrams at once are no discovery.
            Offload::UdpSegments { .. } | Offload::Unknown => return,
        };
        let Some(datagram) = UdpDatagram::parse(bytes, is_complete) else {
            if let Some(destination) = first_fragment_destination(bytes) {
                self.read_later(link, destination, ctx);
            }
            return;
        };
        let received = DiscoveryMessage {
            link,
            station: frame.sender,
            is_of_this_host: frame.outgoing,
            datagram,
        };
        self.handle_message(Instant::now(), &received);
    }

    /// Reads the port of an open question after a first fragment to it, when the kernel has reassembled
    /// the answer.
    fn read_later(&mut self, link: InterfaceId, destination: SocketAddr, ctx: &mut Context<Self>) {
        let port = AnswerPort {
            link,
            address: destination.ip(),
            port: destination.port(),
        };
        if self.ports.get(&port).is_some() && self.fragmented.note_fragment(port) {
            schedule_reads(port, ctx);
        }
    }

    /// Reads the answers at a port that arrived in fragments.
    fn read_port(&mut self, port: AnswerPort) {
        // Bounds the work; further datagrams are read the next time.
        const MAX_DATAGRAMS: usize = 64;
        for _ in 0..MAX_DATAGRAMS {
            let Some(reservation) = self.ports.get(&port) else {
                return;
            };
            let Some((payload, source)) = reservation.receive() else {
                return;
            };
            if payload.len() < MIN_REASSEMBLED {
                continue;
            }
            let datagram = UdpDatagram {
                source,
                destination: SocketAddr::new(port.address, port.port),
                ttl: 1,
                payload: &payload,
            };
            let received = DiscoveryMessage {
                link: port.link,
                station: None,
                is_of_this_host: false,
                datagram,
            };
            self.handle_message(Instant::now(), &received);
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.relay.expire(Instant::now(), &mut self.ports);
        self.open_sockets(ctx);
        let rules = self.settings.rules.iter();
        let mut labels: BTreeMap<&str, (usize, usize)> = rules
            .flat_map(|rule| &rule.protocols)
            .map(|protocol| (protocol.label(), (0, 0)))
            .collect();
        let mut count = |protocol: DiscoveryProtocol, is_question: bool| {
            let entry = labels.entry(protocol.label()).or_default();
            match is_question {
                true => entry.0 += 1,
                false => entry.1 += 1,
            }
        };
        for (_, question) in self.relay.questions().iter() {
            count(question.asker.protocol, true);
        }
        for (key, _) in self.relay.offers().iter() {
            count(key.protocol, false);
        }
        let families = &self.context.catalog.discovery;
        for (label, (questions, offers)) in labels {
            families.set_known(label, questions, offers);
        }
    }

    fn end(&mut self) {
        self.relay.close(&mut self.ports);
        self.sockets.clear();
        self.death_guard.disarm();
    }

    fn reports(&self) -> Vec<DiscoveryReport> {
        let links = self.relay.links();
        let name = |id: InterfaceId| links.get(&id).map(|link| link.link.name.clone());
        let report = |(position, rule): (usize, &crate::discovery::config::DiscoveryRule)| {
            let covers = |device: InterfaceId, asker: InterfaceId| {
                let ends = links.get(&device).zip(links.get(&asker));
                ends.is_some_and(|(device, asker)| rule.covers(&device.link, &asker.link))
            };
            let seen = |table: &ObservationTable, is_covered: &dyn Fn(&ObservationKey) -> bool| {
                let of_protocol = |key: &ObservationKey| rule.protocols.contains(&key.protocol);
                let seen = table.iter();
                let seen = seen.filter(|(key, _)| of_protocol(key) && is_covered(key));
                let report = |(key, observation): (&ObservationKey, &Observation)| {
                    Some(ObservationReport {
                        ends: [name(key.from)?, name(key.to)?],
                        key: key.clone(),
                        observation: observation.clone(),
                    })
                };
                seen.filter_map(report).collect::<Vec<ObservationReport>>()
            };
            let questions = self.relay.questions().iter();
            let questions = questions.filter(|(_, question)| question.rule == position);
            let selected = |patterns: &[crate::model::IfPattern]| -> Vec<IfName> {
                let all = links.values().map(|link| &link.link);
                let selected = all.filter(|link| patterns.iter().any(|p| link.matches(p)));
                selected.map(|link| link.name.clone()).collect()
            };
            DiscoveryReport {
                links: [&rule.from, &rule.to].map(|way| {
                    let patterns = [rule.between.as_slice(), way].concat();
                    selected(&patterns)
                }),
                offers: seen(self.relay.offers(), &|key| covers(key.from, key.to)),
                asked: seen(self.relay.asked(), &|key| covers(key.to, key.from)),
                questions: questions
                    .filter_map(|(port, question)| {
                        Some(QuestionReport {
                            ends: [name(question.asker.link)?, name(port.link)?],
                            port: port.port,
                            question: question.clone(),
                        })
                    })
                    .collect(),
                rule: rule.clone(),
            }
        };
        self.relay.rules().iter().enumerate().map(report).collect()
    }
}

/// Schedules the reads that follow a first fragment.
fn schedule_reads(port: AnswerPort, ctx: &mut Context<DiscoveryActor>) {
    let last = READ_AFTER_FRAGMENT.last();
    for wait in &READ_AFTER_FRAGMENT {
        let is_last = Some(wait) == last;
        ctx.run_later(*wait, move |actor, ctx| {
            actor.read_port(port);
            if is_last && actor.fragmented.note_last_read(port) {
                schedule_reads(port, ctx);
            }
        });
    }
}

/// Lets the discovery actor apply the settings in force: configures it, starts it, or stops it.
pub fn reconfigure(context: &RouterContext, supervisor: &Addr<Supervisor>) {
    let actor = context.directory.receiver::<ConfigureDiscovery>();
    match actor.filter(Recipient::connected) {
        Some(actor) => actor.do_send(ConfigureDiscovery),
        None => supervisor.do_send(RestartChild(ACTOR_NAME)),
    }
}

impl Actor for DiscoveryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<DiscoveryLinks>()
            .receives::<ConfigureDiscovery>()
            .receives::<QueryDiscovery>();
        directory.do_send(DiscoveryStarted);
        ctx.run_interval(TICK, |actor, ctx| actor.tick(ctx));
    }
}

panics_on_demand!(DiscoveryActor);

impl Handler<Stop> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.end();
        ctx.stop();
    }
}

impl Handler<ConfigureDiscovery> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, _: ConfigureDiscovery, ctx: &mut Self::Context) {
        self.settings = self.context.discovery.load_full();
        if self.settings.rules.is_empty() {
            self.end();
            return ctx.stop();
        }
        self.relay.close(&mut self.ports);
        self.relay = DiscoveryRelay::new(self.settings.rules.clone());
        self.apply_links(ctx);
    }
}

impl Handler<DiscoveryLinks> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, message: DiscoveryLinks, ctx: &mut Self::Context) {
        self.links = message.0;
        self.apply_links(ctx);
    }
}

impl Handler<QueryDiscovery> for DiscoveryActor {
    type Result = Vec<DiscoveryReport>;

    fn handle(&mut self, _: QueryDiscovery, _: &mut Self::Context) -> Self::Result {
        self.reports()
    }
}

/// Frames that arrived on a link.
struct FramesOfLink {
    id: InterfaceId,
    batch: io::Result<FrameBatch>,
}

impl StreamHandler<FramesOfLink> for DiscoveryActor {
    fn handle(&mut self, message: FramesOfLink, ctx: &mut Self::Context) {
        let FramesOfLink { id, batch } = message;
        let batch = match batch {
            Ok(batch) => batch,
            // The link is gone or down. Its sockets are opened again with it.
            Err(_) => {
                self.sockets.remove(&id);
                return;
            }
        };
        for frame in &batch.frames {
            let (start, len) = (frame.start as usize, frame.len as usize);
            let bytes = batch.buffer.bytes().get(start..start + len);
            self.handle_frame(id, frame, bytes.unwrap_or_default(), ctx);
        }
    }

    /// The other links stay in use.
    fn finished(&mut self, _: &mut Self::Context) {}
}
