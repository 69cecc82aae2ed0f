//! Holds the memberships of this host that routing wants, and tries again those that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use tracing::{debug, info, warn};

use super::context::{DeathGuard, RouterContext, Stop, panics_on_demand};
use super::log_limit::LogLimit;
use super::service;
use crate::api::view::{GroupSourceView, GroupView};
use crate::model::{Group, IfIndex, IfName, Source, SourceFilter};
use crate::sys::memberships::HostMemberships;
use crate::table::{self, Join};

/// How often memberships that failed are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Memberships one interface holds; where sources want more, their groups are joined for every
/// source.
const MEMBERSHIPS: usize = 131_072;

/// How long one turn of changes takes, about; and how long others then have.
const TURN: Duration = Duration::from_millis(2);
const BREATH: Duration = Duration::from_millis(1);

/// All memberships wanted from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetJoins {
    /// The memberships.
    pub joins: table::joins::DesiredMemberships,
    /// Names of the links that are up.
    pub names: AHashMap<IfIndex, IfName>,
}

/// Some memberships are wanted otherwise from now on, on links that are known: those of the
/// last [`SetJoins`]. A filter that takes nothing ends one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct UpdateJoins(pub table::joins::DesiredMemberships);

/// Asks which memberships there are, and which failed.
pub struct AskGroups;

impl Message for AskGroups {
    type Result = Vec<GroupView>;
}

/// The actor.
pub struct Joins {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    wanted: table::joins::DesiredMemberships,
    names: AHashMap<IfIndex, IfName>,
    held: AHashMap<IfIndex, HostMemberships>,
    failed: BTreeMap<Join, String>,
    /// Groups joined for every source, because the interface holds too many memberships.
    widened: BTreeSet<Join>,
    /// What is still to be carried out; what is to be left comes last.
    due: BTreeSet<(bool, Join)>,
    /// Whether a turn is to come.
    works: bool,
    lines: LogLimit,
}

/// Whether the interface may hold what is new in a filter.
fn fits(on: &HostMemberships, group: Group, filter: &SourceFilter) -> bool {
    let SourceFilter::Include(sources) = filter else {
        return true;
    };
    let new = sources.iter();
    let new = new.filter(|source| !on.holds((group, Some(**source))));
    match new.count() {
        0 => true,
        new => on.len() + new <= MEMBERSHIPS,
    }
}

impl Joins {
    /// An actor that holds nothing yet.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            wanted: BTreeMap::new(),
            names: AHashMap::new(),
            held: AHashMap::new(),
            failed: BTreeMap::new(),
            widened: BTreeSet::new(),
            due: BTreeSet::new(),
            works: false,
            lines: LogLimit::default(),
        }
    }

    /// Has the kernel want what is wanted now.
    fn set(&mut self, join: Join) {
        let interface = join.interface;
        let none = SourceFilter::none();
        let filter = self.wanted.get(&join).unwrap_or(&none);
        let on = self
            .held
            .entry(interface)
            .or_insert_with(|| HostMemberships::new(interface));
        let was_widened = on.is_widened(join.group) || self.widened.contains(&join);
        let set = match fits(on, join.group, filter) {
            true => {
                self.widened.remove(&join);
                on.set(join.group, filter)
            }
            // Nobody may ask for all sources of such a group (RFC 4604).
            false if join.group.is_source_specific() => Err(io::Error::other(
                "as many sources are joined as an interface may",
            )),
            false => {
                self.widened.insert(join);
                on.set(join.group, &SourceFilter::any())
            }
        };
        let is_widened = on.is_widened(join.group) || self.widened.contains(&join);
        if is_widened
            && !was_widened
            && let Some(name) = self.names.get(&interface)
        {
            debug!("{name}: more is joined of {join} than {filter}");
            self.context.catalog.count_widened_filter(name.as_str());
        }
        let name = self.name(interface);
        let now = Instant::now();
        match set {
            Ok(()) if self.failed.remove(&join).is_some() && self.wanted.contains_key(&join) => {
                if let Some(left) = self.lines.turn(now) {
                    info!("{name}: joined {join} after all{left}");
                }
            }
            Ok(()) => {}
            Err(e) if self.wanted.contains_key(&join) => {
                if self.failed.insert(join, e.to_string()).is_none()
                    && let Some(left) = self.lines.turn(now)
                {
                    warn!("{name}: cannot join {join}: {e}; trying again every second{left}");
                }
            }
            Err(e) => {
                self.failed.remove(&join);
                if let Some(left) = self.lines.turn(now) {
                    warn!("{name}: cannot leave {join}: {e}{left}");
                }
            }
        }
    }

    /// What is wanted of these has changed: it is carried out now, or in turns where there is
    /// much. Joined before left: a switch sees no moment without a member.
    fn change(&mut self, joins: impl IntoIterator<Item = Join>, ctx: &mut Context<Self>) {
        for join in joins {
            let leaves = !self.wanted.contains_key(&join);
            self.due.remove(&(!leaves, join));
            self.due.insert((leaves, join));
        }
        if !self.works {
            self.work(ctx);
        }
    }

    /// Each call into the kernel takes longer the more is joined, and other actors share the
    /// thread: they come in between.
    fn work(&mut self, ctx: &mut Context<Self>) {
        let begun = Instant::now();
        while let Some((_, join)) = self.due.pop_first() {
            self.set(join);
            if begun.elapsed() >= TURN {
                break;
            }
        }
        self.works = !self.due.is_empty();
        if self.works {
            ctx.run_later(BREATH, |actor, ctx| actor.work(ctx));
        }
        self.settle();
    }

    fn name(&self, index: IfIndex) -> String {
        let name = self.names.get(&index);
        name.map_or_else(|| index.to_string(), ToString::to_string)
    }

    fn settle(&mut self) {
        for (index, held) in &self.held {
            if let Some(name) = self.names.get(index) {
                let catalog = &self.context.catalog;
                catalog.set_joined_groups(name.as_str(), held.len() as u64);
            }
        }
    }
}

impl Actor for Joins {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        ctx.run_interval(RETRY_EVERY, |actor, ctx| {
            let again: Vec<Join> = actor.failed.keys().copied().collect();
            if !again.is_empty() {
                actor.change(again, ctx);
            }
        });
    }
}

impl Handler<SetJoins> for Joins {
    type Result = ();

    fn handle(&mut self, want: SetJoins, ctx: &mut Self::Context) {
        // A link that is gone or down took its memberships along; the sockets are of no use.
        let names = &want.names;
        self.held.retain(|index, _| names.contains_key(index));
        self.failed
            .retain(|join, _| names.contains_key(&join.interface));
        self.wanted
            .retain(|join, _| names.contains_key(&join.interface));
        self.widened
            .retain(|join| names.contains_key(&join.interface));
        self.due
            .retain(|(_, join)| names.contains_key(&join.interface));
        for (index, name) in &self.names {
            if names.get(index) != Some(name) {
                self.context.catalog.remove_joined_groups(name.as_str());
            }
        }
        self.names = want.names;
        let old = std::mem::replace(&mut self.wanted, want.joins);
        let changed = |(join, filter): &(&Join, &SourceFilter)| old.get(*join) != Some(*filter);
        let new = self.wanted.iter().filter(changed).map(|(join, _)| *join);
        let new: Vec<Join> = new.collect();
        let gone = old.keys().filter(|j| !self.wanted.contains_key(j));
        let gone: Vec<Join> = gone.copied().collect();
        self.change(new.into_iter().chain(gone), ctx);
    }
}

impl Handler<UpdateJoins> for Joins {
    type Result = ();

    fn handle(&mut self, UpdateJoins(changes): UpdateJoins, ctx: &mut Self::Context) {
        let known = |join: &Join| self.names.contains_key(&join.interface);
        let changes = changes.into_iter().filter(|(join, _)| known(join));
        let mut changed = Vec::new();
        let (left, joined): (Vec<_>, Vec<_>) = changes.partition(|(_, filter)| filter.is_none());
        // Joined before left, as above.
        for (join, filter) in joined.into_iter().chain(left) {
            let before = match filter.is_none() {
                true => self.wanted.remove(&join),
                false => self.wanted.insert(join, filter.clone()),
            };
            if before.unwrap_or_default() != filter {
                changed.push(join);
            }
        }
        self.change(changed, ctx);
    }
}

impl Handler<AskGroups> for Joins {
    type Result = MessageResult<AskGroups>;

    fn handle(&mut self, _: AskGroups, _: &mut Self::Context) -> Self::Result {
        let mut views = Vec::new();
        for (join, filter) in &self.wanted {
            let held = self.held.get(&join.interface);
            let holds = |source| held.is_some_and(|held| held.holds((join.group, source)));
            let widened =
                held.is_some_and(|held| held.is_widened(join.group)) || self.widened.contains(join);
            let (sources, forwarded) = match filter {
                SourceFilter::Include(sources) => (sources, true),
                SourceFilter::Exclude(sources) => (sources, false),
            };
            let all = match forwarded {
                true => sources.iter().all(|source| holds(Some(*source))),
                false => holds(None),
            };
            let error = self.failed.get(join).filter(|_| !all).cloned();
            let note = "joined for every source: the kernel carries no longer list".to_string();
            let source = |source: &Source| GroupSourceView {
                source: source.to_string(),
                forwarded,
                expires_ms: None,
            };
            views.push(GroupView {
                interface: self.name(join.interface),
                role: "host".into(),
                group: join.group.to_string(),
                mode: service::mode(filter).into(),
                sources: sources.iter().map(source).collect(),
                expires_ms: None,
                version: None,
                reporters: Vec::new(),
                last_reporter: None,
                original: Vec::new(),
                joined_for: Vec::new(),
                error: error.or(widened.then_some(note)),
            });
        }
        MessageResult(views)
    }
}

panics_on_demand!(Joins);

impl Handler<Stop> for Joins {
    type Result = ();

    /// Closing the sockets leaves the groups.
    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.held.clear();
        self.death_guard.disarm();
        ctx.stop();
    }
}
