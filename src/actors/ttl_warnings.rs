//! Warnings for routes whose packets arrive with a TTL that is too low to forward them.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ahash::AHashSet;
use tracing::warn;

use super::log_limit::LogLimit;
use crate::forward::{entry_paths, look_up};
use crate::model::{IfName, InterfaceId, RouteName, TtlPolicy};
use crate::table::Fib;
use crate::table::flows::FlowKey;

/// The routes that a warning has named. Interface actors share them.
#[derive(Default)]
pub struct TtlWarnings(Mutex<WarnedRoutes>);

#[derive(Default)]
struct WarnedRoutes {
    names: AHashSet<RouteName>,
    log_limit: LogLimit,
}

impl TtlWarnings {
    /// Logs one line for each route that drops packets of `flows` for their TTL, unless a line has
    /// named the route before. The flows arrive on the interface with this index and name.
    pub fn log(&self, fib: &Fib, index: InterfaceId, name: &IfName, flows: &[FlowKey]) {
        if flows.is_empty() {
            return;
        }
        let Some(ingress) = fib.ingresses.get(&index) else {
            return;
        };
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for key in flows {
            let Ok(verdicts) = look_up(fib, ingress, *key) else {
                continue;
            };
            for (entry, _) in entry_paths(fib, ingress, verdicts) {
                if entry.ttl != TtlPolicy::Decrement || !warned.names.insert(entry.route.clone()) {
                    continue;
                }
                let Some(suppressed) = warned.log_limit.permit(now) else {
                    // The next flow of the route tries again.
                    warned.names.remove(&entry.route);
                    continue;
                };
                let (source, group) = key;
                warn!(
                    route = %entry.route,
                    interface = %name,
                    group = %group,
                    "route \"{}\": packets of ({source}, {group}) arrive on {name} with TTL 1 and \
                     are dropped as ttl_expired. iptables and nftables rules that raise the TTL have \
                     no effect on them. Set ttl = {{ set = N }} in the route or proxy, \"ttl set N\" \
                     in the line of smcroute.conf, or a higher TTL at the sender. Logged once for a \
                     route{suppressed}",
                    entry.route
                );
            }
        }
        // Names of former routes are forgotten.
        if warned.names.len() > fib.entries.len() {
            let current: AHashSet<&RouteName> = fib.entries.iter().map(|e| &e.route).collect();
            warned.names.retain(|name| current.contains(name));
        }
    }
}
