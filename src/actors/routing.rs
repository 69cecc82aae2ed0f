//! Owns the rules and publishes the forwarding snapshot. The data path never waits for it.

use std::sync::Arc;

use actix::prelude::*;
use tracing::{debug, info};

use super::keeper::Publish;
use super::links::LinksChanged;
use super::world::{Stop, Vital, World};
use crate::api::view::{InterfaceView, PathView, RouteView};
use crate::api::{Show, Shown};
use crate::forward::DropReason;
use crate::model::{IfName, Link, Links, RouteRule};
use crate::table::{Fib, Rib};

/// The actor.
pub struct Routing {
    world: Arc<World>,
    vital: Vital,
    keeper: Recipient<Publish>,
    rib: Rib,
    links: Option<Links>,
    generation: u64,
}

impl Routing {
    /// A routing actor that waits to hear of links before it publishes anything.
    pub fn new(world: Arc<World>, vital: Vital, keeper: Recipient<Publish>, rib: Rib) -> Self {
        // A rebuilt routing actor goes on from the snapshot that is in force.
        let generation = world.snapshot.load().fib.generation;
        Self {
            world,
            vital,
            keeper,
            rib,
            links: None,
            generation,
        }
    }

    fn publish(&mut self) {
        let Some(links) = &self.links else {
            return;
        };
        self.generation += 1;
        let fib = Arc::new(self.rib.fib(links, self.generation));
        self.world.catalog.routes.set(self.rib.rules.len() as i64);
        for link in links.iter() {
            if uses(&fib, link) != (false, false) {
                self.world.catalog.show_link(link);
            }
        }
        debug!(
            generation = self.generation,
            ingresses = fib.ingresses.len(),
            egresses = fib.egresses.len(),
            "publishing"
        );
        let names = fib
            .ingresses
            .keys()
            .filter_map(|i| Some((*i, links.get(*i)?.name.clone())))
            .collect();
        // A control fact: as many as links and rules change.
        self.keeper.do_send(Publish { fib, names });
    }

    fn routes(&self) -> Vec<RouteView> {
        let none = Links::default();
        let links = self.links.as_ref().unwrap_or(&none);
        self.rib
            .rules
            .iter()
            .map(|rule| self.route(rule, links))
            .collect()
    }

    fn route(&self, rule: &RouteRule, links: &Links) -> RouteView {
        let mut paths = Vec::new();
        for iif in Rib::ingresses_of(rule, links) {
            for oif in Rib::egresses_of(rule, iif.index, links) {
                let counters = self.world.catalog.path(
                    &rule.name,
                    iif.name.as_str(),
                    oif.name.as_str(),
                    self.world.plane.name(),
                );
                paths.push(PathView {
                    iif: iif.name.to_string(),
                    oif: oif.name.to_string(),
                    packets: counters.packets.get(),
                    bytes: counters.bytes.get(),
                });
            }
        }
        let waiting_for = std::iter::once(&rule.from)
            .chain(&rule.to)
            .filter(|p| !p.is_pattern() && links.matching(p).next().is_none())
            .map(ToString::to_string)
            .collect();
        RouteView {
            name: rule.name.to_string(),
            origin: rule.origin.to_string(),
            from: rule.from.to_string(),
            source: rule.source.to_string(),
            except_sources: rule
                .except_sources
                .iter()
                .map(ToString::to_string)
                .collect(),
            group: rule.group.to_string(),
            to: rule.to.iter().map(ToString::to_string).collect(),
            ttl: rule.ttl.to_string(),
            link_local: rule.link_local,
            paths,
            waiting_for,
        }
    }

    fn interfaces(&self) -> Vec<InterfaceView> {
        let fib = self.world.snapshot.load().fib.clone();
        let links = self.links.iter().flat_map(Links::iter);
        links.map(|link| self.interface(link, &fib)).collect()
    }

    fn interface(&self, link: &Link, fib: &Fib) -> InterfaceView {
        let (ingress, egress) = uses(fib, link);
        // Asking for the counters of an interface makes them; one that no route uses has none.
        let counters = (ingress || egress).then(|| self.counters(&link.name));
        let count =
            |of: fn(&crate::metrics::InterfaceCounters) -> u64| counters.as_ref().map_or(0, of);
        InterfaceView {
            index: link.index.get(),
            name: link.name.to_string(),
            up: link.up,
            carrier: link.carrier,
            mtu: link.mtu,
            ingress,
            egress,
            ttl_threshold: self.rib.ttl_threshold(link).map(|t| t.get()),
            received_packets: count(|c| c.received_packets.get()),
            transmitted_packets: count(|c| c.transmitted_packets.get()),
            dropped_packets: DropReason::ALL
                .iter()
                .filter_map(|r| {
                    let n = counters.as_ref()?.dropped(*r).get();
                    (n > 0).then(|| (r.label().to_string(), n))
                })
                .collect(),
            socket_dropped_packets: count(|c| c.socket_dropped.get()),
        }
    }

    fn counters(&self, name: &IfName) -> crate::metrics::InterfaceCounters {
        self.world.catalog.interface(name.as_str())
    }
}

/// Whether packets of any route arrive on a link, and whether any leave on it.
fn uses(fib: &Fib, link: &Link) -> (bool, bool) {
    (
        fib.ingresses.contains_key(&link.index),
        fib.egresses.iter().any(|e| e.index == link.index),
    )
}

impl Actor for Routing {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        info!(routes = self.rib.rules.len(), "routing");
        self.world.routing.store(Some(Arc::new(ctx.address())));
    }
}

impl Handler<LinksChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: LinksChanged, _: &mut Self::Context) {
        self.links = Some(message.0);
        self.publish();
    }
}

impl Handler<Stop> for Routing {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.vital.disarm();
        ctx.stop();
    }
}

/// Asks routing for what to show.
pub struct Ask(pub Show);

impl Message for Ask {
    type Result = Shown;
}

impl Handler<Ask> for Routing {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, ask: Ask, _: &mut Self::Context) -> Self::Result {
        MessageResult(match ask.0 {
            Show::Routes => Shown::Routes(self.routes()),
            Show::Interfaces => Shown::Interfaces(self.interfaces()),
        })
    }
}
