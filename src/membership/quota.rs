//! Who may make a machine remember another group or source when few places are left: a stranger
//! who fills the tables must not keep the members there are from joining.
//!
//! Three quarters of the places are for whoever comes first. The last quarter is for known
//! members, in equal shares: a place there counts on the share of the host that made the group,
//! until the group is gone. Where the limits are small there is nothing to divide.

use std::net::IpAddr;

use ahash::AHashMap;

/// Limits below this are not divided.
const DIVIDED: usize = 64;

/// The share of a member is at most that of one of so many.
const FEWEST: usize = 16;

/// What is known of the sender of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderStatus {
    /// Nothing.
    Stranger,
    /// It is a member, one of so many.
    Member {
        /// How many members are known.
        known_members: usize,
    },
}

/// How many of `limit` places are for whoever comes first.
pub(super) fn common(limit: usize) -> usize {
    match limit < DIVIDED {
        true => limit,
        false => limit - limit / 4,
    }
}

/// How many places there are for a host of this standing.
pub(super) fn open_to(standing: SenderStatus, limit: usize) -> usize {
    match standing {
        SenderStatus::Unknown => common(limit),
        SenderStatus::Member { .. } => limit,
    }
}

/// A place for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Common,
    /// On the share of this host.
    Reserved(IpAddr),
}

/// The places of the groups of one machine that are taken of the last quarter.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// By host; never more entries than places.
    shares: AHashMap<IpAddr, usize>,
    reserved: usize,
}

impl Room {
    /// A place for a further group, if there is one. `taken` are taken of `limit`.
    pub(super) fn find(
        &self,
        taken: usize,
        limit: usize,
        from: IpAddr,
        standing: SenderStatus,
    ) -> Option<Place> {
        if taken >= limit {
            return None;
        }
        if taken - self.reserved.min(taken) < common(limit) {
            return Some(Place::Common);
        }
        let SenderStatus::Member { known_members: of } = standing else {
            return None;
        };
        let share = (limit - common(limit)) / of.max(FEWEST);
        let has = self.shares.get(&from).copied().unwrap_or_default();
        (has < share.max(1)).then_some(Place::Reserved(from))
    }

    /// The place is taken.
    pub(super) fn take(&mut self, place: Place) {
        if let Place::Reserved(host) = place {
            *self.shares.entry(host).or_default() += 1;
            self.reserved += 1;
        }
    }

    /// The place is free.
    pub(super) fn free(&mut self, place: Place) {
        let Place::Reserved(host) = place else { return };
        if let Some(has) = self.shares.get_mut(&host) {
            *has -= 1;
            self.reserved -= 1;
            if *has == 0 {
                self.shares.remove(&host);
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
    fn strangers_leave_a_quarter_and_members_share_it() {
        let mut room = Room::default();
        let mut taken = 0;
        let mut enter = |room: &mut Room, n: u8, standing| {
            let mut got = 0;
            while let Some(place) = room.find(taken, 1024, host(n), standing) {
                room.take(place);
                (taken, got) = (taken + 1, got + 1);
            }
            got
        };
        let member = SenderStatus::Member { known_members: 32 };
        assert_eq!(enter(&mut room, 1, SenderStatus::Unknown), 768);
        for n in 2..34 {
            assert_eq!(enter(&mut room, n, member), 8, "host {n}");
        }
        assert_eq!(enter(&mut room, 99, member), 0);
        assert_eq!(taken, 1024);
        // A place that becomes free goes back to whom it was taken from.
        room.free(Place::Reserved(host(2)));
        assert_eq!(room.find(1023, 1024, host(3), member), None);
        let again = room.find(1023, 1024, host(2), member);
        assert_eq!(again, Some(Place::Reserved(host(2))));
        assert_eq!(room.find(1023, 1024, host(4), SenderStatus::Unknown), None);
    }

    #[test]
    fn small_limits_are_not_divided() {
        let room = Room::default();
        for taken in 0..5 {
            let place = room.find(taken, 5, host(1), SenderStatus::Unknown);
            assert_eq!(place, Some(Place::Common));
        }
        assert_eq!(
            room.find(5, 5, host(1), SenderStatus::Member { known_members: 1 }),
            None
        );
    }
}
