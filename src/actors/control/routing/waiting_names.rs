//! Logs what is known of names of a container engine that match no interface.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use crate::actors::log_limit::LogLimit;
use crate::model::{Aliases, IfPattern, Links};
use crate::table::Rib;

/// The names that wait, and the hint for each that was logged last.
#[derive(Default)]
pub(super) struct WaitingNames {
    hints: BTreeMap<IfPattern, Option<String>>,
    /// The names of the engine that the hints were computed for.
    aliases: Arc<Aliases>,
    log_limit: LogLimit,
}

impl WaitingNames {
    /// Logs each new hint once. Computes hints only for new names, and for all after a change of
    /// `aliases`, because this is called for every change of rules and links.
    pub(super) fn update(
        &mut self,
        rib: &Rib,
        links: &Links,
        aliases: &Arc<Aliases>,
        now: Instant,
    ) {
        let engine_names = rib.patterns().filter(|p| p.is_engine_name());
        let waiting = engine_names.filter(|p| links.matching(p).next().is_none());
        let mut former = std::mem::take(&mut self.hints);
        let is_changed = !Arc::ptr_eq(&self.aliases, aliases);
        self.aliases = aliases.clone();
        for name in waiting {
            if self.hints.contains_key(name) {
                continue;
            }
            let old = former.remove(name);
            let hint = match &old {
                Some(old) if !is_changed => old.clone(),
                _ => aliases.hint(name).map(|hint| hint.to_string()),
            };
            if let Some(text) = hint.as_ref().filter(|_| old.as_ref() != Some(&hint))
                && let Some(suppressed) = self.log_limit.permit(now)
            {
                warn!("{name} matches no interface: {text}{suppressed}");
            }
            self.hints.insert(name.clone(), hint);
        }
    }
}
