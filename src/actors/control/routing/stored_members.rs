//! The memberships of the store, as far as they apply to a forwarding table.

use crate::model::{Group, InterfaceId, Links, SourceFilter};
use crate::store::Store;
use crate::sys::boot_clock;
use crate::table::Fib;

/// Returns the memberships that a former process, or a former membership actor, stored for the
/// downstream interfaces of `fib`. Those whose timers have expired are omitted.
pub(super) fn stored_memberships(
    store: &Store,
    links: &Links,
    fib: &Fib,
) -> Vec<(InterfaceId, Group, SourceFilter)> {
    let Ok(clock) = boot_clock::read() else {
        return Vec::new();
    };
    let mut memberships = Vec::new();
    for downstream in fib.downstreams.iter() {
        let link = links.get(downstream.index).filter(|link| link.up);
        let saved = link.and_then(|link| store.interface(&link.name));
        for group in saved.iter().flat_map(|saved| saved.groups()) {
            let filter = group.source_filter(&clock);
            if !filter.is_none() {
                memberships.push((downstream.index, group.group, filter));
            }
        }
    }
    memberships
}
