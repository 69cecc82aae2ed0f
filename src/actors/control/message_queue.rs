//! Captured messages that wait for an actor: one queue for each interface, read in turns.
//!
//! A flood on one interface fills only the queue of this interface, and delays a message on another
//! one by a turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::model::InterfaceId;
use crate::pipeline::{CapturedMessage, Messages};

/// Messages that wait on one interface at most. Further ones are lost.
const MAX_WAITING: usize = 4096;

/// Length of a turn. After it, an actor sends what is due and lets its timers expire.
pub(super) const TURN: Duration = Duration::from_millis(2);

/// The messages of one capture that are not processed yet.
struct Waiting {
    messages: Messages,
    next: usize,
}

/// The queue of one interface.
#[derive(Default)]
struct InterfaceQueue {
    batches: VecDeque<Waiting>,
    waiting: usize,
}

/// The queues of all interfaces.
#[derive(Default)]
pub(super) struct MessageQueue {
    interfaces: BTreeMap<InterfaceId, InterfaceQueue>,
    /// The interface that was served last.
    last: Option<InterfaceId>,
}

impl MessageQueue {
    /// Appends messages that arrived on an interface. Returns false if they are lost, because too
    /// many wait there.
    pub(super) fn push(&mut self, interface: InterfaceId, messages: Messages) -> bool {
        let count = messages.len();
        let queue = self.interfaces.entry(interface).or_default();
        // A batch is accepted by an empty queue, whatever its length.
        if queue.waiting > 0 && queue.waiting + count > MAX_WAITING {
            return false;
        }
        queue.waiting += count;
        queue.batches.push_back(Waiting { messages, next: 0 });
        true
    }

    /// Returns whether no message waits.
    pub(super) fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
    }

    /// Calls `process` with one message of each interface in turn, until the time is `until` or no
    /// message waits. `clock` returns the time. Returns the interfaces whose messages were
    /// processed.
    pub(super) fn run_turn(
        &mut self,
        until: Instant,
        clock: impl Fn() -> Instant,
        mut process: impl FnMut(Instant, InterfaceId, CapturedMessage<'_>),
    ) -> BTreeSet<InterfaceId> {
        let mut served = BTreeSet::new();
        loop {
            let now = clock();
            if !served.is_empty() && now >= until {
                return served;
            }
            let Some(interface) = self.next_interface() else {
                return served;
            };
            self.last = Some(interface);
            served.insert(interface);
            let Some(queue) = self.interfaces.get_mut(&interface) else {
                continue;
            };
            if let Some(batch) = queue.batches.front_mut() {
                if let Some(message) = batch.messages.get(batch.next) {
                    process(now, interface, message);
                    queue.waiting -= 1;
                }
                batch.next += 1;
                if batch.next >= batch.messages.len() {
                    queue.batches.pop_front();
                }
            }
            if queue.batches.is_empty() {
                self.interfaces.remove(&interface);
            }
        }
    }

    /// Returns the interface to serve next.
    fn next_interface(&self) -> Option<InterfaceId> {
        let after = self.last.and_then(|last| {
            let above = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
            self.interfaces.range(above).next()
        });
        let next = after.or_else(|| self.interfaces.first_key_value());
        next.map(|(interface, _)| *interface)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn id(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    fn messages(bytes: std::ops::Range<u8>) -> Messages {
        let mut messages = Messages::default();
        for byte in bytes {
            messages.push(CapturedMessage {
                bytes: &[byte],
                outgoing: false,
            });
        }
        messages
    }

    /// Runs a turn in which each message takes a millisecond. Returns interface and byte of each.
    fn turn(queue: &mut MessageQueue, ms: u64) -> Vec<(u32, u8)> {
        let start = Instant::now();
        let elapsed = Cell::new(0);
        let mut processed = Vec::new();
        let served = queue.run_turn(
            start + Duration::from_millis(ms),
            || start + Duration::from_millis(elapsed.get()),
            |_, interface, message| {
                elapsed.set(elapsed.get() + 1);
                processed.push((interface.get(), message.bytes[0]));
            },
        );
        let all: BTreeSet<_> = processed.iter().map(|(n, _)| id(*n)).collect();
        assert_eq!(served, all);
        processed
    }

    #[test]
    fn interfaces_are_served_in_turn() {
        let mut queue = MessageQueue::default();
        assert!(queue.push(id(1), messages(0..5)));
        assert!(queue.push(id(2), messages(10..11)));
        assert!(queue.push(id(1), messages(5..6)));
        assert_eq!(turn(&mut queue, 3), [(1, 0), (2, 10), (1, 1)]);
        assert!(queue.push(id(3), messages(20..22)));
        assert_eq!(turn(&mut queue, 3), [(3, 20), (1, 2), (3, 21)]);
        assert_eq!(turn(&mut queue, 100), [(1, 3), (1, 4), (1, 5)]);
        assert!(queue.is_empty());
        assert_eq!(turn(&mut queue, 100), []);
    }

    #[test]
    fn full_queue_of_an_interface_leaves_the_others() {
        let mut queue = MessageQueue::default();
        for _ in 0..MAX_WAITING / 64 {
            assert!(queue.push(id(1), messages(0..64)));
        }
        assert!(!queue.push(id(1), messages(0..1)));
        assert!(queue.push(id(2), messages(0..1)));
        assert_eq!(turn(&mut queue, 2), [(1, 0), (2, 0)]);
        assert!(queue.push(id(1), messages(0..1)));
    }
}
