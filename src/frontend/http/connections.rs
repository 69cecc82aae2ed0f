//! The limit of connections.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio_util::sync::CancellationToken;

/// Largest limit of concurrent connections.
pub const MAX_CONNECTIONS: usize = 256;

/// The open connections of the server, oldest first. Clones share them.
#[derive(Clone)]
pub struct Connections(Rc<RefCell<OpenConnections>>);

struct OpenConnections {
    limit: usize,
    next_id: u64,
    /// Ids in ascending order.
    open: VecDeque<(u64, CancellationToken)>,
}

/// The slot of an open connection; dropping it makes room for another one.
pub struct ConnectionSlot {
    id: u64,
    evicted: CancellationToken,
    connections: Connections,
}

impl Connections {
    /// Creates an empty set. A connection beyond `limit` replaces the oldest one.
    pub fn new(limit: usize) -> Self {
        Self(Rc::new(RefCell::new(OpenConnections {
            limit,
            next_id: 0,
            open: VecDeque::new(),
        })))
    }

    /// Admits a connection. The second value tells whether the oldest one was evicted for it.
    pub fn admit(&self) -> (ConnectionSlot, bool) {
        let mut connections = self.0.borrow_mut();
        let oldest = match connections.open.len() < connections.limit {
            true => None,
            false => connections.open.pop_front(),
        };
        let is_full = oldest.is_some();
        if let Some((_, oldest)) = oldest {
            oldest.cancel();
        }
        let (id, evicted) = (connections.next_id, CancellationToken::new());
        connections.next_id += 1;
        connections.open.push_back((id, evicted.clone()));
        let slot = ConnectionSlot {
            id,
            evicted,
            connections: self.clone(),
        };
        (slot, is_full)
    }
}

impl ConnectionSlot {
    /// Waits until a newer connection replaces this one.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let open = &mut self.connections.0.borrow_mut().open;
        if let Ok(position) = open.binary_search_by_key(&self.id, |(id, _)| *id) {
            open.remove(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_connection_replaces_the_oldest() {
        let connections = Connections::new(MAX_CONNECTIONS);
        let admit = |_| connections.admit();
        let mut open: VecDeque<_> = (0..MAX_CONNECTIONS).map(admit).collect();
        assert!(open.iter().all(|(_, is_full)| !is_full));
        drop(open.remove(7));
        assert!(!connections.admit().1, "a free slot");
        let (_newest, is_full) = admit(0);
        assert!(!is_full, "the slot before was dropped");
        let (_next, is_full) = admit(0);
        assert!(is_full);
        assert!(open[0].0.evicted.is_cancelled());
        assert!(!open[1].0.evicted.is_cancelled());
        drop(open);
        assert_eq!(connections.0.borrow().open.len(), 2);
    }
}
