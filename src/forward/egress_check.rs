//! Whether a packet may leave on a path.

use super::DropReason;
use crate::table::{Egress, Path};

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
