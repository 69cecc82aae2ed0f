//! Publishes what an interface actor knows of its monitored streams, and ends them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::actors::shared::{RouterContext, Snapshot};
use crate::forward::{entry_paths, look_up, monitor_of};
use crate::model::{IfName, InterfaceId};
use crate::streams::{IngressNames, StreamMonitor};
use crate::table::flows::FlowKey;

/// Publishes what is known of some streams, if it is time.
pub(super) fn report(
    context: &RouterContext,
    snapshot: &Snapshot,
    (index, name): (InterfaceId, &IfName),
    monitor: &mut StreamMonitor,
) {
    if monitor.is_empty() {
        return;
    }
    let (fib, ingress) = (&snapshot.fib, snapshot.fib.ingresses.get(&index));
    let names = |key: &FlowKey| IngressNames {
        iif: name.to_string(),
        route: ingress.and_then(|ingress| {
            let verdicts = look_up(fib, ingress, *key).ok()?;
            let (entry, _) = entry_paths(fib, ingress, verdicts).next()?;
            Some(entry.route.to_string())
        }),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ns = now.unwrap_or_default().as_nanos() as u64;
    monitor.report(index, (now_ns, context.now_ms()), names);
}

/// Ends the streams that are idle, and those that the settings no longer monitor.
pub(super) fn expire(
    context: &RouterContext,
    snapshot: &Snapshot,
    index: InterfaceId,
    monitor: &mut StreamMonitor,
) {
    let (fib, ingress) = (&snapshot.fib, snapshot.fib.ingresses.get(&index));
    let is_wanted = |key: &FlowKey| {
        ingress.is_some_and(|ingress| {
            let verdicts = look_up(fib, ingress, *key);
            verdicts.is_ok_and(|v| monitor_of(fib, ingress, v, *key).is_some())
        })
    };
    monitor.expire(context.now_ms(), context.flow_idle_ms(), is_wanted);
}
