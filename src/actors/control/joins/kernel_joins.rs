//! The memberships that the kernel holds beside the host side of this program.
//!
//! They are visible in `ip maddr`, and let other programs of this machine receive the groups
//! without a join of their own. The kernel reports them too. So it holds only filters that it can
//! represent exactly, and none where a version is configured, because the kernel would report in
//! another version.

use std::collections::BTreeSet;

use tracing::debug;

use crate::model::{Group, IfIndex, IfName, SourceFilter};
use crate::sys::membership_keeper::MembershipKeeper;
use crate::sys::memberships::HostMemberships;

/// Limit of the memberships of one interface in the kernel. An IPv4 socket holds 20 of them.
const MAX_KERNEL_MEMBERSHIPS: usize = 1_000;

/// The memberships of one interface in the kernel.
pub(super) struct KernelJoins {
    held: HostMemberships,
    /// Groups that the kernel refused.
    failed: BTreeSet<Group>,
}

impl KernelJoins {
    /// Creates an empty set. `keeper` holds its sockets too.
    pub(super) fn new(interface: IfIndex, keeper: MembershipKeeper) -> Self {
        Self {
            held: HostMemberships::new(interface, keeper),
            failed: BTreeSet::new(),
        }
    }

    /// Joins or leaves a group in the kernel. Leaves it if the kernel cannot hold the filter.
    pub(super) fn set(&mut self, name: &IfName, group: Group, filter: &SourceFilter) {
        let none = SourceFilter::none();
        let filter = if self.fits(group, filter) {
            filter
        } else {
            &none
        };
        match self.held.set(group, filter) {
            Ok(_) => {
                self.failed.remove(&group);
            }
            Err(e) => {
                if self.failed.insert(group) {
                    debug!("{name}: the kernel does not join {group}: {e}");
                }
            }
        }
    }

    /// Leaves all groups at once, and not when the keeper has closed its duplicates.
    pub(super) fn end(mut self) {
        self.held.leave_all();
    }

    /// Returns the groups that the kernel refused at the last attempt.
    pub(super) fn failed(&self) -> impl Iterator<Item = Group> + '_ {
        self.failed.iter().copied()
    }

    /// Returns whether the new memberships of a filter are within [`MAX_KERNEL_MEMBERSHIPS`].
    fn fits(&self, group: Group, filter: &SourceFilter) -> bool {
        let is_new = |source| !self.held.holds((group, source));
        let new = match filter {
            SourceFilter::Include(sources) => sources.iter().filter(|s| is_new(Some(**s))).count(),
            SourceFilter::Exclude(_) => usize::from(is_new(None)),
        };
        new == 0 || self.held.len() + new <= MAX_KERNEL_MEMBERSHIPS
    }
}
