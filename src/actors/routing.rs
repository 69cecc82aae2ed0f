//! Owns the rules and publishes the forwarding snapshot. The data path never waits for it.

use std::sync::Arc;

use actix::prelude::*;
use ahash::{AHashMap, AHashSet};
use tracing::{debug, info};

use super::joins::Want;
use super::keeper::Publish;
use super::links::LinksChanged;
use super::views;
use super::world::{Stop, Vital, World, panics_on_demand};
use crate::api::view::{InterfaceView, PendingView, RouteView};
use crate::api::{Change, JoinSpec, RouteSpec};
use crate::model::{
    AddrError, GroupPrefix, IfPattern, JoinRule, LinkError, Links, Origin, RouteName, RouteRule,
    Source, SourcePrefix,
};
use crate::table::rib::RibError;
use crate::table::{Rib, joins};

/// The actor.
pub struct Routing {
    world: Arc<World>,
    vital: Vital,
    keeper: Recipient<Publish>,
    rib: Rib,
    /// `None` until the links are heard of.
    links: Option<Links>,
    generation: u64,
}

impl Routing {
    /// A routing actor with the rules in force, that waits to hear of links before it
    /// publishes anything.
    pub fn new(world: Arc<World>, vital: Vital, keeper: Recipient<Publish>) -> Self {
        // A rebuilt routing actor goes on from the snapshot that is in force.
        let generation = world.snapshot.load().fib.generation;
        let rib = world.rib.load().as_ref().clone();
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
        let catalog = &self.world.catalog;
        catalog.routes.set(self.rib.rules.len() as i64);
        let used = |link: &&crate::model::Link| views::uses(&fib, link) != (false, false);
        let mut live = AHashSet::new();
        for link in links.iter().filter(used) {
            catalog.show_link(link);
            live.insert(link.name.as_str());
        }
        catalog.retire_interfaces(&live);
        catalog.retire_paths(fib.paths.iter().map(|path| {
            let oif = &fib.egresses[path.egress as usize].name;
            (&path.route, path.iif.as_str(), oif.as_str())
        }));
        debug!(
            generation = self.generation,
            ingresses = fib.ingresses.len(),
            egresses = fib.egresses.len(),
            "publishing"
        );
        let names: AHashMap<_, _> = links.iter().map(|l| (l.index, l.name.clone())).collect();
        let ingresses = names
            .iter()
            .filter(|(index, _)| fib.ingresses.contains_key(*index))
            .map(|(index, name)| (*index, name.clone()))
            .collect();
        // A link that is down has no memberships; when it comes up they are joined anew, and
        // so reported at once.
        let up: Links = links.iter().filter(|l| l.up).cloned().collect();
        let want = Want {
            joins: joins::wanted(&self.rib.joins, &self.rib.rules, &up),
            names: up.iter().map(|l| (l.index, l.name.clone())).collect(),
        };
        // Control facts: as many as links and rules change.
        if let Some(joins) = self.world.joins.load_full() {
            joins.do_send(want);
        }
        self.keeper.do_send(Publish {
            fib,
            names: ingresses,
        });
    }

    /// Puts changed rules in force.
    fn commit(&mut self, rib: Rib) {
        self.rib = rib;
        self.world.rib.store(Arc::new(self.rib.clone()));
        self.publish();
    }
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

/// Publishes again although nothing changed, for an actor that was rebuilt.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Republish;

impl Handler<Republish> for Routing {
    type Result = ();

    fn handle(&mut self, _: Republish, _: &mut Self::Context) {
        self.publish();
    }
}

panics_on_demand!(Routing);

impl Handler<Stop> for Routing {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.vital.disarm();
        ctx.stop();
    }
}

/// Asks for what routing knows by itself.
pub enum Ask {
    /// The rules.
    Routes,
    /// The interfaces.
    Interfaces,
    /// What waits.
    Pending,
}

/// Answer to [`Ask`].
pub enum Answer {
    /// To [`Ask::Routes`].
    Routes(Vec<RouteView>),
    /// To [`Ask::Interfaces`].
    Interfaces(Vec<InterfaceView>),
    /// To [`Ask::Pending`].
    Pending(Vec<PendingView>),
}

impl Message for Ask {
    type Result = Answer;
}

impl Handler<Ask> for Routing {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, ask: Ask, _: &mut Self::Context) -> Self::Result {
        let none = Links::default();
        let links = self.links.as_ref().unwrap_or(&none);
        let catalog = &self.world.catalog;
        MessageResult(match ask {
            Ask::Routes => {
                let plane = self.world.plane.name();
                Answer::Routes(views::routes(&self.rib, links, catalog, plane))
            }
            Ask::Interfaces => {
                let fib = self.world.snapshot.load().fib.clone();
                Answer::Interfaces(views::interfaces(&self.rib, links, &fib, catalog))
            }
            Ask::Pending => Answer::Pending(views::pending(&self.rib, links)),
        })
    }
}

/// Replaces all rules, as after a reload of the settings.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Replace(pub Rib);

impl Handler<Replace> for Routing {
    type Result = ();

    fn handle(&mut self, replace: Replace, _: &mut Self::Context) {
        self.commit(replace.0);
    }
}

/// Why a change is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// A text is not an address.
    #[error(transparent)]
    Addr(#[from] AddrError),
    /// A text is not an interface name or pattern.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The rules do not allow it.
    #[error(transparent)]
    Rib(#[from] RibError),
    /// `add` without egresses.
    #[error("name at least one interface to send to")]
    NoEgress,
}

/// Carries a change out.
#[derive(Message)]
#[rtype(result = "Result<String, ChangeError>")]
pub struct Carry(pub Change);

impl Handler<Carry> for Routing {
    type Result = Result<String, ChangeError>;

    fn handle(&mut self, carry: Carry, _: &mut Self::Context) -> Self::Result {
        let mut rib = self.rib.clone();
        let done = match carry.0 {
            Change::Add(spec) => {
                let rule = rule_of(&spec)?;
                if rule.to.is_empty() {
                    return Err(ChangeError::NoEgress);
                }
                let name = rib.add(rule)?;
                format!("added {name} to {}", spec.to.join(" "))
            }
            Change::Remove(spec) => {
                let rule = rule_of(&spec)?;
                let name = rib.remove(&rule.from, rule.source, rule.group, &rule.to)?;
                match spec.to.is_empty() {
                    true => format!("removed {name}"),
                    false => format!("removed {} from {name}", spec.to.join(" ")),
                }
            }
            Change::Join(spec) => {
                let join = join_of(&spec)?;
                let text = join.to_string();
                rib.join(join)?;
                format!("joined {text}")
            }
            Change::Leave(spec) => {
                let join = join_of(&spec)?;
                rib.leave(&join)?;
                format!("left {join}")
            }
        };
        self.commit(rib);
        info!("by command: {done}");
        Ok(done)
    }
}

fn rule_of(spec: &RouteSpec) -> Result<RouteRule, ChangeError> {
    let from: IfPattern = spec.from.parse()?;
    let group: GroupPrefix = spec.group.parse()?;
    let source = match &spec.source {
        Some(source) => source.parse()?,
        None => SourcePrefix::any_for(group),
    };
    let to = spec.to.iter().map(|t| t.parse());
    let to = to.collect::<Result<_, LinkError>>()?;
    Ok(RouteRule {
        name: RouteName::default_for(&from, source, group),
        origin: Origin::Command,
        source,
        ..RouteRule::new(from, group, to)
    })
}

fn join_of(spec: &JoinSpec) -> Result<JoinRule, ChangeError> {
    let source = spec.source.as_ref().map(|s| s.parse::<Source>());
    Ok(JoinRule {
        interface: spec.interface.parse()?,
        source: source.transpose()?,
        group: spec.group.parse()?,
        origin: Origin::Command,
    })
}
