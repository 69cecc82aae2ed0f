//! What hosts behind downstream interfaces asked for, and the part of the snapshot made of it.
//!
//! Lifecycle: membership tells [`MembershipDatabase`] what is wanted, group by group, after each change.
//! [`MembershipDatabase::rebuild`] puts all of it into a snapshot that [`Rib::fib`](super::Rib::fib) has
//! just made of new rules or links; [`MembershipDatabase::update`] makes the next snapshot of the one in
//! force when only memberships changed. An update costs what changed: snapshots share all else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet, RandomState};

use super::sets::{EMPTY, Interner, SetId, Sets};
use super::{DownstreamId, Fib};
use crate::model::{Group, IfIndex, SourceFilter};

/// The groups of a snapshot are spread over so many maps; a change copies one of them.
const SHARDS: usize = 256;

/// Which downstream interfaces want a source of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Those that want the source.
    pub set: SetId,
    /// Those that want any source of the group.
    pub anybody: SetId,
}

/// Who wants a group.
#[derive(Debug, PartialEq, Eq)]
struct GroupInterest {
    anybody: SetId,
    /// Who wants sources that are not in `named`.
    others: SetId,
    /// Sources that others want than `others`, in rising order.
    named: Box<[(IpAddr, SetId)]>,
}

impl GroupInterest {
    fn sets(&self) -> impl Iterator<Item = SetId> {
        let named = self.named.iter().map(|(_, set)| *set);
        [self.anybody, self.others].into_iter().chain(named)
    }
}

type Shard = AHashMap<IpAddr, Arc<GroupInterest>>;

/// Who wants which group, as the data path asks. Immutable; a clone shares all.
#[derive(Debug, Clone)]
pub struct OifTable {
    seed: RandomState,
    shards: Arc<Vec<Arc<Shard>>>,
    sets: Sets,
}

impl Default for OifTable {
    fn default() -> Self {
        Self {
            seed: RandomState::new(),
            shards: Arc::new(vec![Arc::default(); SHARDS]),
            sets: Sets::default(),
        }
    }
}

impl OifTable {
    fn shard(&self, group: &IpAddr) -> usize {
        self.seed.hash_one(group) as usize % SHARDS
    }

    /// Who wants packets from a source to a group; `None` where nobody wants any of the group.
    pub fn find(&self, source: IpAddr, group: IpAddr) -> Option<Found> {
        let wish = self.shards[self.shard(&group)].get(&group)?;
        let named = wish.named.binary_search_by_key(&source, |(s, _)| *s);
        Some(Found {
            set: named.map_or(wish.others, |at| wish.named[at].1),
            anybody: wish.anybody,
        })
    }

    /// The downstream interfaces of a set, in rising order.
    #[inline]
    pub fn set(&self, id: SetId) -> &[DownstreamId] {
        self.sets.get(id)
    }

    fn put(
        &mut self,
        group: IpAddr,
        wish: Option<Arc<GroupInterest>>,
    ) -> Option<Arc<GroupInterest>> {
        let shard = self.shard(&group);
        let shard = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard]);
        match wish {
            Some(wish) => shard.insert(group, wish),
            None => shard.remove(&group),
        }
    }
}

/// The memberships behind downstream interfaces. Owned by routing, announced anew after its
/// restart.
#[derive(Debug, Default)]
pub struct MembershipDatabase {
    groups: AHashMap<Group, BTreeMap<IfIndex, SourceFilter>>,
    /// Groups whose wishes may have changed since the last snapshot.
    changed: AHashSet<Group>,
    /// What the last snapshot was given.
    wishes: OifTable,
    interner: Interner,
    /// Position of a downstream interface in that snapshot.
    ids: AHashMap<IfIndex, DownstreamId>,
}

impl MembershipDatabase {
    /// The hosts behind `downstream` want this of a group from now on; a filter that takes
    /// nothing ends the membership. Nothing is forwarded by it before the next snapshot.
    pub fn learn(&mut self, downstream: IfIndex, group: Group, filter: SourceFilter) {
        let members = self.groups.entry(group).or_default();
        let old = match filter.is_none() {
            true => members.remove(&downstream),
            false => members.insert(downstream, filter.clone()),
        };
        if members.is_empty() {
            self.groups.remove(&group);
        }
        if old.unwrap_or_default() != filter {
            self.changed.insert(group);
        }
    }

    /// Nothing is wanted behind `downstream` any more.
    pub fn forget(&mut self, downstream: IfIndex) {
        let changed = &mut self.changed;
        self.groups.retain(|group, members| {
            if members.remove(&downstream).is_some() {
                changed.insert(*group);
            }
            !members.is_empty()
        });
    }

    /// Every membership: behind which interface, of which group, what of it.
    pub fn memberships(&self) -> impl Iterator<Item = (IfIndex, Group, &SourceFilter)> {
        let groups = self.groups.iter();
        groups.flat_map(|(group, members)| members.iter().map(|(i, f)| (*i, *group, f)))
    }

    /// How many groups are wanted.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// True where none is.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Puts every membership into a snapshot that was just made.
    pub fn rebuild(&mut self, fib: &mut Fib) {
        self.ids = (0..)
            .zip(fib.downstreams.iter())
            .map(|(id, d)| (d.index, id))
            .collect();
        self.wishes = OifTable::default();
        self.interner = Interner::default();
        self.changed = self.groups.keys().copied().collect();
        self.settle(fib);
    }

    /// The snapshot after the memberships that changed, or `None` where what is forwarded
    /// stays the same. `fib` is the last one that was given to [`MembershipDatabase::rebuild`] or came
    /// from here.
    pub fn update(&mut self, fib: &Fib, generation: u64) -> Option<Fib> {
        let mut next = Fib {
            generation,
            ..fib.clone()
        };
        self.settle(&mut next).then_some(next)
    }

    fn settle(&mut self, fib: &mut Fib) -> bool {
        let mut changed = false;
        for group in std::mem::take(&mut self.changed) {
            let new = self.wish(group, fib);
            let old = self.wishes.shards[self.wishes.shard(&group.addr())].get(&group.addr());
            // Sets are held by the new wish before they are let go by the old one.
            if old.map(Arc::as_ref) == new.as_ref() {
                release(&mut self.interner, new.as_ref());
                continue;
            }
            let old = self.wishes.put(group.addr(), new.map(Arc::new));
            release(&mut self.interner, old.as_deref());
            changed = true;
        }
        self.wishes.sets = self.interner.sets.clone();
        fib.wishes = self.wishes.clone();
        changed
    }

    fn wish(&mut self, group: Group, fib: &Fib) -> Option<GroupInterest> {
        let mut anybody = Vec::new();
        let mut others = Vec::new();
        // Per source, the interfaces that think otherwise of it than of the others.
        let mut odd: BTreeMap<IpAddr, Vec<DownstreamId>> = BTreeMap::new();
        let mut members: Vec<_> = self
            .groups
            .get(&group)?
            .iter()
            .filter_map(|(index, filter)| Some((*self.ids.get(index)?, filter)))
            .filter(|(id, _)| fib.downstreams[*id as usize].proxy.takes_group(group))
            .collect();
        members.sort_unstable_by_key(|(id, _)| *id);
        for (id, filter) in members {
            anybody.push(id);
            let sources = match filter {
                SourceFilter::Include(sources) => sources,
                SourceFilter::Exclude(sources) => {
                    others.push(id);
                    sources
                }
            };
            for source in sources {
                odd.entry(source.addr()).or_default().push(id);
            }
        }
        if anybody.is_empty() {
            return None;
        }
        let mut scratch = Vec::new();
        let named = odd.into_iter().map(|(source, odd)| {
            scratch.clear();
            scratch.extend(others.iter().filter(|id| odd.binary_search(id).is_err()));
            scratch.extend(odd.iter().filter(|id| others.binary_search(id).is_err()));
            scratch.sort_unstable();
            (source, self.interner.hold(&scratch))
        });
        let named = named.collect();
        Some(GroupInterest {
            anybody: self.interner.hold(&anybody),
            others: self.interner.hold(&others),
            named,
        })
    }
}

fn release(interner: &mut Interner, wish: Option<&GroupInterest>) {
    let sets = wish.into_iter().flat_map(GroupInterest::sets);
    sets.filter(|set| *set != EMPTY)
        .for_each(|set| interner.release(set));
}
