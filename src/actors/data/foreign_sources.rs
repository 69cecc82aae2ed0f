//! Finds senders whose address belongs to the subnet of an egress interface, although their packets
//! arrive on another interface: two networks use the same subnet.

use std::net::IpAddr;

use tracing::warn;

use crate::actors::shared::{RouterContext, Snapshot};
use crate::forward::entry_paths;
use crate::model::{IfName, InterfaceId};
use crate::table::Fib;
use crate::table::flows::{FlowFilter, FlowRecord, Flows};

/// Flows examined in one call of [`ForeignSources::examine`].
const FLOWS: usize = 256;

/// The position in the flows of one interface.
#[derive(Debug, Default)]
pub(super) struct ForeignSources {
    next: usize,
}

impl ForeignSources {
    /// Examines the next flows of the interface. Warns once for each egress.
    pub(super) fn examine(
        &mut self,
        context: &RouterContext,
        snapshot: &Snapshot,
        (index, name): (InterfaceId, &IfName),
        flows: &Flows,
    ) {
        let (page, next) = flows.page(self.next, FLOWS, &FlowFilter::default());
        self.next = next.unwrap_or_default();
        for record in page {
            let Some((egress, egress_name)) = conflicting_egress(&snapshot.fib, index, &record)
            else {
                continue;
            };
            let source = record.key.0;
            if context.foreign_sources.insert(egress, name.clone(), source) {
                warn!(
                    interface = %egress_name,
                    "{egress_name}: {source} sends from {name}, but its address is in the subnet \
                     of {egress_name}; receivers may drop its packets. Give one of the networks \
                     another subnet, or translate the source with rewrite"
                );
            }
        }
    }
}

/// Returns the first egress of a flow whose subnet contains the source.
fn conflicting_egress<'f>(
    fib: &'f Fib,
    ingress: InterfaceId,
    FlowRecord { key, flow }: &FlowRecord,
) -> Option<(InterfaceId, &'f IfName)> {
    if flow.generation != fib.generation {
        return None;
    }
    let (source, _): &(IpAddr, IpAddr) = key;
    let entries = entry_paths(fib, fib.ingresses.get(&ingress)?, flow.verdicts);
    let keeps_source = entries.filter(|(entry, _)| {
        let replaced = entry.translation.and_then(|t| t.replacements().0);
        replaced.is_none()
    });
    let mut egresses = keeps_source
        .flat_map(|(_, paths)| paths)
        .filter_map(|path| fib.egress_of(path));
    let egress = egresses.find(|egress| {
        egress.index != ingress && egress.subnets.iter().any(|net| net.contains(source))
    })?;
    Some((egress.index, &egress.name))
}
