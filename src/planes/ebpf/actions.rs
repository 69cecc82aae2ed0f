//! The actions in the table of the kernel: flows with the same action share one.

use ahash::AHashMap;

use super::plan::{PlannedAction, PlannedPath};
use crate::model::IfIndex;
use crate::sys::offload::{ActionSlot, KernelAction};

struct UsedAction {
    slot: ActionSlot,
    flows: usize,
    /// For each egress, the refused copies that were counted.
    counted: Vec<(u64, u64)>,
}

/// Copies that an egress refused: because it was down or gone, and for another reason.
pub(super) type Refused = (u64, u64);

/// The actions in use. Pure: the caller reads and writes the table.
pub(super) struct ActionTable {
    capacity: usize,
    used: AHashMap<PlannedAction, UsedAction>,
    free: Vec<ActionSlot>,
    next: usize,
    /// Actions that no flow uses any more, but which the kernel may still read.
    retired: Vec<ActionSlot>,
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
            counted: vec![(0, 0); action.paths.len()],
        };
        self.used.insert(action.clone(), new);
        Some(slot)
    }

    /// Passes each path with the copies that its egress refused since the last call to `count`.
    /// `read` returns all that egress number N of an action refused.
    pub(super) fn count_refused(
        &mut self,
        read: impl Fn(ActionSlot, usize) -> Refused,
        mut count: impl FnMut(&PlannedPath, Refused),
    ) {
        for (action, used) in &mut self.used {
            for (at, (path, counted)) in action.paths.iter().zip(&mut used.counted).enumerate() {
                let now = read(used.slot, at);
                let new = (now.0 - counted.0, now.1 - counted.1);
                *counted = now;
                if new != (0, 0) {
                    count(path, new);
                }
            }
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
            self.retired.push(used.slot);
            self.used.remove(action);
        }
    }

    /// Returns the actions that became unused. The caller gives them to [`ActionTable::free`] when
    /// the kernel does not read them any more.
    pub(super) fn take_retired(&mut self) -> Vec<ActionSlot> {
        std::mem::take(&mut self.retired)
    }

    /// Lets actions be used again.
    pub(super) fn free(&mut self, slots: Vec<ActionSlot>) {
        self.free.extend(slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(ttl: u8) -> PlannedAction {
        PlannedAction {
            action: KernelAction {
                egresses: Vec::new(),
                keep_original: false,
                decrement: false,
                set_ttl: Some(ttl),
            },
            paths: Vec::new(),
        }
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
        assert_eq!(retired, [0]);
        table.free(retired);
        assert_eq!(acquire(&mut table, 3), Some(0));
        assert_eq!(written, [(0, Some(1)), (1, Some(2)), (0, Some(3))]);
    }
}
