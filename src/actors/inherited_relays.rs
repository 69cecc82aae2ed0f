//! The relays of another process that this one replaces.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::amt::SavedRelay;
use crate::model::IfName;

/// Relays, until the AMT actor continues them.
#[derive(Default)]
pub struct InheritedRelays(Mutex<BTreeMap<IfName, SavedRelay>>);

impl InheritedRelays {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IfName, SavedRelay>> {
        // The lock is held for single operations only, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a relay.
    pub fn add(&self, name: IfName, saved: SavedRelay) {
        self.lock().insert(name, saved);
    }

    /// Removes a relay and returns it.
    pub fn take(&self, name: &IfName) -> Option<SavedRelay> {
        self.lock().remove(name)
    }

    /// Returns whether all relays were continued.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
