//! The measure of the work that a message causes, for the rate limit.

use crate::model::Group;
use crate::wire::membership_message::MembershipMessage;

/// The work that a message causes, counted in sources: those that it names, and those of its groups
/// that are known. A record counts as 16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work(pub u32);

impl Work {
    /// The work of a record without sources.
    pub const RECORD: u32 = 16;
    /// The work for which the rate limit takes one token: a report with 16 records of no sources.
    pub(super) const TOKEN: u32 = 16 * Self::RECORD;

    /// Returns the work of a message. `known_sources` returns the number of known sources of a
    /// group.
    pub fn of(message: &MembershipMessage, known_sources: impl Fn(Group) -> usize) -> Self {
        let of = |group: Group, named: usize| {
            (Self::RECORD as usize + named + known_sources(group)) as u32
        };
        Self(match message {
            MembershipMessage::Query(query) => {
                (query.group).map_or(Self::RECORD, |group| of(group, query.sources.len()))
            }
            MembershipMessage::Report { group, .. } | MembershipMessage::Leave { group } => {
                of(*group, 0)
            }
            MembershipMessage::Records(records) => {
                let work = records.iter().map(|r| of(r.group, r.sources.len()));
                work.fold(0, u32::saturating_add)
            }
        })
    }

    pub(super) fn tokens(self) -> f64 {
        f64::from(self.0) / f64::from(Self::TOKEN)
    }
}
