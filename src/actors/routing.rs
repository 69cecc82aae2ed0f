//! Owns the rules and publishes the forwarding snapshot. The data path never waits for it.

mod demand;
mod learning;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use actix::prelude::*;
use ahash::{AHashMap, AHashSet};
use tracing::{debug, info, warn};

use super::context::{DeathGuard, RouterContext, Stop, panics_on_demand};
use super::joins::SetJoins;
use super::links::LinksChanged;
use super::membership::Served;
use super::supervisor::Publish;
use super::views;
use crate::api::view::{InterfaceView, PendingView, RouteView};
use crate::api::{JoinSpec, RouteSpec, RuleChange};
use crate::mnat::Channel;
use crate::model::{
    AddrError, Group, GroupPrefix, IfIndex, IfName, IfPattern, JoinPolicy, JoinRule, LinkError,
    Links, MOST_PROXIES, Origin, RouteName, RouteRule, Source, SourcePrefix, TranslationError,
    TranslationRule,
};
use crate::table::joins;
use crate::table::rib::RibError;
use crate::table::{Fib, MembershipDatabase, Rib};

use demand::Demand;
pub use learning::Barrier;
use learning::Pace;

/// The actor.
pub struct Routing {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    supervisor: Recipient<Publish>,
    rib: Arc<Rib>,
    /// The links as the kernel tells of them; `None` until they are heard of.
    kernel: Option<Links>,
    /// The same, with the names that others give them.
    links: Option<Links>,
    generation: u64,
    /// What was published last.
    fib: Arc<Fib>,
    /// What membership was last told to serve; `None` until it was told anything.
    served: Option<BTreeMap<IfIndex, Served>>,
    /// Memberships from before membership began a new life, not told again yet.
    stale: AHashSet<(IfIndex, Group)>,
    pace: Pace,
    /// What the hosts of proxies want, as it is joined.
    demand: Demand,
    /// What joins and routes want joined, and the links that was said for.
    fixed: joins::DesiredMemberships,
    up: Links,
    /// What the MNAT actor was last told that hosts want.
    pub(super) told_mnat: Option<BTreeSet<Channel>>,
}

impl Routing {
    /// A routing actor with the rules in force, that waits to hear of links before it
    /// publishes anything.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        supervisor: Recipient<Publish>,
    ) -> Self {
        // A rebuilt routing actor goes on from the snapshot that is in force.
        let generation = context.snapshot.load().fib.generation;
        let rib = context.rib.load_full();
        Self {
            context,
            death_guard,
            supervisor,
            rib,
            kernel: None,
            links: None,
            generation,
            fib: Arc::default(),
            served: None,
            stale: AHashSet::new(),
            pace: Pace {
                next: Instant::now(),
                waits: false,
            },
            demand: Demand::default(),
            fixed: joins::DesiredMemberships::new(),
            up: Links::default(),
            told_mnat: None,
        }
    }

    pub(super) fn rib(&self) -> &Rib {
        &self.rib
    }

    pub(super) fn context(&self) -> &RouterContext {
        &self.context
    }

    pub(super) fn index_of(&self, name: &IfName) -> Option<IfIndex> {
        let link = self.links.as_ref()?.iter().find(|l| l.name == *name);
        link.map(|l| l.index)
    }

    pub(super) fn learned(&self) -> MutexGuard<'_, MembershipDatabase> {
        // Only routing locks it; a former life may have died over it.
        let learned = self.context.learned.lock();
        learned.unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&mut self) {
        let engine = self.rib.patterns().any(IfPattern::is_engine_name);
        let wanted = &self.context.engine_wanted;
        wanted.send_if_modified(|wanted| std::mem::replace(wanted, engine) != engine);
        let Some(links) = &self.links else {
            return;
        };
        self.generation += 1;
        let mut fib = self.rib.fib(&self.rib.usable(links), self.generation);
        self.learned().rebuild(&mut fib);
        let fib = Arc::new(fib);
        for (proxy, iface) in fib.left_out.iter() {
            if !self.fib.left_out.contains(&(proxy.clone(), iface.clone())) {
                warn!(
                    "proxy {proxy}: nothing is forwarded on {iface}, of which {MOST_PROXIES} \
                     proxies make use already; put downstream interfaces together into one"
                );
            }
        }
        self.fib = fib.clone();
        let catalog = &self.context.catalog;
        catalog.routes.set(self.rib.rules.len() as i64);
        let used = |link: &&crate::model::Link| views::uses(&fib, link) != (false, false);
        let mut live = AHashSet::new();
        for link in links.iter().filter(used) {
            catalog.set_link(link);
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
        self.serve();
        self.want();
        self.tell_mnat();
        self.supervisor.do_send(Publish {
            fib,
            names: Some(ingresses),
        });
    }

    /// Tells joins all that is wanted.
    fn want(&mut self) {
        let Some(links) = &self.links else { return };
        // A link that is down has no memberships; when it comes up they are joined anew, and
        // so reported at once.
        let up: Links = self
            .rib
            .usable(links)
            .iter()
            .filter(|l| l.up)
            .cloned()
            .collect();
        self.demand = Demand::new(&self.rib, &self.fib);
        let learned = self.context.learned.lock();
        let learned = learned.unwrap_or_else(PoisonError::into_inner);
        for (index, group, filter) in learned.memberships() {
            let known = (&*self.rib, &up);
            self.demand.note(known, index, group, filter);
        }
        drop(learned);
        self.demand.changed();
        let asked = self.demand.asked(&self.rib);
        let rules = joins::Rules {
            joins: &self.rib.joins,
            routes: &self.rib.rules,
            proxies: &self.rib.proxies,
        };
        let fixed = joins::wanted(rules, [], &up);
        let asked = asked.iter().map(|(asker, asked)| (*asker, asked));
        let want = SetJoins {
            joins: joins::wanted(rules, asked, &up),
            names: up.iter().map(|l| (l.index, l.name.clone())).collect(),
        };
        self.fixed = fixed;
        self.up = up;
        // Control facts: as many as links and rules change.
        if let Some(joins) = self.context.joins.load_full() {
            joins.do_send(want);
        }
    }

    /// Gives the links their other names, and publishes.
    fn rename(&mut self) {
        let aliases = self.context.aliases.load();
        self.links = self.kernel.as_ref().map(|links| links.called(&aliases));
        self.publish();
    }

    /// Puts changed rules in force.
    pub(super) fn commit(&mut self, rib: Rib) {
        self.rib = Arc::new(rib);
        self.context.rib.store(self.rib.clone());
        self.publish();
    }
}

impl Actor for Routing {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        info!(
            routes = self.rib.rules.len(),
            proxies = self.rib.proxies.len(),
            "routing"
        );
        self.context.routing.store(Some(Arc::new(ctx.address())));
    }
}

impl Handler<LinksChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: LinksChanged, _: &mut Self::Context) {
        self.kernel = Some(message.0);
        self.rename();
    }
}

/// The container engine gives other names than before: see [`RouterContext::aliases`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct NamesChanged;

impl Handler<NamesChanged> for Routing {
    type Result = ();

    fn handle(&mut self, _: NamesChanged, _: &mut Self::Context) {
        self.rename();
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
        self.death_guard.disarm();
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
        let catalog = &self.context.catalog;
        MessageResult(match ask {
            Ask::Routes => {
                let plane = self.context.plane.name();
                let usable = self.rib.usable(links);
                Answer::Routes(views::routes(&self.rib, &usable, &self.fib, catalog, plane))
            }
            Ask::Interfaces => {
                let fib = self.context.snapshot.load().fib.clone();
                Answer::Interfaces(views::interfaces(&self.rib, links, &fib, catalog))
            }
            Ask::Pending => Answer::Pending(views::pending(&self.rib, links, &self.fib)),
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
        let mut rib = replace.0;
        let refused = rib.keep_mapped(&self.rib);
        self.tell_refused(false, refused);
        self.commit(rib);
        self.try_refused_again();
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
    /// It cannot be rewritten so.
    #[error(transparent)]
    TranslationRule(#[from] TranslationError),
    /// `add` without egresses.
    #[error("name at least one interface to send to")]
    NoEgress,
}

/// Carries a change out.
#[derive(Message)]
#[rtype(result = "Result<String, ChangeError>")]
pub struct ApplyChange(pub RuleChange);

impl Handler<ApplyChange> for Routing {
    type Result = Result<String, ChangeError>;

    fn handle(&mut self, carry: ApplyChange, _: &mut Self::Context) -> Self::Result {
        let mut rib = Rib::clone(&self.rib);
        let done = match carry.0 {
            RuleChange::Add(spec) => {
                let rule = rule_of(&spec)?;
                if rule.to.is_empty() && !spec.stop {
                    return Err(ChangeError::NoEgress);
                }
                let name = rib.add(rule)?;
                match spec.to.is_empty() {
                    true => format!("added {name}, which stops what it takes"),
                    false => format!("added {name} to {}", spec.to.join(" ")),
                }
            }
            RuleChange::Remove(spec) => {
                let rule = rule_of(&spec)?;
                rib.rewrites_so(&rule)?;
                let name = rib.remove(&rule.from, rule.source, rule.group, &rule.to)?;
                self.try_refused_again();
                match spec.to.is_empty() {
                    true => format!("removed {name}"),
                    false => format!("removed {} from {name}", spec.to.join(" ")),
                }
            }
            RuleChange::Join(spec) => {
                let join = join_of(&spec)?;
                let text = join.to_string();
                rib.join(join)?;
                format!("joined {text}")
            }
            RuleChange::Leave(spec) => {
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
    let rewrite = spec.rewrite.as_ref().map(|rewrite| {
        let to_source = rewrite.source.as_ref().map(|s| s.parse()).transpose()?;
        let to_group = rewrite.group.as_ref().map(|g| g.parse()).transpose()?;
        let becomes = (to_source, to_group);
        let rewrite = TranslationRule::new((source, group), becomes, rewrite.port, false);
        rewrite.map_err(ChangeError::from)
    });
    Ok(RouteRule {
        name: RouteName::default_for(&from, source, group),
        origin: Origin::Command,
        rewrite: rewrite.transpose()?,
        source,
        join: match spec.join {
            None => JoinPolicy::Auto,
            Some(true) => JoinPolicy::Always,
            Some(false) => JoinPolicy::Never,
        },
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
