use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::mnat_server::assignments::HOLD_DOWN;
use crate::mnat_server::changes::{StoredHold, StoredMapping};
use crate::mnat_server::pool::SourceRange;

/// Returns a sequence of random numbers (splitmix64).
pub(super) fn random(mut state: u64) -> impl FnMut() -> u128 {
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    move || u128::from(next()) << 64 | u128::from(next())
}

pub(super) fn pool(ranges: &str) -> Pool {
    Pool::parse(&format!(r#"{{"group-pool": {{"ranges": [{ranges}]}}}}"#)).unwrap()
}

const SAMPLE: &str = r#"{"group-range": "239.1.1.0/29", "source-range": "10.9.1.2"}"#;

pub(super) fn channel(source: &str, group: &str) -> Channel {
    Channel::parse((source != "*").then_some(source), group).unwrap()
}

/// A client that supports waiting polls.
pub(super) fn ours() -> Caller {
    Caller {
        can_wait: true,
        ..Caller::default()
    }
}

/// A server and the time.
struct Bed {
    machine: ServerMachine,
    now: Instant,
    start: Instant,
}

impl Bed {
    fn new(ranges: &str) -> Self {
        let start = Instant::now();
        Self {
            machine: ServerMachine::new(pool(ranges), Box::new(random(1))),
            now: start,
            start,
        }
    }

    fn ask_as(&mut self, caller: &Caller, request: ServerRequest) -> Result<ServerReply, u16> {
        let reply = self.machine.handle(request, caller, self.now);
        reply.map_err(|e| e.tag.status())
    }

    fn ask(&mut self, request: ServerRequest) -> Result<ServerReply, u16> {
        self.ask_as(&ours(), request)
    }

    fn watcher_of(&mut self, caller: &Caller) -> String {
        match self.ask_as(caller, ServerRequest::NewWatcher) {
            Ok(ServerReply::Granted(grant)) => grant.id,
            other => panic!("{other:?}"),
        }
    }

    fn watcher(&mut self) -> String {
        self.watcher_of(&ours())
    }

    fn join(&mut self, id: &str, joins: &[Channel]) -> Result<ServerReply, u16> {
        let joined = joins.iter().copied().map(Subscription::Channel).collect();
        self.ask(ServerRequest::SetJoined(JoinedSet {
            id: id.into(),
            joined,
        }))
    }

    fn watch(&mut self, id: &str, prefixes: &[&str]) {
        let prefixes = prefixes.iter().map(|p| p.parse().unwrap()).collect();
        let set = MonitorSet {
            id: id.into(),
            prefixes,
        };
        assert!(self.ask(ServerRequest::SetMonitors(set)).is_ok());
    }

    fn mapped_as(&mut self, caller: &Caller, id: &str) -> Option<Vec<MappedChannel>> {
        match self.ask_as(caller, ServerRequest::Assigned(id.into())) {
            Ok(ServerReply::Assigned(channels, _)) => Some(channels.mapped),
            Ok(ServerReply::UnknownWatcher) => None,
            other => panic!("{other:?}"),
        }
    }

    fn mapped(&mut self, id: &str) -> Vec<MappedChannel> {
        self.mapped_as(&ours(), id).expect("a known watcher")
    }

    fn local(&mut self, id: &str, global: Channel) -> Option<Channel> {
        let mapped = self.mapped(id);
        let entry = mapped
            .iter()
            .find(|m| m.global == Subscription::Channel(global));
        entry.expect("a joined channel").local
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        while self.machine.poll_output(self.now).is_some() {}
    }

    /// Returns the ids of the watchers whose mappings changed.
    fn changed(&mut self) -> BTreeSet<String> {
        let output = std::iter::from_fn(|| self.machine.poll_output(self.now));
        output
            .filter_map(|output| match output {
                ServerOutput::Changed(id) => Some(id.to_string()),
                ServerOutput::Commit(_) | ServerOutput::Prolong(_) => None,
            })
            .collect()
    }
}

#[test]
fn mapping_is_the_same_for_every_watcher() {
    let mut bed = Bed::new(SAMPLE);
    let (a, b, ingress) = (bed.watcher(), bed.watcher(), bed.watcher());
    let global = channel("10.0.0.1", "232.1.1.1");
    bed.join(&a, &[global]).unwrap();
    bed.join(&b, &[global, channel("10.0.0.2", "232.1.1.2")])
        .unwrap();
    bed.watch(&ingress, &["0.0.0.0/0", "10.0.0.0/8"]);
    let mapped = bed.mapped(&a);
    assert_eq!(mapped[0], bed.mapped(&b)[0]);
    assert_eq!(bed.mapped(&ingress), bed.mapped(&b));
    bed.watch(&ingress, &["10.0.0.1/32"]);
    assert_eq!(bed.mapped(&ingress), mapped);
}

#[test]
fn whole_pool_is_assigned_and_the_rest_waits() {
    let mut bed = Bed::new(SAMPLE);
    let id = bed.watcher();
    let globals: Vec<Channel> = (0..10)
        .map(|n| channel(&format!("10.0.0.{}", n + 1), "232.1.1.1"))
        .collect();
    assert_eq!(bed.join(&id, &globals), Ok(ServerReply::Created));
    let locals: Vec<_> = bed.mapped(&id).into_iter().map(|m| m.local).collect();
    let distinct: BTreeSet<_> = locals.iter().flatten().collect();
    assert_eq!((distinct.len(), locals.iter().flatten().count()), (8, 8));
    assert_eq!(locals[8..], [None, None]);
    // The slot of a channel that is left is held first, and then goes to the one that waits longest.
    bed.join(&id, &globals[1..]).unwrap();
    assert_eq!(bed.local(&id, globals[8]), None);
    bed.wait(HOLD_DOWN - Duration::from_secs(1));
    bed.ask(ServerRequest::Refresh(id.clone())).unwrap();
    assert_eq!(bed.local(&id, globals[8]), None);
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.local(&id, globals[8]), locals[0]);
    assert_eq!(bed.local(&id, globals[9]), None);
}

#[test]
fn returning_channel_gets_its_local_channel_back() {
    let ranges = r#"{"group-range": "239.0.0.0/8", "source-range": "10.9.1.2"}"#;
    let mut bed = Bed::new(ranges);
    let id = bed.watcher();
    let global = channel("10.0.0.1", "232.1.1.1");
    bed.join(&id, &[global]).unwrap();
    let local = bed.local(&id, global);
    for away in [Duration::from_secs(1), HOLD_DOWN * 2] {
        bed.join(&id, &[]).unwrap();
        for _ in 0..away.as_secs() {
            bed.wait(Duration::from_secs(1));
            bed.ask(ServerRequest::Refresh(id.clone())).unwrap();
        }
        bed.join(&id, &[global]).unwrap();
        assert_eq!(bed.local(&id, global), local);
    }
}

#[test]
fn watcher_expires_without_refresh() {
    let mut bed = Bed::new(SAMPLE);
    let (a, b) = (bed.watcher(), bed.watcher());
    let global = channel("10.0.0.1", "232.1.1.1");
    bed.join(&a, &[global]).unwrap();
    bed.watch(&b, &["0.0.0.0/0"]);
    bed.wait(WATCHER_LIFETIME - Duration::from_secs(1));
    assert_eq!(bed.mapped(&b).len(), 1);
    bed.ask(ServerRequest::Refresh(b.clone())).unwrap();
    assert_eq!(
        bed.machine.poll_timeout(),
        Some(bed.start + WATCHER_LIFETIME)
    );
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.mapped_as(&ours(), &a), None);
    assert_eq!(bed.ask(ServerRequest::Refresh(a.clone())), Err(500));
    assert_eq!(bed.join(&a, &[global]), Err(404));
    assert_eq!(bed.mapped(&b), []);
    assert_eq!(bed.machine.counts().held, 1);
}

#[test]
fn changes_are_announced_to_the_watchers_concerned() {
    let mut bed = Bed::new(SAMPLE);
    let (a, b, all, v6) = (bed.watcher(), bed.watcher(), bed.watcher(), bed.watcher());
    bed.watch(&all, &["0.0.0.0/0"]);
    bed.watch(&v6, &["::/0"]);
    bed.changed();
    let global = channel("10.0.0.1", "232.1.1.1");
    let version = bed.machine.version(&all, &ours());
    bed.join(&a, &[global]).unwrap();
    assert_eq!(bed.changed(), BTreeSet::from([a.clone(), all.clone()]));
    assert!(bed.machine.version(&all, &ours()) > version);
    // Another join changes nothing for others.
    bed.join(&b, &[global]).unwrap();
    assert_eq!(bed.changed(), BTreeSet::from([b.clone()]));
    bed.join(&b, &[global]).unwrap();
    assert_eq!(bed.changed(), BTreeSet::new());
    bed.join(&a, &[]).unwrap();
    bed.changed();
    bed.join(&b, &[]).unwrap();
    assert_eq!(bed.changed(), BTreeSet::from([b, all]));
}

#[test]
fn ids_are_bound_to_the_identity_that_requested_them() {
    let mut bed = Bed::new(SAMPLE);
    let caller = |name: &[u8]| Caller {
        identity: Some(name.into()),
        can_wait: true,
    };
    let id = bed.watcher_of(&caller(b"a"));
    for other in [caller(b"b"), ours()] {
        assert_eq!(bed.mapped_as(&other, &id), None);
        let refresh = ServerRequest::Refresh(id.clone());
        assert_eq!(bed.ask_as(&other, refresh), Err(500));
        let joined = JoinedSet {
            id: id.clone(),
            joined: vec![],
        };
        assert_eq!(
            bed.ask_as(&other, ServerRequest::SetJoined(joined)),
            Err(404)
        );
    }
    assert_eq!(bed.mapped_as(&caller(b"a"), &id), Some(vec![]));
    let free = bed.watcher();
    assert_eq!(bed.mapped_as(&caller(b"b"), &free), Some(vec![]));
}

#[test]
fn any_source_entries_are_only_for_clients_that_understand_them() {
    let ranges = r#"{"group-range": "239.1.1.0/24", "source-range": "asm"},
        {"group-range": "ff35::/112", "source-range": "fd00::1"}"#;
    let mut bed = Bed::new(ranges);
    let (a, b) = (bed.watcher(), bed.watcher());
    let (ssm, asm) = (channel("10.0.0.1", "232.1.1.1"), channel("*", "239.5.5.5"));
    let v6 = channel("2001:db8::1", "ff3e::1");
    bed.join(&a, &[ssm, asm, v6]).unwrap();
    bed.join(&b, &[ssm, v6]).unwrap();
    assert_eq!(bed.mapped(&b).len(), 2);
    let prototype = Caller::default();
    let seen = bed.mapped_as(&prototype, &b).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(bed.mapped_as(&prototype, &a).unwrap().len(), 3);
}

#[test]
fn ipv4_ranges_are_preferred_beside_prototypes() {
    let ranges = r#"{"group-range": "239.1.1.0/24", "source-range": "10.0.0.1"},
        {"group-range": "ff35::/112", "source-range": "fd00::1"}"#;
    let mut bed = Bed::new(ranges);
    let id = bed.watcher();
    let v6 = |n: u8| channel(&format!("2001:db8::{n:x}"), "ff3e::1");
    bed.join(&id, &[v6(1)]).unwrap();
    assert!(!bed.local(&id, v6(1)).unwrap().is_ipv4());
    let prototype = bed.watcher();
    bed.mapped_as(&Caller::default(), &prototype);
    bed.join(&id, &[v6(1), v6(2)]).unwrap();
    assert!(bed.local(&id, v6(2)).unwrap().is_ipv4());
}

#[test]
fn unusable_channels_are_unassigned() {
    let mut bed = Bed::new(SAMPLE);
    let id = bed.watcher();
    let unusable = Subscription::Unusable {
        source: "10.0.0.1".into(),
        group: "ff3e::1".into(),
    };
    let joined = vec![unusable.clone()];
    let set = JoinedSet {
        id: id.clone(),
        joined,
    };
    bed.ask(ServerRequest::SetJoined(set)).unwrap();
    let mapped = bed.mapped(&id);
    assert_eq!((&mapped[0].global, mapped[0].local), (&unusable, None));
}

#[test]
fn joins_have_a_limit() {
    let mut bed = Bed::new(SAMPLE);
    let id = bed.watcher();
    let global = |n: usize| channel(&format!("10.1.{}.{}", n / 250, n % 250 + 1), "232.1.1.1");
    let globals: Vec<Channel> = (0..=MAX_JOINS).map(global).collect();
    assert_eq!(bed.join(&id, &globals), Err(409));
    assert!(bed.join(&id, &globals[1..]).is_ok());
}

/// Assignment takes microseconds in the largest ranges. The bound is far above, because tests share
/// the machine.
#[test]
fn assignment_does_not_depend_on_the_size_of_the_pool() {
    for range in [
        r#"{"group-range": "232.0.0.0/8", "source-range": "10.0.0.1"}"#,
        r#"{"group-range": "ff3e:0:0:1::/64", "source-range": "fd00::/64"}"#,
    ] {
        let mut bed = Bed::new(range);
        let joins = 20_000;
        let globals: Vec<Channel> = (0..joins)
            .map(|n| channel(&format!("10.1.{}.{}", n / 250, n % 250 + 1), "232.1.1.1"))
            .collect();
        let id = bed.watcher();
        let start = Instant::now();
        bed.join(&id, &globals).unwrap();
        let each = start.elapsed() / joins;
        println!("{each:?} for each assignment");
        assert!(each < Duration::from_micros(200), "{each:?}");
        assert_eq!(bed.machine.counts().assigned as u32, joins);
    }
}

/// A replica of the state, from the transactions.
#[derive(Debug, Clone, Default)]
struct Replica {
    watchers: BTreeMap<String, StoredWatcher>,
    /// By global channel.
    mappings: BTreeMap<Channel, StoredMapping>,
    /// By local channel.
    holds: BTreeMap<Channel, StoredHold>,
}

impl Replica {
    fn apply(&mut self, transaction: Transaction) {
        for change in transaction.changes {
            match change {
                StoreChange::PutWatcher(w) => {
                    self.watchers.insert(w.id.clone(), w);
                }
                StoreChange::RemoveWatcher(id) => {
                    assert!(self.watchers.remove(&id).is_some());
                }
                StoreChange::PutMapping(m) => {
                    let is_taken = self.mappings.values().any(|other| other.local == m.local);
                    assert!(!is_taken && !self.holds.contains_key(&m.local), "{m:?}");
                    assert_eq!(self.mappings.insert(m.global, m), None);
                }
                StoreChange::HoldMapping(m) => {
                    assert_eq!(self.mappings.remove(&m.global), Some(m));
                    let (local, global) = (m.local, m.global);
                    let hold = StoredHold { local, global };
                    assert_eq!(self.holds.insert(local, hold), None);
                }
                StoreChange::ResumeMapping(m) => {
                    assert!(
                        self.holds
                            .remove(&m.local)
                            .is_some_and(|h| h.global == m.global)
                    );
                    assert_eq!(self.mappings.insert(m.global, m), None);
                }
                StoreChange::RemoveHold(hold) => {
                    assert_eq!(self.holds.remove(&hold.local), Some(hold));
                }
            }
        }
    }

    fn stored(&self) -> StoredServer {
        StoredServer {
            watchers: self.watchers.values().cloned().collect(),
            mappings: self.mappings.values().copied().collect(),
            holds: self.holds.values().copied().collect(),
        }
    }
}

pub(super) const MODEL_POOL: &str = r#"{"group-range": "239.1.1.0/29", "source-range": "10.9.1.2",
        "exclude": [{"groupex-range": "239.1.1.3/32"}]},
    {"group-range": "ff35::8000:0/126", "source-range": "fd00::10/127"},
    {"group-range": "239.2.0.0/31", "source-range": "keep"},
    {"group-range": "239.3.0.0/31", "source-range": "asm"},
    {"group-range": "ff15::/127", "source-range": "asm"}"#;

/// Naive knowledge of what the server must do.
struct Model {
    joined: BTreeMap<String, BTreeSet<Channel>>,
    expires: BTreeMap<String, Instant>,
    mappings: BTreeMap<Channel, (u64, Channel)>,
    /// The last global channel of each local one, and when it lost it.
    released: BTreeMap<Channel, (Channel, Instant)>,
}

impl Model {
    fn expire(&mut self, now: Instant) {
        let late: Vec<String> = self
            .expires
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            self.expires.remove(&id);
            self.joined.remove(&id);
        }
    }

    /// Compares the mappings that an ingress sees with what they must be.
    fn check(&mut self, pool: &Pool, seen: &[MappedChannel], now: Instant) {
        let wanted: BTreeSet<Channel> = self.joined.values().flatten().copied().collect();
        let mut mappings = BTreeMap::new();
        let mut waiting = Vec::new();
        let mut globals = BTreeSet::new();
        for entry in seen {
            let Subscription::Channel(global) = entry.global else {
                panic!("{entry:?}");
            };
            assert!(globals.insert(global), "{global} is there twice");
            match entry.local {
                Some(local) => {
                    mappings.insert(global, (entry.id, local));
                }
                None => waiting.push(global),
            }
        }
        assert_eq!(globals, wanted);
        let locals: BTreeSet<Channel> = mappings.values().map(|(_, local)| *local).collect();
        assert_eq!(
            locals.len(),
            mappings.len(),
            "a local channel is assigned twice"
        );
        for (global, (_, local)) in &self.mappings {
            if wanted.contains(global) {
                assert_eq!(
                    mappings.get(global).map(|m| m.1),
                    Some(*local),
                    "{global} moved"
                );
            } else {
                self.released.insert(*local, (*global, now));
            }
        }
        for (global, (_, local)) in &mappings {
            if self.mappings.contains_key(global) {
                continue;
            }
            if let Some((owner, at)) = self.released.get(local) {
                let is_over = now >= *at + HOLD_DOWN;
                assert!(is_over || owner == global, "{local} is held for {owner}");
            }
            let held = self
                .released
                .iter()
                .find(|(_, (owner, at))| owner == global && now < *at + HOLD_DOWN);
            assert!(
                held.is_none_or(|(held, _)| held == local),
                "{global} lost {held:?}"
            );
        }
        self.released
            .retain(|local, (_, at)| !locals.contains(local) && now < *at + HOLD_DOWN);
        // No channel waits while a local channel that suits it is free.
        for global in waiting {
            for (n, range) in pool.ranges().iter().enumerate() {
                if range.suits(global, false).is_none() {
                    continue;
                }
                let slots = (0..range.size()).map(|index| PoolSlot { range: n, index });
                let free = slots
                    .filter_map(|slot| pool.local(slot, global))
                    .find(|local| {
                        let same_slot = |other: &Channel| match range.sources() {
                            SourceRange::Keep => other.group() == local.group(),
                            _ => other == local,
                        };
                        !locals.iter().any(same_slot) && !self.released.keys().any(same_slot)
                    });
                assert_eq!(free, None, "{global} waits");
            }
        }
        self.mappings = mappings;
    }
}

use crate::mnat_server::pool::PoolSlot;

/// Random joins, leaves, expiries and deaths of the server, against a naive model.
/// `MCASTOR_MODEL_STEPS` and `MCASTOR_MODEL_SEED` set the number of steps and the seed.
#[test]
fn server_behaves_as_the_model() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let steps = variable("MCASTOR_MODEL_STEPS").unwrap_or(5_000);
    let seed = variable("MCASTOR_MODEL_SEED").unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    });
    println!("MCASTOR_MODEL_SEED={seed} MCASTOR_MODEL_STEPS={steps}");
    let mut random_number = random(seed);
    let pool = pool(MODEL_POOL);
    let mut channels: Vec<Channel> = Vec::new();
    for n in 1..=14 {
        channels.push(channel(&format!("10.0.0.{n}"), "232.1.1.1"));
        channels.push(channel(&format!("2001:db8::{n}"), "ff3e::1"));
        if n <= 4 {
            channels.push(channel("*", &format!("239.9.9.{n}")));
            channels.push(channel("*", &format!("ff1e::{n}")));
        }
    }
    let mut now = Instant::now();
    let new_machine = |seed| ServerMachine::new(pool.clone(), Box::new(random(seed)));
    let mut machine = new_machine(seed ^ 1);
    let (mut replica, mut uncommitted) = (Replica::default(), VecDeque::new());
    let mut model = Model {
        joined: BTreeMap::new(),
        expires: BTreeMap::new(),
        mappings: BTreeMap::new(),
        released: BTreeMap::new(),
    };
    let mut ingress = String::new();
    let (mut restarts, mut full) = (0u32, 0u32);
    for step in 0..steps {
        let mut below = |n: usize| (random_number() % n as u128) as usize;
        let ids: Vec<String> = model.joined.keys().cloned().collect();
        let any = |position: usize| ids.get(position % ids.len().max(1)).cloned();
        let position = below(1000);
        match below(100) {
            0..12 if ids.len() < 8 => {
                let granted = machine.handle(ServerRequest::NewWatcher, &ours(), now);
                let Ok(ServerReply::Granted(grant)) = granted else {
                    panic!("{granted:?}");
                };
                model.joined.insert(grant.id.clone(), BTreeSet::new());
                model.expires.insert(grant.id, now + WATCHER_LIFETIME);
            }
            0..60 => {
                let Some(id) = any(position) else { continue };
                // Few joins at some times and many at others, so that the pool fills and empties.
                let share = if (step / 500) % 2 == 0 { 8 } else { 2 };
                let wanted: BTreeSet<Channel> = channels
                    .iter()
                    .filter(|_| below(share) == 0)
                    .copied()
                    .collect();
                let set = JoinedSet {
                    id: id.clone(),
                    joined: wanted.iter().copied().map(Subscription::Channel).collect(),
                };
                let reply = machine.handle(ServerRequest::SetJoined(set), &ours(), now);
                assert!(reply.is_ok(), "{reply:?}");
                model.joined.insert(id, wanted);
            }
            60..63 => {
                let Some(id) = any(position) else { continue };
                let has = machine.handle(ServerRequest::Joined(id.clone()), &ours(), now);
                let removed = machine.handle(ServerRequest::RemoveJoined(id.clone()), &ours(), now);
                assert_eq!(removed.is_ok(), has.is_ok());
                model.joined.insert(id, BTreeSet::new());
            }
            63..88 => {
                let Some(id) = any(position) else { continue };
                let refresh = ServerRequest::Refresh(id.clone());
                assert_eq!(machine.handle(refresh, &ours(), now), Ok(ServerReply::Done));
                model.expires.insert(id, now + WATCHER_LIFETIME);
            }
            88..98 => {
                now += Duration::from_millis(below(20_000) as u64);
                model.expire(now);
            }
            _ => {
                // The process dies. The last transactions may be lost: nobody got an answer.
                let committed = below(uncommitted.len() + 1);
                uncommitted
                    .drain(..committed)
                    .for_each(|t| replica.apply(t));
                uncommitted.clear();
                machine = new_machine(seed ^ u64::from(restarts));
                machine.restore(replica.stored(), now).unwrap();
                restarts += 1;
                model.joined.clear();
                model.expires.clear();
                for (id, watcher) in &replica.watchers {
                    model.expires.insert(id.clone(), now + WATCHER_LIFETIME);
                    let joined = watcher.joined.iter().flatten();
                    let joined = joined.map(|subscription| match subscription {
                        Subscription::Channel(channel) => *channel,
                        other => panic!("{other:?}"),
                    });
                    model.joined.insert(id.clone(), joined.collect());
                }
                let mappings = replica.mappings.values();
                model.mappings = mappings.map(|m| (m.global, (m.id, m.local))).collect();
                let holds = replica.holds.values();
                model.released = holds.map(|h| (h.local, (h.global, now))).collect();
            }
        }
        // An ingress that sees everything.
        let refresh = ServerRequest::Refresh(ingress.clone());
        if machine.handle(refresh, &ours(), now).is_err() {
            let Ok(ServerReply::Granted(grant)) =
                machine.handle(ServerRequest::NewWatcher, &ours(), now)
            else {
                panic!("no watcher id");
            };
            ingress = grant.id;
            model.joined.insert(ingress.clone(), BTreeSet::new());
        }
        model
            .expires
            .insert(ingress.clone(), now + WATCHER_LIFETIME);
        let all = ["0.0.0.0/0", "::/0"].map(|p| p.parse().unwrap());
        let monitors = MonitorSet {
            id: ingress.clone(),
            prefixes: all.into(),
        };
        machine
            .handle(ServerRequest::SetMonitors(monitors), &ours(), now)
            .unwrap();
        while let Some(output) = machine.poll_output(now) {
            if let ServerOutput::Commit(transaction) = output {
                uncommitted.push_back(transaction);
            }
        }
        while uncommitted.len() > below(6) {
            uncommitted
                .pop_front()
                .into_iter()
                .for_each(|t| replica.apply(t));
        }
        let mapped = |machine: &mut ServerMachine, id: &str| match machine.handle(
            ServerRequest::Assigned(id.into()),
            &ours(),
            now,
        ) {
            Ok(ServerReply::Assigned(channels, _)) => channels.mapped,
            other => panic!("{other:?}"),
        };
        let seen = mapped(&mut machine, &ingress);
        full += u32::from(seen.iter().any(|m| m.local.is_none()));
        model.check(&pool, &seen, now);
        // One egress sees the same mappings.
        if let Some((id, wanted)) = model.joined.iter().nth(below(8)) {
            let own = mapped(&mut machine, id);
            if *id != ingress {
                assert_eq!(own.len(), wanted.len());
                assert!(own.iter().all(|entry| seen.contains(entry)));
            }
        }
        assert_eq!(machine.counts().assigned, model.mappings.len());
        assert_eq!(machine.counts().held, model.released.len());
    }
    println!("{restarts} restarts, {full} steps with a full pool");
    assert!(steps < 1000 || (restarts > 0 && full > 0));
}

/// One client could use up the memory of the server otherwise: it may have many ids.
#[test]
fn joins_of_all_watchers_are_limited() {
    let mut bed = Bed::new(SAMPLE);
    // They need no local channel.
    let unusable = |number: usize| Subscription::Unusable {
        source: "10.0.0.1".into(),
        group: format!("224.0.0.{}", number % 256),
    };
    let set = |bed: &mut Bed, id: &str, count: usize| {
        let (id, joined) = (id.to_owned(), (0..count).map(unusable).collect());
        bed.ask(ServerRequest::SetJoined(JoinedSet { id, joined }))
    };
    let ids: Vec<String> = (0..25).map(|_| bed.watcher()).collect();
    for id in &ids {
        assert!(set(&mut bed, id, MAX_JOINS).is_ok());
    }
    let late = bed.watcher();
    assert_eq!(set(&mut bed, &late, 1), Err(409));
    // A list that does not grow is accepted.
    assert!(set(&mut bed, &ids[0], MAX_JOINS).is_ok());
    assert!(set(&mut bed, &ids[0], MAX_JOINS - 1).is_ok());
    assert_eq!(set(&mut bed, &late, 2), Err(409));
    assert!(set(&mut bed, &late, 1).is_ok());
    let removed = bed.ask(ServerRequest::RemoveJoined(ids[1].clone()));
    assert!(removed.is_ok());
    assert!(set(&mut bed, &late, MAX_JOINS).is_ok());
    bed.wait(WATCHER_LIFETIME);
    assert_eq!((bed.machine.joins, bed.machine.monitors), (0, 0));
}

/// The work for a join depends on who watches, so it must not be done for each channel.
#[test]
fn join_of_many_channels_is_compared_once_with_what_is_watched() {
    let mut bed = Bed::new(SAMPLE);
    let caller = ours();
    let prefixes: Vec<IpNet> = (0..MAX_MONITORS)
        .map(|n| format!("172.16.{n}.0/24").parse().unwrap())
        .collect();
    for _ in 0..MAX_ALL_MONITORS / MAX_MONITORS {
        let set = MonitorSet {
            id: bed.watcher_of(&caller),
            prefixes: prefixes.clone(),
        };
        assert!(bed.ask(ServerRequest::SetMonitors(set)).is_ok());
    }
    let last = bed.watcher();
    let set = MonitorSet {
        id: last.clone(),
        prefixes: prefixes[..1].to_vec(),
    };
    assert_eq!(bed.ask(ServerRequest::SetMonitors(set)), Err(409));
    let of_source =
        |source: &str, n: usize| channel(source, &format!("232.1.{}.{}", n / 256, n % 256));
    let mut joins: Vec<Channel> = (0..10_000).map(|n| of_source("10.0.0.1", n)).collect();
    bed.changed();
    let started = Instant::now();
    bed.join(&last, &joins).unwrap();
    // Comparing each channel takes a minute in a debug build.
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(bed.changed(), BTreeSet::from([last.clone()]));
    joins.push(of_source("172.16.63.9", 9));
    bed.join(&last, &joins).unwrap();
    assert_eq!(bed.changed().len(), MAX_ALL_MONITORS / MAX_MONITORS + 1);
}
