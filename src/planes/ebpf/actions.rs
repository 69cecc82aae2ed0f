//! The actions in the table of the kernel: flows with the same action share one.

use ahash::AHashMap;

use super::plan::PlannedAction;
use crate::sys::offload::{ActionSlot, KernelAction};

/// The actions in use. Pure: the caller writes them.
pub(super) struct ActionTable {
    capacity: usize,
    used: AHashMap<PlannedAction, (ActionSlot, usize)>,
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
        if let Some((slot, flows)) = self.used.get_mut(action) {
            *flows += 1;
            return Some(*slot);
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
        self.used.insert(action.clone(), (slot, 1));
        Some(slot)
    }

    /// Notes that one flow less has an action.
    pub(super) fn release(&mut self, action: &PlannedAction) {
        let Some((slot, flows)) = self.used.get_mut(action) else {
            return;
        };
        *flows -= 1;
        if *flows == 0 {
            self.retired.push(*slot);
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
