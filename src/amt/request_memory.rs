//! What a relay remembers of Requests, to recognise gateways that drop queries with the G flag.

use std::hash::Hash;
use std::net::SocketAddr;

use ahash::RandomState;

use crate::wire::amt::FlagLayout;

/// Number of hashes of each kind. A further one replaces another one, so the memory is constant.
const POSITIONS: usize = 4096;

/// Hashes of recent Requests, and of gateways whose flags are those of the Linux driver.
///
/// The driver drops a query with the G flag. Its MLD requests tell which driver it is, but not its
/// IGMP requests, which have no flag.
#[derive(Debug)]
pub(super) struct RequestMemory {
    hasher: RandomState,
    requests: HashTable,
    linux_gateways: HashTable,
}

impl RequestMemory {
    /// Creates an empty memory. Senders must not know `seed`.
    pub(super) fn new(seed: u32) -> Self {
        Self {
            hasher: RandomState::with_seed(seed as usize),
            requests: HashTable::new(),
            linux_gateways: HashTable::new(),
        }
    }

    /// Notes a Request. Returns whether its query may have the G flag: the Request is not repeated,
    /// and the gateway is not known as the Linux driver.
    pub(super) fn note(
        &mut self,
        gateway: SocketAddr,
        nonce: u32,
        is_mld: bool,
        flags: FlagLayout,
    ) -> bool {
        let request = self.hash((gateway, nonce, is_mld));
        let gateway = self.hash(gateway);
        let is_repeated = self.requests.contains(request);
        self.requests.insert(request);
        match (is_mld, flags) {
            (true, FlagLayout::Linux) => self.linux_gateways.insert(gateway),
            (true, FlagLayout::Standard) => self.linux_gateways.remove(gateway),
            (false, _) => {}
        }
        !is_repeated && !self.linux_gateways.contains(gateway)
    }

    fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }
}

/// A set of hashes. Some of them are forgotten.
#[derive(Debug)]
struct HashTable(Vec<u32>);

impl HashTable {
    fn new() -> Self {
        Self(vec![0; POSITIONS])
    }

    /// Returns the position of a hash, and what it holds if the hash is there; zero is empty.
    fn place(&mut self, hash: u64) -> (&mut u32, u32) {
        let position = hash as usize % POSITIONS;
        (&mut self.0[position], (hash >> 32) as u32 | 1)
    }

    fn contains(&mut self, hash: u64) -> bool {
        let (held, tag) = self.place(hash);
        *held == tag
    }

    fn insert(&mut self, hash: u64) {
        let (held, tag) = self.place(hash);
        *held = tag;
    }

    fn remove(&mut self, hash: u64) {
        let (held, tag) = self.place(hash);
        if *held == tag {
            *held = 0;
        }
    }
}
