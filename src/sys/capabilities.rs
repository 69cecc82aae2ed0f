//! Capabilities (`capabilities(7)`): what is needed is made effective, the rest is given up.
//!
//! They belong to threads, and a new thread takes those of the one that makes it: both
//! functions are for the first thread, before there is another.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What forwarding needs until the end: interfaces come at any time.
const KEPT: [Capability; 4] = [
    // Packet sockets.
    Capability::CAP_NET_RAW,
    // Big buffers, and what is at the other end of a container's cable.
    Capability::CAP_NET_ADMIN,
    // Programs in the kernel.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
];

/// What the process has of what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldCapabilities {
    /// CAP_NET_RAW.
    pub net_raw: bool,
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
}

/// Makes effective what the process may have. A file in an image may permit more than its
/// container is given, and must then leave it to the program to take what there is.
pub fn raise_effective() -> Result<HeldCapabilities, CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let effective = caps::read(None, CapSet::Effective)?;
    let ours = kept(&permitted);
    let all = effective.union(&ours).copied().collect();
    if all != effective {
        caps::set(None, CapSet::Effective, &all)?;
    }
    Ok(HeldCapabilities {
        net_raw: all.contains(&Capability::CAP_NET_RAW),
        net_admin: all.contains(&Capability::CAP_NET_ADMIN),
    })
}

/// Gives up all that is not needed any more. How many were given up.
pub fn drop_unneeded() -> Result<usize, CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let ours = kept(&permitted);
    // In this order: nothing may be effective that is not permitted.
    caps::set(None, CapSet::Effective, &ours)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, &ours)?;
    Ok(permitted.len() - ours.len())
}

fn kept(all: &CapsHashSet) -> CapsHashSet {
    let kept = CapsHashSet::from(KEPT);
    all.intersection(&kept).copied().collect()
}
