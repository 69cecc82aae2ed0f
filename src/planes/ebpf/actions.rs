//! The actions in the table of the kernel: flows with the same action share one.

use ahash::AHashMap;

use super::plan::{PlannedAction, PlannedPath};
use crate::model::IfIndex;
use crate::sys::offload::{ActionSlot, KernelAction, KernelTables};

/// An action in the table.
struct UsedAction {
    slot: ActionSlot,
    flows: usize,
    /// The packets that were counted as sent on no path.
    failed: u64,
    /// For each egress, the refused copies that were counted.
    refused: Vec<Refused>,
}

/// An action that no flow has any more. The kernel may still use it for packets that were on their
/// way when it got another one.
pub(super) struct RetiredAction(PlannedAction, UsedAction);

/// Copies that an egress refused: because it was down or gone, and for another reason.
pub(super) type Refused = (u64, u64);

/// The counters of the kernel for an action.
pub(super) trait ActionCounters {
    /// Returns the packets that were sent on no path.
    fn failed(&self, slot: ActionSlot) -> u64;
    /// Returns the copies that egress number `at` refused.
    fn refused(&self, slot: ActionSlot, at: usize) -> Refused;
}

impl ActionCounters for KernelTables {
    fn failed(&self, slot: ActionSlot) -> u64 {
        self.failed(slot)
    }

    fn refused(&self, slot: ActionSlot, at: usize) -> Refused {
        self.refused(slot, at)
    }
}

/// What the kernel did not send of what it counted as forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotSent<'a> {
    /// Packets that were sent on none of these paths.
    Failed(&'a [PlannedPath], u64),
    /// Copies that an egress refused.
    Refused(&'a PlannedPath, Refused),
}

impl UsedAction {
    /// Passes what was not sent since the last call to `count`.
    fn count<'a>(
        &mut self,
        action: &'a PlannedAction,
        counters: &impl ActionCounters,
        count: &mut impl FnMut(NotSent<'a>),
    ) {
        let failed = counters.failed(self.slot);
        if failed != self.failed {
            count(NotSent::Failed(&action.paths, failed - self.failed));
            self.failed = failed;
        }
        for (at, (path, counted)) in action.paths.iter().zip(&mut self.refused).enumerate() {
            let now = counters.refused(self.slot, at);
            let new = (now.0 - counted.0, now.1 - counted.1);
            *counted = now;
            if new != (0, 0) {
                count(NotSent::Refused(path, new));
            }
        }
    }
}

/// The actions in use. Pure: the caller reads and writes the table.
pub(super) struct ActionTable {
    capacity: usize,
    used: AHashMap<PlannedAction, UsedAction>,
    free: Vec<ActionSlot>,
    next: usize,
    retired: Vec<RetiredAction>,
}

impl ActionTable {
    /// Returns an empty table for `capacity` actions.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.min(usize::from(ActionSlot::MAX) + 1),
            used: AHashMap::new(),
            free: Vec::new(),
            next: 0,
            retired: Vec::new(),
        }
    }

    /// Returns the position of an action for one more flow. A new action is written by `write`
    /// first. `None` if the table is full.
    pub(super) fn acquire(
        &mut self,
        action: &PlannedAction,
        write: impl FnOnce(ActionSlot, &KernelAction),
    ) -> Option<ActionSlot> {
        if let Some(used) = self.used.get_mut(action) {
            used.flows += 1;
            return Some(used.slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.next < self.capacity => {
                self.next += 1;
                (self.next - 1) as ActionSlot
            }
            None => return None,
        };
        write(slot, &action.action);
        let new = UsedAction {
            slot,
            flows: 1,
            failed: 0,
            refused: vec![(0, 0); action.paths.len()],
        };
        self.used.insert(action.clone(), new);
        Some(slot)
    }

    /// Passes what the kernel did not send since the last call to `count`.
    pub(super) fn count_not_sent(
        &mut self,
        counters: &impl ActionCounters,
        mut count: impl FnMut(NotSent<'_>),
    ) {
        for (action, used) in &mut self.used {
            used.count(action, counters, &mut count);
        }
    }

    /// Returns the interfaces that get the last copy of packets: what they refuse is not counted in
    /// the table.
    pub(super) fn last_egresses(&self) -> impl Iterator<Item = (IfIndex, &PlannedPath)> {
        let actions = self.used.keys().filter(|a| !a.action.keep_original);
        actions.filter_map(|a| Some((a.action.egresses.last()?.index, a.paths.last()?)))
    }

    /// Notes that one flow less has an action.
    pub(super) fn release(&mut self, action: &PlannedAction) {
        let Some(used) = self.used.get_mut(action) else {
            return;
        };
        used.flows -= 1;
        if used.flows == 0 {
            let removed = self.used.remove_entry(action);
            (self.retired).extend(removed.map(|(action, used)| RetiredAction(action, used)));
        }
    }

    /// Returns the actions that became unused. The caller gives them to [`ActionTable::free`] when
    /// the kernel does not read them any more.
    pub(super) fn take_retired(&mut self) -> Vec<RetiredAction> {
        std::mem::take(&mut self.retired)
    }

    /// Lets actions be used again. Passes what the kernel did not send with them to `count`.
    pub(super) fn free(
        &mut self,
        retired: Vec<RetiredAction>,
        counters: &impl ActionCounters,
        mut count: impl FnMut(NotSent<'_>),
    ) {
        for RetiredAction(action, mut used) in retired {
            used.count(&action, counters, &mut count);
            self.free.push(used.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteName;

    fn action(ttl: u8) -> PlannedAction {
        PlannedAction {
            action: KernelAction {
                egresses: Vec::new(),
                keep_original: false,
                decrement: false,
                set_ttl: Some(ttl),
                rewrites: false,
            },
            paths: vec![path()],
        }
    }

    fn path() -> PlannedPath {
        PlannedPath {
            route: RouteName::new("r"),
            iif: "in".parse().unwrap(),
            oif: "out".parse().unwrap(),
        }
    }

    /// The same counts for all actions.
    struct Counters(u64, Refused);

    impl ActionCounters for Counters {
        fn failed(&self, _: ActionSlot) -> u64 {
            self.0
        }

        fn refused(&self, _: ActionSlot, _: usize) -> Refused {
            self.1
        }
    }

    #[test]
    fn unsent_packets_are_counted_until_action_is_free() {
        let mut table = ActionTable::new(1);
        table.acquire(&action(1), |_, _| {});
        let mut counted = Vec::new();
        let mut count = |not_sent: NotSent<'_>| match not_sent {
            NotSent::Failed(paths, packets) => {
                assert_eq!(paths, [path()]);
                counted.push((packets, 0, 0));
            }
            NotSent::Refused(_, (down, failed)) => counted.push((0, down, failed)),
        };
        table.count_not_sent(&Counters(3, (0, 2)), &mut count);
        table.count_not_sent(&Counters(3, (0, 2)), &mut count);
        table.release(&action(1));
        table.count_not_sent(&Counters(4, (1, 2)), &mut count);
        let retired = table.take_retired();
        table.free(retired, &Counters(4, (1, 2)), &mut count);
        assert_eq!(counted, [(3, 0, 0), (0, 0, 2), (1, 0, 0), (0, 1, 0)]);
    }

    #[test]
    fn equal_actions_share_a_slot_until_the_last_flow_ends() {
        let mut table = ActionTable::new(2);
        let mut written = Vec::new();
        let mut acquire = |table: &mut ActionTable, ttl| {
            table.acquire(&action(ttl), |slot, a| written.push((slot, a.set_ttl)))
        };
        assert_eq!(acquire(&mut table, 1), Some(0));
        assert_eq!(acquire(&mut table, 1), Some(0));
        assert_eq!(acquire(&mut table, 2), Some(1));
        assert_eq!(acquire(&mut table, 3), None);
        table.release(&action(1));
        assert_eq!(acquire(&mut table, 3), None);
        table.release(&action(1));
        // Not before the kernel has stopped to read it.
        assert_eq!(acquire(&mut table, 3), None);
        let retired = table.take_retired();
        assert_eq!(retired.len(), 1);
        table.free(retired, &Counters(0, (0, 0)), |_| {});
        assert_eq!(acquire(&mut table, 3), Some(0));
        assert_eq!(written, [(0, Some(1)), (1, Some(2)), (0, Some(3))]);
    }
}
