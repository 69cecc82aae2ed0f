//! Holds the memberships of this host that routing wants, and tries again those that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use ahash::AHashMap;
use tracing::{info, warn};

use super::world::{Stop, Vital, World, panics_on_demand};
use crate::api::view::GroupView;
use crate::model::{IfIndex, IfName};
use crate::sys::memberships::Memberships;
use crate::table::Join;

/// How often memberships that failed are tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The memberships wanted from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Want {
    /// The memberships.
    pub joins: BTreeSet<Join>,
    /// Names of the links that are up.
    pub names: AHashMap<IfIndex, IfName>,
}

/// Asks which memberships there are, and which failed.
pub struct AskGroups;

impl Message for AskGroups {
    type Result = Vec<GroupView>;
}

/// The actor.
pub struct Joins {
    world: Arc<World>,
    vital: Vital,
    wanted: BTreeSet<Join>,
    names: AHashMap<IfIndex, IfName>,
    held: AHashMap<IfIndex, Memberships>,
    failed: BTreeMap<Join, String>,
}

impl Joins {
    /// An actor that holds nothing yet.
    pub fn new(world: Arc<World>, vital: Vital) -> Self {
        Self {
            world,
            vital,
            wanted: BTreeSet::new(),
            names: AHashMap::new(),
            held: AHashMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn join(&mut self, join: Join) {
        let on = self
            .held
            .entry(join.interface)
            .or_insert_with(|| Memberships::new(join.interface));
        match on.join((join.group, join.source)) {
            Ok(()) => {
                if self.failed.remove(&join).is_some() {
                    info!("{}: joined {join} after all", self.name(join.interface));
                }
            }
            Err(e) => {
                let name = self.name(join.interface);
                if self.failed.insert(join, e.to_string()).is_none() {
                    warn!("{name}: cannot join {join}: {e}; trying again every second");
                }
            }
        }
    }

    fn leave(&mut self, join: &Join) {
        self.failed.remove(join);
        if let Some(on) = self.held.get_mut(&join.interface)
            && let Err(e) = on.leave((join.group, join.source))
        {
            warn!("{}: cannot leave {join}: {e}", self.name(join.interface));
        }
    }

    fn name(&self, index: IfIndex) -> String {
        let name = self.names.get(&index);
        name.map_or_else(|| index.to_string(), ToString::to_string)
    }

    fn settle(&mut self) {
        for (index, held) in &self.held {
            if let Some(name) = self.names.get(index) {
                let catalog = &self.world.catalog;
                catalog.show_joined(name.as_str(), held.len() as u64);
            }
        }
    }
}

impl Actor for Joins {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        ctx.run_interval(RETRY_EVERY, |actor, _| {
            let again: Vec<Join> = actor.failed.keys().copied().collect();
            if !again.is_empty() {
                again.into_iter().for_each(|join| actor.join(join));
                actor.settle();
            }
        });
    }
}

impl Handler<Want> for Joins {
    type Result = ();

    fn handle(&mut self, want: Want, _: &mut Self::Context) {
        // A link that is gone or down took its memberships along; the sockets are of no use.
        let names = &want.names;
        self.held.retain(|index, _| names.contains_key(index));
        self.failed
            .retain(|join, _| names.contains_key(&join.interface));
        self.wanted
            .retain(|join| names.contains_key(&join.interface));
        for (index, name) in &self.names {
            if names.get(index) != Some(name) {
                self.world.catalog.forget_joined(name.as_str());
            }
        }
        self.names = want.names;
        let old = std::mem::replace(&mut self.wanted, want.joins);
        let new: Vec<Join> = self.wanted.difference(&old).copied().collect();
        // Joined before left: a switch sees no moment without a member.
        new.into_iter().for_each(|join| self.join(join));
        let gone: Vec<Join> = old.difference(&self.wanted).copied().collect();
        gone.iter().for_each(|join| self.leave(join));
        self.settle();
    }
}

impl Handler<AskGroups> for Joins {
    type Result = MessageResult<AskGroups>;

    fn handle(&mut self, _: AskGroups, _: &mut Self::Context) -> Self::Result {
        let view = |join: &Join| GroupView {
            interface: self.name(join.interface),
            source: join.source.map(|s| s.to_string()),
            group: join.group.to_string(),
            error: self.failed.get(join).cloned(),
        };
        MessageResult(self.wanted.iter().map(view).collect())
    }
}

panics_on_demand!(Joins);

impl Handler<Stop> for Joins {
    type Result = ();

    /// Closing the sockets leaves the groups.
    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.held.clear();
        self.vital.disarm();
        ctx.stop();
    }
}
