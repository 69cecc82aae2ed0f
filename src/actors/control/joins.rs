//! Holds the memberships of this host that routing requests, and retries those that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use tracing::{debug, info, warn};

use crate::actors::log_limit::LogLimit;
use crate::actors::messages::{HostGroup, QueryHostGroups, Republish, SetJoins, UpdateJoins};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::model::{Group, IfName, InterfaceId, SourceFilter};
use crate::sys::memberships::HostMemberships;
use crate::table::Join;
use crate::table::joins::DesiredMemberships;

/// Interval at which failed memberships are retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Limit of the memberships of one interface. Beyond it, groups are joined for every source
/// instead of for single sources.
const MAX_MEMBERSHIPS: usize = 131_072;

/// After this time, a series of changes pauses, because other actors share the thread.
const TIME_SLICE: Duration = Duration::from_millis(2);
/// Length of the pause.
const PAUSE: Duration = Duration::from_millis(1);

/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct Joins {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    desired: DesiredMemberships,
    names: AHashMap<InterfaceId, IfName>,
    held: AHashMap<InterfaceId, HostMemberships>,
    failed: BTreeMap<Join, String>,
    /// Groups joined for every source because of [`MAX_MEMBERSHIPS`].
    widened: BTreeSet<Join>,
    /// Changes to apply: whether it leaves, and the membership. Joins come before leaves.
    pending: BTreeSet<(bool, Join)>,
    /// Whether the next time slice is scheduled.
    is_scheduled: bool,
    log_limit: LogLimit,
}

/// Returns whether the new sources of a filter are within [`MAX_MEMBERSHIPS`].
fn fits(held: &HostMemberships, group: Group, filter: &SourceFilter) -> bool {
    let SourceFilter::Include(sources) = filter else {
        return true;
    };
    let new = sources.iter();
    let new = new.filter(|source| !held.holds((group, Some(**source))));
    match new.count() {
        0 => true,
        new => held.len() + new <= MAX_MEMBERSHIPS,
    }
}

impl Joins {
    /// Returns an actor that holds no memberships.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            desired: BTreeMap::new(),
            names: AHashMap::new(),
            held: AHashMap::new(),
            failed: BTreeMap::new(),
            widened: BTreeSet::new(),
            pending: BTreeSet::new(),
            is_scheduled: false,
            log_limit: LogLimit::default(),
        }
    }

    /// Applies a desired membership to the kernel.
    fn apply(&mut self, join: Join) {
        let interface = join.interface;
        let none = SourceFilter::none();
        let filter = self.desired.get(&join).unwrap_or(&none);
        let Some(ifindex) = interface.ifindex() else {
            let reason = "the interface is not a link of the kernel".to_string();
            self.failed.insert(join, reason);
            return;
        };
        let held = self
            .held
            .entry(interface)
            .or_insert_with(|| HostMemberships::new(ifindex));
        let was_widened = held.is_widened(join.group) || self.widened.contains(&join);
        let result = match fits(held, join.group, filter) {
            true => {
                self.widened.remove(&join);
                held.set(join.group, filter)
            }
            // A source-specific group cannot be joined for every source (RFC 4604).
            false if join.group.is_source_specific() => Err(io::Error::other(
                "the interface has reached its limit of joined sources",
            )),
            false => {
                self.widened.insert(join);
                held.set(join.group, &SourceFilter::any())
            }
        };
        let is_widened = held.is_widened(join.group) || self.widened.contains(&join);
        if is_widened
            && !was_widened
            && let Some(name) = self.names.get(&interface)
        {
            debug!("{name}: {join} is joined for every source instead of {filter}");
            self.context.catalog.count_widened_filter(name.as_str());
        }
        let name = self.name(interface);
        let now = Instant::now();
        match result {
            Ok(()) if self.failed.remove(&join).is_some() && self.desired.contains_key(&join) => {
                if let Some(left) = self.log_limit.permit(now) {
                    info!("{name}: joined {join} after all{left}");
                }
            }
            Ok(()) => {}
            Err(e) if self.desired.contains_key(&join) => {
                if self.failed.insert(join, e.to_string()).is_none()
                    && let Some(left) = self.log_limit.permit(now)
                {
                    warn!("{name}: cannot join {join}: {e}; trying again every second{left}");
                }
            }
            Err(e) => {
                self.failed.remove(&join);
                if let Some(left) = self.log_limit.permit(now) {
                    warn!("{name}: cannot leave {join}: {e}{left}");
                }
            }
        }
    }

    /// Applies changed memberships, in time slices if there are many. Joins come before leaves,
    /// so that a switch always sees a member.
    fn schedule(&mut self, joins: impl IntoIterator<Item = Join>, ctx: &mut Context<Self>) {
        for join in joins {
            let leaves = !self.desired.contains_key(&join);
            self.pending.remove(&(!leaves, join));
            self.pending.insert((leaves, join));
        }
        if !self.is_scheduled {
            self.run_time_slice(ctx);
        }
    }

    /// Applies pending changes for a while. Each system call takes longer the more memberships
    /// there are.
    fn run_time_slice(&mut self, ctx: &mut Context<Self>) {
        let start = Instant::now();
        while let Some((_, join)) = self.pending.pop_first() {
            self.apply(join);
            if start.elapsed() >= TIME_SLICE {
                break;
            }
        }
        self.is_scheduled = !self.pending.is_empty();
        if self.is_scheduled {
            ctx.run_later(PAUSE, |actor, ctx| actor.run_time_slice(ctx));
        }
        self.update_metrics();
    }

    fn name(&self, index: InterfaceId) -> String {
        let name = self.names.get(&index);
        name.map_or_else(|| index.to_string(), ToString::to_string)
    }

    fn update_metrics(&mut self) {
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
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<SetJoins>()
            .receives::<UpdateJoins>()
            .receives::<QueryHostGroups>();
        directory.do_send(Republish);
        ctx.run_interval(RETRY_INTERVAL, |actor, ctx| {
            let failed: Vec<Join> = actor.failed.keys().copied().collect();
            if !failed.is_empty() {
                actor.schedule(failed, ctx);
            }
        });
    }
}

impl Handler<SetJoins> for Joins {
    type Result = ();

    fn handle(&mut self, message: SetJoins, ctx: &mut Self::Context) {
        // A link that is gone or down has lost its memberships, so the sockets are useless.
        let names = &message.names;
        self.held.retain(|index, _| names.contains_key(index));
        self.failed
            .retain(|join, _| names.contains_key(&join.interface));
        self.desired
            .retain(|join, _| names.contains_key(&join.interface));
        self.widened
            .retain(|join| names.contains_key(&join.interface));
        self.pending
            .retain(|(_, join)| names.contains_key(&join.interface));
        for (index, name) in &self.names {
            if names.get(index) != Some(name) {
                self.context.catalog.remove_joined_groups(name.as_str());
            }
        }
        self.names = message.names;
        let old = std::mem::replace(&mut self.desired, message.joins);
        let changed = |(join, filter): &(&Join, &SourceFilter)| old.get(*join) != Some(*filter);
        let new = self.desired.iter().filter(changed).map(|(join, _)| *join);
        let new: Vec<Join> = new.collect();
        let gone = old.keys().filter(|j| !self.desired.contains_key(j));
        let gone: Vec<Join> = gone.copied().collect();
        self.schedule(new.into_iter().chain(gone), ctx);
    }
}

impl Handler<UpdateJoins> for Joins {
    type Result = ();

    fn handle(&mut self, UpdateJoins(changes): UpdateJoins, ctx: &mut Self::Context) {
        let known = |join: &Join| self.names.contains_key(&join.interface);
        let changes = changes.into_iter().filter(|(join, _)| known(join));
        let mut changed = Vec::new();
        let (left, joined): (Vec<_>, Vec<_>) = changes.partition(|(_, filter)| filter.is_none());
        for (join, filter) in joined.into_iter().chain(left) {
            let before = match filter.is_none() {
                true => self.desired.remove(&join),
                false => self.desired.insert(join, filter.clone()),
            };
            if before.unwrap_or_default() != filter {
                changed.push(join);
            }
        }
        self.schedule(changed, ctx);
    }
}

impl Handler<QueryHostGroups> for Joins {
    type Result = Vec<HostGroup>;

    fn handle(&mut self, _: QueryHostGroups, _: &mut Self::Context) -> Self::Result {
        let group = |(join, filter): (&Join, &SourceFilter)| {
            let held = self.held.get(&join.interface);
            let holds = |source| held.is_some_and(|held| held.holds((join.group, source)));
            let complete = match filter {
                SourceFilter::Include(sources) => sources.iter().all(|s| holds(Some(*s))),
                SourceFilter::Exclude(_) => holds(None),
            };
            HostGroup {
                index: join.interface,
                interface: self.names.get(&join.interface).cloned(),
                group: join.group,
                filter: filter.clone(),
                error: self.failed.get(join).filter(|_| !complete).cloned(),
                is_widened: held.is_some_and(|held| held.is_widened(join.group))
                    || self.widened.contains(join),
            }
        };
        self.desired.iter().map(group).collect()
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
