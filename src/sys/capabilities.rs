//! Process capabilities (`capabilities(7)`): raises the needed ones and drops all others.
//!
//! Capabilities belong to threads, and a new thread inherits those of its creator. So call both
//! functions from the first thread before it creates another.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

/// The capabilities that forwarding needs for its whole lifetime, because interfaces may appear at
/// any time.
const KEPT: [Capability; 4] = [
    // For packet sockets.
    Capability::CAP_NET_RAW,
    // For large socket buffers, and for queries about the container end of a veth pair.
    Capability::CAP_NET_ADMIN,
    // For loading BPF programs.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
];

/// The needed capabilities that the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldCapabilities {
    /// CAP_NET_RAW.
    pub net_raw: bool,
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
}

/// Makes the needed and permitted capabilities effective.
///
/// A file in an image may permit more capabilities than its container has. Such a file cannot set
/// the effective bit, so the program raises the capabilities itself.
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

/// Returns the names of the capabilities that [`drop_unneeded`] keeps, separated by commas.
pub fn kept_names() -> String {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = kept(&permitted).iter().map(ToString::to_string).collect();
    names.sort_unstable();
    match names.is_empty() {
        true => "no capabilities".into(),
        false => names.join(", "),
    }
}

/// Returns the needed capabilities that this process may use.
pub fn held() -> HeldCapabilities {
    let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
    HeldCapabilities {
        net_raw: permitted.contains(&Capability::CAP_NET_RAW),
        net_admin: permitted.contains(&Capability::CAP_NET_ADMIN),
    }
}

/// Returns the names of the capabilities that BPF programs need and this thread cannot use.
/// CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON (capabilities(7)).
pub(super) fn missing_for_bpf() -> Vec<&'static str> {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let needed = [
        (Capability::CAP_BPF, "CAP_BPF"),
        (Capability::CAP_PERFMON, "CAP_PERFMON"),
        (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    ];
    let is_admin = effective.contains(&Capability::CAP_SYS_ADMIN);
    let is_included = |c: &Capability| is_admin && *c != Capability::CAP_NET_ADMIN;
    let missing = (needed.iter()).filter(|(c, _)| !effective.contains(c) && !is_included(c));
    missing.map(|(_, name)| *name).collect()
}

/// Drops all capabilities that forwarding does not need, for this process and all programs that it
/// starts: a program that root starts would otherwise regain the capabilities of the bounding set.
/// No program that it starts can gain privileges by its file (`no_new_privs`). Returns the number of
/// dropped capabilities.
pub fn drop_unneeded() -> Result<usize, CapsError> {
    // Without CAP_SETPCAP the bounding set cannot change. no_new_privs does not cover it: it has no
    // effect on what root gains.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    set_no_new_privs().map_err(|e| CapsError::from(e.to_string()))?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    let ours = kept(&permitted);
    // Effective must shrink before permitted, because it must stay a subset of it.
    caps::set(None, CapSet::Effective, &ours)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, &ours)?;
    Ok(permitted.len() - ours.len())
}

/// Drops all capabilities that forwarding does not need, for the calling thread, and lets the
/// programs that this thread starts inherit the others. For the thread that starts a new version of
/// this program.
pub(super) fn keep_for_programs() -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let ours = kept(&permitted);
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for other in caps::read(None, CapSet::Bounding)?.difference(&ours) {
            caps::drop(None, CapSet::Bounding, *other)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    set_no_new_privs().map_err(|e| CapsError::from(e.to_string()))?;
    caps::set(None, CapSet::Effective, &ours)?;
    caps::set(None, CapSet::Inheritable, &ours)?;
    caps::set(None, CapSet::Permitted, &ours)?;
    // Root has them without this; a user who got them from the service manager has not.
    for capability in ours {
        caps::raise(None, CapSet::Ambient, capability)?;
    }
    Ok(())
}

fn kept(all: &CapsHashSet) -> CapsHashSet {
    let kept = CapsHashSet::from(KEPT);
    all.intersection(&kept).copied().collect()
}
