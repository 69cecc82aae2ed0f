//! A limit that clients share: of connections, or of memory.

use std::cell::RefCell;
use std::rc::Rc;

use tokio_util::sync::CancellationToken;

use crate::model::{ClientPrefix, Evicted, FairLimit};

/// The client of a connection. `None` is a program of this machine that uses a UNIX socket.
pub type ClientSource = Option<ClientPrefix>;

/// What clients use of a limit. If it is exceeded, the client that uses most loses what it has used
/// longest. Clones share it.
#[derive(Clone)]
pub struct SharedLimit(Rc<RefCell<ClientLimit>>);

type ClientLimit = FairLimit<ClientSource, CancellationToken>;

/// The connections that gave way. Their tokens are cancelled.
pub type EvictedClients = Vec<Evicted<ClientSource, CancellationToken>>;

/// The share of a connection or a request; dropping it makes room for others.
pub struct Share {
    id: u64,
    limit: SharedLimit,
}

impl SharedLimit {
    /// Returns a limit of which nothing is used.
    pub fn new(limit: usize) -> Self {
        Self(Rc::new(RefCell::new(FairLimit::new(limit))))
    }

    /// Returns the limit.
    pub fn limit(&self) -> usize {
        self.0.borrow().limit()
    }

    /// Adds a share. `closed` is cancelled when it has to give way. Returns also what gave way to
    /// it.
    pub fn admit(
        &self,
        source: ClientSource,
        weight: usize,
        closed: CancellationToken,
    ) -> (Share, EvictedClients) {
        let id = self.0.borrow_mut().insert(source, weight, closed);
        let share = Share {
            id,
            limit: self.clone(),
        };
        (share, self.evict())
    }

    fn evict(&self) -> EvictedClients {
        let mut limit = self.0.borrow_mut();
        let evicted = std::iter::from_fn(|| limit.evict());
        // A connection may have several shares.
        let is_new = |client: &Evicted<ClientSource, CancellationToken>| {
            let is_open = !client.holder.is_cancelled();
            client.holder.cancel();
            is_open
        };
        evicted.filter(is_new).collect()
    }
}

impl Share {
    /// Notes that the client is active.
    pub fn touch(&self) {
        self.limit.0.borrow_mut().touch(self.id);
    }

    /// Adds to the share. Returns what gave way.
    pub fn grow(&self, by: usize) -> EvictedClients {
        self.limit.0.borrow_mut().grow(self.id, by);
        self.limit.evict()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limit.0.borrow_mut().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_connection_replaces_the_oldest_of_the_client_with_most() {
        let limit = SharedLimit::new(256);
        let source = |last: u8| Some(ClientPrefix::of([192, 0, 2, last].into()));
        let admit = |last: u8| {
            let closed = CancellationToken::new();
            let (share, evicted) = limit.admit(source(last), 1, closed.clone());
            (share, closed, evicted)
        };
        let single = admit(1);
        let mut open: Vec<_> = (0..255).map(|_| admit(2)).collect();
        assert!(open.iter().all(|(.., evicted)| evicted.is_empty()));
        drop(open.remove(7));
        assert!(admit(3).2.is_empty(), "there is room");
        let (_newest, _, evicted) = admit(3);
        assert!(evicted.is_empty(), "the share before was dropped");
        let (_next, _, evicted) = admit(3);
        let evicted: Vec<_> = evicted.iter().map(|e| (e.source, e.used)).collect();
        assert_eq!(evicted, [(source(2), 254)]);
        assert!(open[0].1.is_cancelled());
        assert!(!open[1].1.is_cancelled() && !single.1.is_cancelled());
        drop(open);
        // There is room for 253 more.
        let more: Vec<_> = (0..253).map(|_| admit(2)).collect();
        assert!(more.iter().all(|(.., evicted)| evicted.is_empty()));
        assert_eq!(admit(2).2.len(), 1);
    }
}
