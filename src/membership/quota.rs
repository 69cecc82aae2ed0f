//! Quotas for new groups and sources: an unknown sender that fills the tables must not prevent
//! known members from joining.
//!
//! Three quarters of the slots are open to every sender. The last quarter is reserved for known
//! members, in equal shares. A group in a reserved slot counts against the share of the host that
//! created it until the group is gone. Small limits are not divided.

use std::net::IpAddr;

use ahash::AHashMap;

/// Limits below this value are not divided.
const MIN_DIVIDED_LIMIT: usize = 64;

/// Minimum number of shares of the reserved slots, however few members are known.
const MIN_SHARES: usize = 16;

/// Whether the sender of a message is a known member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderStatus {
    /// The sender is not known as a member.
    Unknown,
    /// The sender is the only host of the link, as in a tunnel. Nothing is reserved for others.
    OnlyHost,
    /// The sender is a known member.
    Member {
        /// The number of known members, the sender included.
        known_members: usize,
    },
}

impl SenderStatus {
    /// Returns the part of `limit` that a sender of this status may use.
    pub(super) fn usable_slots(self, limit: usize) -> usize {
        match self {
            Self::Unknown => common_slots(limit),
            Self::OnlyHost | Self::Member { .. } => limit,
        }
    }
}

/// Returns the part of `limit` that is open to every sender.
fn common_slots(limit: usize) -> usize {
    match limit < MIN_DIVIDED_LIMIT {
        true => limit,
        false => limit - limit / 4,
    }
}

/// The slot that a group occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotaSlot {
    /// A slot open to every sender.
    Common,
    /// A reserved slot, counted against the share of this host.
    Reserved(IpAddr),
}

/// The reserved group slots of one interface that are occupied.
#[derive(Debug, Default)]
pub(super) struct GroupQuota {
    /// Occupied reserved slots by host. Hosts without any have no entry.
    reserved_by_host: AHashMap<IpAddr, usize>,
    reserved: usize,
}

impl GroupQuota {
    /// Returns a free slot for a further group of this sender, if there is one. `occupied` of
    /// `limit` slots are occupied.
    pub(super) fn find_slot(
        &self,
        occupied: usize,
        limit: usize,
        from: IpAddr,
        sender_status: SenderStatus,
    ) -> Option<QuotaSlot> {
        if occupied >= limit {
            return None;
        }
        if occupied - self.reserved.min(occupied) < common_slots(limit) {
            return Some(QuotaSlot::Common);
        }
        let known_members = match sender_status {
            SenderStatus::Unknown => return None,
            SenderStatus::OnlyHost => return Some(QuotaSlot::Common),
            SenderStatus::Member { known_members } => known_members,
        };
        let share = (limit - common_slots(limit)) / known_members.max(MIN_SHARES);
        let used = self.reserved_by_host.get(&from).copied();
        (used.unwrap_or_default() < share.max(1)).then_some(QuotaSlot::Reserved(from))
    }

    /// Marks a slot as occupied.
    pub(super) fn occupy(&mut self, slot: QuotaSlot) {
        if let QuotaSlot::Reserved(host) = slot {
            *self.reserved_by_host.entry(host).or_default() += 1;
            self.reserved += 1;
        }
    }

    /// Marks a slot as free.
    pub(super) fn release(&mut self, slot: QuotaSlot) {
        let QuotaSlot::Reserved(host) = slot else {
            return;
        };
        if let Some(used) = self.reserved_by_host.get_mut(&host) {
            *used -= 1;
            self.reserved -= 1;
            if *used == 0 {
                self.reserved_by_host.remove(&host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn last_quarter_is_shared_among_members() {
        let mut quota = GroupQuota::default();
        let mut occupied = 0;
        let mut occupy_all = |quota: &mut GroupQuota, n: u8, sender_status| {
            let mut found = 0;
            while let Some(slot) = quota.find_slot(occupied, 1024, host(n), sender_status) {
                quota.occupy(slot);
                (occupied, found) = (occupied + 1, found + 1);
            }
            found
        };
        let member = SenderStatus::Member { known_members: 32 };
        assert_eq!(occupy_all(&mut quota, 1, SenderStatus::Unknown), 768);
        for n in 2..34 {
            assert_eq!(occupy_all(&mut quota, n, member), 8, "host {n}");
        }
        assert_eq!(occupy_all(&mut quota, 99, member), 0);
        assert_eq!(occupied, 1024);
        // A released slot returns to the share it was taken from.
        quota.release(QuotaSlot::Reserved(host(2)));
        assert_eq!(quota.find_slot(1023, 1024, host(3), member), None);
        let slot = quota.find_slot(1023, 1024, host(2), member);
        assert_eq!(slot, Some(QuotaSlot::Reserved(host(2))));
        let slot = quota.find_slot(1023, 1024, host(4), SenderStatus::Unknown);
        assert_eq!(slot, None);
    }

    #[test]
    fn only_host_has_all_slots() {
        let quota = GroupQuota::default();
        let slot = |occupied| quota.find_slot(occupied, 256, host(1), SenderStatus::OnlyHost);
        assert!((0..256).all(|occupied| slot(occupied) == Some(QuotaSlot::Common)));
        assert_eq!(slot(256), None);
        assert_eq!(SenderStatus::OnlyHost.usable_slots(256), 256);
    }

    #[test]
    fn small_limits_are_not_divided() {
        let quota = GroupQuota::default();
        for occupied in 0..5 {
            let slot = quota.find_slot(occupied, 5, host(1), SenderStatus::Unknown);
            assert_eq!(slot, Some(QuotaSlot::Common));
        }
        let member = SenderStatus::Member { known_members: 1 };
        assert_eq!(quota.find_slot(5, 5, host(1), member), None);
    }
}
