//! Whether a packet may leave on a path.

use super::DropReason;
use crate::table::flows::FlowKey;
use crate::table::{BandwidthLimit, BandwidthTable, Egress, Path};

/// Checks whether a packet that arrived with this TTL or hop limit may leave on a path whose
/// egress is `egress`.
///
/// # Errors
/// [`DropReason::TtlThreshold`]: the threshold of the egress is not exceeded.
/// [`DropReason::EgressDown`]: the egress is down or has no carrier. The kernel would accept the
/// packet and discard it without an error.
#[inline]
pub fn egress_check(path: &Path, egress: &Egress, arrived_ttl: u8) -> Result<(), DropReason> {
    if path.threshold.is_some_and(|t| !t.passes(arrived_ttl)) {
        return Err(DropReason::TtlThreshold);
    }
    if !egress.running {
        return Err(DropReason::EgressDown);
    }
    Ok(())
}

/// Checks whether a stream may use an interface with this limit. `bytes` returns how much of it has
/// arrived.
///
/// # Errors
/// [`DropReason::Bandwidth`]: it would exceed the limit.
#[inline]
pub fn bandwidth_check(
    table: &BandwidthTable,
    limit: Option<BandwidthLimit>,
    key: &FlowKey,
    bytes: impl FnOnce() -> u64,
) -> Result<(), DropReason> {
    match limit {
        Some(limit) if !table.forwards(limit, key, bytes) => Err(DropReason::Bandwidth),
        _ => Ok(()),
    }
}
