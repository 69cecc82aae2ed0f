//! A watcher: an end that is registered at the server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::mnat::Channel;
use crate::mnat::messages::Subscription;
use crate::mnat_server::changes::StoredWatcher;

/// A channel that an egress joins.
#[derive(Debug)]
pub enum WatcherJoin {
    /// It can have a local channel.
    Channel(Channel),
    /// It is listed as unassigned under this number.
    Unusable(u64, Subscription),
}

/// The sources of channels, to find out who watches one of them.
#[derive(Debug, Default)]
pub struct SourceSet {
    named: BTreeSet<IpAddr>,
    /// Whether an IPv4 and an IPv6 channel has any source.
    any: [bool; 2],
}

impl SourceSet {
    /// Returns the sources of these channels.
    pub fn of(globals: &[Channel]) -> Self {
        let mut set = Self::default();
        for global in globals {
            match global.source() {
                Some(source) => _ = set.named.insert(source.addr()),
                None => set.any[usize::from(!global.is_ipv4())] = true,
            }
        }
        set
    }

    fn meets(&self, prefix: &IpNet) -> bool {
        let mut named = self.named.range(prefix.network()..=prefix.broadcast());
        let mut any = [true, false].into_iter().zip(self.any);
        named.next().is_some()
            || any.any(|(is_ipv4, has_any)| has_any && has_any_source(prefix, is_ipv4))
    }
}

/// Returns whether a prefix contains the sources of a channel of any source: only that of all
/// addresses does.
fn has_any_source(prefix: &IpNet, is_ipv4: bool) -> bool {
    prefix.prefix_len() == 0 && prefix.addr().is_ipv4() == is_ipv4
}

/// A registered end.
#[derive(Debug)]
pub struct Watcher {
    /// The watcher id.
    pub id: Arc<str>,
    /// The subject of the certificate with which the id was requested.
    pub identity: Option<Arc<[u8]>>,
    /// The joins of an egress.
    pub joined: Option<Vec<WatcherJoin>>,
    /// The sources that an ingress watches.
    pub monitors: Option<Vec<IpNet>>,
    /// When it expires; `None` if a shared store decides.
    pub expires: Option<Instant>,
    /// The change that changed its mappings last.
    pub version: u64,
    /// The revision at which the shared store has it; 0 if it is new.
    pub revision: u64,
    /// The last transaction that wrote it.
    pub written: u64,
    /// It requested mappings as the prototype does.
    pub is_prototype: bool,
    /// The output says that its mappings changed.
    pub is_notified: bool,
}

impl Watcher {
    /// Returns what a store keeps.
    pub fn stored(&self) -> StoredWatcher {
        let joined = |join: &WatcherJoin| match join {
            WatcherJoin::Channel(channel) => Subscription::Channel(*channel),
            WatcherJoin::Unusable(_, subscription) => subscription.clone(),
        };
        StoredWatcher {
            id: self.id.to_string(),
            identity: self.identity.as_deref().map(<[u8]>::to_vec),
            joined: self
                .joined
                .as_ref()
                .map(|all| all.iter().map(joined).collect()),
            monitors: self.monitors.clone(),
            revision: self.revision,
        }
    }

    /// Returns the channels that it joins and that can have a local one.
    pub fn channels(&self) -> impl Iterator<Item = Channel> {
        let joined = self.joined.iter().flatten();
        joined.filter_map(|join| match join {
            WatcherJoin::Channel(channel) => Some(*channel),
            WatcherJoin::Unusable(..) => None,
        })
    }

    /// Returns the number of its joins.
    pub fn join_count(&self) -> usize {
        self.joined.as_ref().map_or(0, Vec::len)
    }

    /// Returns the number of prefixes that it watches.
    pub fn monitor_count(&self) -> usize {
        self.monitors.as_ref().map_or(0, Vec::len)
    }

    /// Returns whether the watcher watches the source of `global`.
    pub fn watches(&self, global: Channel) -> bool {
        let watches = |prefix: &IpNet| match global.source() {
            Some(source) => prefix.contains(&source.addr()),
            None => has_any_source(prefix, global.is_ipv4()),
        };
        self.monitors.iter().flatten().any(watches)
    }

    /// Returns whether the watcher watches one of these sources.
    pub fn watches_any(&self, sources: &SourceSet) -> bool {
        let mut prefixes = self.monitors.iter().flatten();
        prefixes.any(|prefix| sources.meets(prefix))
    }
}
