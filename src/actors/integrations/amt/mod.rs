//! Tunnels to and from networks without multicast (AMT).
//!
//! The machines in [`amt`](crate::amt) decide; this actor owns their clock, the sockets and the
//! resolver. Packets do not pass through it: the data path receives and sends them on the ports of
//! the [tunnel plane](crate::planes::tunnel).

mod gateway_service;
mod relay_service;
mod reload;

pub use reload::{ACTOR_NAME, prepare, reconfigure, tunnel_interfaces};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::StreamExt;
use tracing::warn;

use self::gateway_service::GatewayService;
use self::relay_service::{DatagramBatch, RelayService};
use crate::actors::child::ChildStart;
use crate::actors::deadline_timer::DeadlineTimer;
use crate::actors::messages::{
    ConfigureTunnels, CountCopies, HandOverRelays, HandedOverRelay, MembershipChanged,
    QueryTunnels, ReportTunnelJoins, ResumeRelays, ServeTunnels, TunnelJoins, TunnelReport,
    TunnelsStarted,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::amt::driad::candidates;
use crate::amt::resolver::RelayResolver;
use crate::amt::{AmtRandom, AmtRefusal, LookupKey};
use crate::model::{Group, IfName, InterfaceId, ProxyRule, SourceFilter};
use crate::planes::tunnel::ControlDatagram;

/// Interval at which traffic and metrics are read, and sockets that could not be opened are tried
/// again.
const TICK: Duration = Duration::from_millis(500);

/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct Amt {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    gateways: BTreeMap<InterfaceId, GatewayService>,
    relays: BTreeMap<InterfaceId, RelayService>,
    /// The proxies whose downstream interfaces are relays.
    served: BTreeMap<InterfaceId, Arc<ProxyRule>>,
    resolver: Option<RelayResolver>,
    random: AmtRandom,
    timer: DeadlineTimer,
}

impl Amt {
    /// Returns an actor for the settings in force; `None` without `[amt]`.
    pub fn from_settings(start: &ChildStart) -> Option<Self> {
        let context = start.context();
        if context.amt.load().config.is_empty() {
            return None;
        }
        Some(Self {
            context,
            death_guard: start.death_guard(),
            gateways: BTreeMap::new(),
            relays: BTreeMap::new(),
            served: BTreeMap::new(),
            resolver: None,
            random: AmtRandom::new(seed()),
            timer: DeadlineTimer::default(),
        })
    }

    /// Applies the settings in force.
    fn configure(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let settings = self.context.amt.load_full();
        self.resolver = match RelayResolver::new(&settings.resolv_conf) {
            Ok(resolver) => Some(resolver),
            Err(e) => {
                if settings.config.gateways.iter().any(|g| g.needs_resolver()) {
                    warn!("amt: {e}; relays cannot be looked up");
                }
                None
            }
        };
        let tunnels = self.context.tunnels.clone();
        let mut gateways = BTreeMap::new();
        for gateway in &settings.config.gateways {
            let Some(id) = tunnels.id(&gateway.name) else {
                continue;
            };
            let mut kept = self.gateways.remove(&id);
            let is_other =
                |former: &&mut GatewayService| !former.settings().has_same_tunnels(gateway);
            if let Some(former) = kept.as_mut().filter(is_other) {
                former.end(now, &self.context);
                kept = None;
            }
            let service = kept.unwrap_or_else(|| {
                let port = tunnels.gateway(id);
                let control = tokio_stream(port.connect());
                ctx.add_message_stream(control.map(move |datagram| FromRelay { id, datagram }));
                announce_refusals(&self.context, &gateway.name);
                let random = AmtRandom::new(self.random.bytes());
                GatewayService::new(gateway.clone(), port, random)
            });
            gateways.insert(id, service);
        }
        let mut relays = BTreeMap::new();
        for relay in &settings.config.relays {
            let Some(id) = tunnels.id(&relay.name) else {
                continue;
            };
            let service = match self.relays.remove(&id) {
                Some(mut service) => {
                    service.configure(now, relay.clone());
                    service
                }
                None => {
                    let port = tunnels.relay(id);
                    let random = AmtRandom::new(self.random.bytes());
                    announce_refusals(&self.context, &relay.name);
                    let inherited = self.context.inherited_relays.take(&relay.name);
                    RelayService::new(now, relay.clone(), port, random, inherited.as_ref())
                }
            };
            relays.insert(id, service);
        }
        for mut gateway in std::mem::replace(&mut self.gateways, gateways).into_values() {
            gateway.end(now, &self.context);
        }
        for relay in std::mem::replace(&mut self.relays, relays).into_values() {
            relay.end(&self.context);
        }
        self.apply_served(now);
        self.tick(ctx);
        // A gateway that is new has no memberships yet.
        self.context.directory.do_send(ReportTunnelJoins);
    }

    /// Applies the access lists of the proxies, and reports all members.
    fn apply_served(&mut self, now: Instant) {
        for (id, relay) in &mut self.relays {
            relay.set_lists(now, self.served.get(id).map(Arc::as_ref));
            report_members(&self.context, *id, relay.all_groups());
        }
    }

    /// Drives what is due at intervals.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let snapshot = self.context.snapshot.load();
        for (id, gateway) in &mut self.gateways {
            let ingress = snapshot.fib.ingresses.get(id);
            let limit = ingress.and_then(|ingress| ingress.bandwidth);
            // Without a limit nothing updates the list.
            let refused = limit.map(|_| self.context.streams.bandwidth.refused(*id));
            gateway.set_refused(&refused.unwrap_or_default());
            gateway.tick(now, &self.context);
        }
        for (id, relay) in &mut self.relays {
            let id = *id;
            for receiver in relay.tick(&self.context) {
                let (batches, token) = receiver;
                let until = token.clone();
                let batches = batches.take_until(async move { until.cancelled().await });
                ctx.add_stream(batches.map(move |batch| FromGateways { id, batch }));
            }
        }
        self.drive_all(ctx);
    }

    fn drive_all(&mut self, ctx: &mut Context<Self>) {
        let gateways: Vec<InterfaceId> = self.gateways.keys().copied().collect();
        gateways
            .into_iter()
            .for_each(|id| self.drive_gateway(id, ctx));
        let relays: Vec<InterfaceId> = self.relays.keys().copied().collect();
        relays.into_iter().for_each(|id| self.drive_relay(id));
        self.set_timer(ctx);
    }

    fn drive_gateway(&mut self, id: InterfaceId, ctx: &mut Context<Self>) {
        let Some(gateway) = self.gateways.get_mut(&id) else {
            return;
        };
        for key in gateway.drive(Instant::now(), &self.context) {
            self.look_up(id, key, ctx);
        }
    }

    fn drive_relay(&mut self, id: InterfaceId) {
        let Some(relay) = self.relays.get_mut(&id) else {
            return;
        };
        let changes = relay.drive(Instant::now(), &self.context);
        report_members(&self.context, id, changes);
    }

    /// Looks relays up for a gateway.
    fn look_up(&mut self, id: InterfaceId, key: LookupKey, ctx: &mut Context<Self>) {
        let resolver = self.resolver.clone();
        let lookup = async move {
            let found = match &resolver {
                Some(resolver) => Some(resolver.find(&key).await),
                None => None,
            };
            (key, found)
        };
        let lookup = lookup.into_actor(self);
        ctx.spawn(lookup.map(move |(key, found), actor, ctx| {
            let Some(gateway) = actor.gateways.get_mut(&id) else {
                return;
            };
            let random = &mut actor.random;
            let to_candidates = |addresses| candidates(addresses, random);
            gateway.handle_lookup(Instant::now(), &key, found, to_candidates, &actor.context);
            actor.drive_gateway(id, ctx);
            actor.set_timer(ctx);
        }));
    }

    /// Sets the timer to the next deadline.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let gateways = self
            .gateways
            .values()
            .filter_map(GatewayService::poll_timeout);
        let relays = self.relays.values().map(RelayService::poll_timeout);
        let next = gateways.chain(relays).min();
        self.timer.set(next, ctx, |actor: &mut Self, ctx| {
            actor.timer.clear();
            actor.drive_all(ctx);
        });
    }

    fn end(&mut self) {
        let now = Instant::now();
        for gateway in self.gateways.values_mut() {
            gateway.end(now, &self.context);
        }
        for relay in std::mem::take(&mut self.relays).into_values() {
            relay.end(&self.context);
        }
        self.gateways.clear();
        self.death_guard.disarm();
    }
}

/// Reports changed members of a relay to routing.
fn report_members(
    context: &RouterContext,
    index: InterfaceId,
    changes: Vec<(Group, SourceFilter)>,
) {
    if !changes.is_empty() {
        let message = MembershipChanged { index, changes };
        context.directory.do_send(message);
    }
}

/// Exports a zero for each reason, so that the first refusal counts as an increase.
fn announce_refusals(context: &RouterContext, interface: &IfName) {
    for reason in AmtRefusal::ALL {
        let metrics = &context.catalog.amt;
        metrics.count_refused(interface.as_str(), reason.label(), 0);
    }
}

/// Returns the messages of a channel as a stream.
fn tokio_stream<T>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}

/// Returns 32 bytes that others cannot predict.
fn seed() -> [u8; 32] {
    use ring::rand::SecureRandom;
    let mut seed = [0; 32];
    if ring::rand::SystemRandom::new().fill(&mut seed).is_err() {
        use std::hash::{BuildHasher, Hasher, RandomState};
        // RandomState is seeded by the system too.
        for part in seed.chunks_mut(8) {
            let random = RandomState::new().build_hasher().finish().to_ne_bytes();
            part.copy_from_slice(&random[..part.len()]);
        }
    }
    seed
}

impl Actor for Amt {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<TunnelJoins>()
            .receives::<ServeTunnels>()
            .receives::<ConfigureTunnels>()
            .receives::<CountCopies>()
            .receives::<HandOverRelays>()
            .receives::<ResumeRelays>()
            .receives::<QueryTunnels>();
        directory.do_send(TunnelsStarted);
        self.configure(ctx);
        ctx.run_interval(TICK, |actor, ctx| actor.tick(ctx));
    }
}

panics_on_demand!(Amt);

impl Handler<Stop> for Amt {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.end();
        ctx.stop();
    }
}

impl Handler<ConfigureTunnels> for Amt {
    type Result = ();

    fn handle(&mut self, _: ConfigureTunnels, ctx: &mut Self::Context) {
        if self.context.amt.load().config.is_empty() {
            self.end();
            return ctx.stop();
        }
        self.configure(ctx);
    }
}

impl Handler<TunnelJoins> for Amt {
    type Result = ();

    fn handle(&mut self, message: TunnelJoins, ctx: &mut Self::Context) {
        if let Some(gateway) = self.gateways.get_mut(&message.index) {
            gateway.set_filters(message.is_complete, message.filters);
        }
        self.drive_gateway(message.index, ctx);
        self.set_timer(ctx);
    }
}

impl Handler<ServeTunnels> for Amt {
    type Result = ();

    fn handle(&mut self, message: ServeTunnels, ctx: &mut Self::Context) {
        self.served = message.0;
        self.apply_served(Instant::now());
        self.drive_all(ctx);
    }
}

impl Handler<HandOverRelays> for Amt {
    type Result = Vec<HandedOverRelay>;

    fn handle(&mut self, _: HandOverRelays, _: &mut Self::Context) -> Self::Result {
        let relays = self.relays.values_mut();
        relays.filter_map(RelayService::hand_over).collect()
    }
}

impl Handler<CountCopies> for Amt {
    type Result = ();

    fn handle(&mut self, _: CountCopies, _: &mut Self::Context) {
        let relays = self.relays.values_mut();
        relays.for_each(|relay| relay.count_copies(&self.context));
    }
}

impl Handler<ResumeRelays> for Amt {
    type Result = ();

    fn handle(&mut self, _: ResumeRelays, ctx: &mut Self::Context) {
        self.relays.values_mut().for_each(RelayService::resume);
        self.tick(ctx);
    }
}

impl Handler<QueryTunnels> for Amt {
    type Result = Vec<TunnelReport>;

    fn handle(&mut self, _: QueryTunnels, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        // The answer is what the data path has.
        for (id, relay) in &mut self.relays {
            let changes = relay.publish(now);
            report_members(&self.context, *id, changes);
        }
        let relays = self.gateways.values().flat_map(|g| g.reports(now));
        let gateways = self.relays.values().flat_map(|r| r.reports(now));
        relays.chain(gateways).collect()
    }
}

/// A control message of a relay, which the data path received.
#[derive(Message)]
#[rtype(result = "()")]
struct FromRelay {
    id: InterfaceId,
    datagram: ControlDatagram,
}

impl Handler<FromRelay> for Amt {
    type Result = ();

    fn handle(&mut self, message: FromRelay, ctx: &mut Self::Context) {
        if let Some(gateway) = self.gateways.get_mut(&message.id) {
            gateway.handle_message(Instant::now(), &message.datagram, &self.context);
        }
        self.drive_gateway(message.id, ctx);
        self.set_timer(ctx);
    }
}

/// Messages that gateways sent to a relay.
struct FromGateways {
    id: InterfaceId,
    batch: std::io::Result<DatagramBatch>,
}

impl StreamHandler<FromGateways> for Amt {
    fn handle(&mut self, message: FromGateways, ctx: &mut Self::Context) {
        let Some(relay) = self.relays.get_mut(&message.id) else {
            return;
        };
        match message.batch {
            Ok(batch) => relay.handle_batch(Instant::now(), &batch, &self.context),
            Err(e) => relay.handle_socket_error(&e),
        }
        self.drive_relay(message.id);
        self.set_timer(ctx);
    }

    /// The other sockets stay in use.
    fn finished(&mut self, _: &mut Self::Context) {}
}
