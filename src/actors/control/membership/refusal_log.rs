//! Log lines about refused IGMP and MLD messages: what was refused, from whom, why, and what to do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use tracing::{debug, warn};

use crate::actors::log_limit::LogLimit;
use crate::actors::messages::RefusedMessages;
use crate::membership::MembershipRefusal;
use crate::model::{Group, IfName};
use crate::table::top_counts::TopCounts;
use crate::wire::RejectReason;

/// Lines about one reason in a minute.
const LINES: u32 = 1;

/// Why a message was refused: its parser rejected it, or the membership state refused it.
#[derive(Debug, Clone, Copy)]
pub(super) enum RefusalReason {
    Rejected(RejectReason),
    Refused(MembershipRefusal),
}

impl From<RejectReason> for RefusalReason {
    fn from(reason: RejectReason) -> Self {
        Self::Rejected(reason)
    }
}

impl From<MembershipRefusal> for RefusalReason {
    fn from(reason: MembershipRefusal) -> Self {
        Self::Refused(reason)
    }
}

impl RefusalReason {
    /// Returns the label of the metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Rejected(reason) => reason.label(),
            Self::Refused(reason) => reason.label(),
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Rejected(reason) => reason.meaning(),
            Self::Refused(reason) => reason.meaning(),
        }
    }

    /// Returns what an operator can do. None for refusals that need no action: those that the
    /// settings request, and messages that are never for a proxy.
    fn remedy(self) -> Option<&'static str> {
        use MembershipRefusal as Refused;
        use RejectReason as Rejected;
        match self {
            Self::Rejected(reason) => match reason {
                Rejected::UnknownType => None,
                Rejected::Truncated
                | Rejected::Malformed
                | Rejected::Fragment
                | Rejected::Checksum
                | Rejected::BadSource
                | Rejected::BadDestination
                | Rejected::QueryLength
                | Rejected::CountMismatch
                | Rejected::NotAGroup
                | Rejected::NotASource => {
                    Some("Look at the packets of this sender with tcpdump, and fix the sender")
                }
                Rejected::Ttl => Some(
                    "A router may have forwarded it. If the host sends such messages itself, \
                     header_checks = \"lenient\" in the proxy accepts them",
                ),
                Rejected::NoRouterAlert => Some(
                    "header_checks = \"standard\" in the proxy accepts it for IGMP, \
                     \"lenient\" also for MLD",
                ),
                Rejected::OffLink => Some(
                    "Give this interface an address in the subnet of its hosts, or set \
                     header_checks = \"lenient\" in the proxy",
                ),
                Rejected::NotLinkLocal => Some(
                    "Enable IPv6 link-local addresses on the host, or set \
                     header_checks = \"lenient\" in the proxy",
                ),
            },
            Self::Refused(reason) => match reason {
                Refused::GroupDenied
                | Refused::SourceDenied
                | Refused::LinkLocalGroup
                | Refused::QueryUnspecified => None,
                Refused::MemberRate | Refused::UnknownSenderRate => Some(
                    "If these hosts are legitimate, raise limits.reports_per_second of the proxy",
                ),
                Refused::SolicitationRate => Some(
                    "Usually one solicitation of each switch is enough. Look at the packets of this \
                     sender with tcpdump, and fix the sender",
                ),
                Refused::GroupLimit => Some(
                    "`mcastor show groups` lists the groups. If they are legitimate, raise \
                     limits.groups of the proxy",
                ),
                Refused::SourceLimit => Some("Raise limits.sources_per_group of the proxy"),
                Refused::HostLimit => {
                    Some("Leaves of this group are queried, as without fast_leave")
                }
                Refused::AnySourceInSsm => {
                    Some("Join with a source, or set any_source_in_ssm = true in the proxy")
                }
                Refused::OwnHost => {
                    Some("Let programs on this machine join on the upstream interface")
                }
                Refused::NotLinkLocalSender => {
                    Some("Enable IPv6 link-local addresses on the sender")
                }
                Refused::OtherFamily | Refused::QueryDestination => {
                    Some("Look at the packets of this sender with tcpdump, and fix the sender")
                }
                Refused::OwnAddress => Some("Give each router on the link its own address"),
            },
        }
    }
}

/// Largest number of groups and reasons whose refusals are counted.
const MAX_GROUPS: usize = 256;

/// Groups of one message that are counted.
const GROUPS_OF_MESSAGE: usize = 16;

/// The last refusal of a group for a reason.
#[derive(Debug, Clone, Copy)]
struct LastRefusal {
    reason: RefusalReason,
    sender: Option<IpAddr>,
    at: Instant,
}

/// The refusals of one interface: a line a minute for each reason, and counts by group.
pub(super) struct RefusalLog {
    limits: BTreeMap<&'static str, LogLimit>,
    groups: TopCounts<(Group, &'static str), Option<LastRefusal>>,
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self {
            limits: BTreeMap::new(),
            groups: TopCounts::new(MAX_GROUPS),
        }
    }
}

impl RefusalLog {
    /// Returns what was refused of messages that name `group`.
    pub(super) fn refused(
        &self,
        now: Instant,
        interface: &IfName,
        group: Group,
    ) -> Vec<RefusedMessages> {
        let of_group = self.groups.iter().filter(|counted| counted.key.0 == group);
        let refused = of_group.filter_map(|counted| {
            let last = counted.value?;
            Some(RefusedMessages {
                interface: interface.clone(),
                reason: last.reason.label(),
                meaning: last.reason.meaning(),
                remedy: last.reason.remedy(),
                messages: counted.count,
                last_sender: last.sender,
                last: now.saturating_duration_since(last.at),
            })
        });
        refused.collect()
    }

    /// Counts a refusal of a message that names `groups`, and logs it, within the limit.
    pub(super) fn log(
        &mut self,
        now: Instant,
        interface: &IfName,
        sender: Option<IpAddr>,
        groups: impl Iterator<Item = Group>,
        reason: RefusalReason,
    ) {
        for group in groups.take(GROUPS_OF_MESSAGE) {
            let last = LastRefusal {
                reason,
                sender,
                at: now,
            };
            *self.groups.add((group, reason.label()), 1).0 = Some(last);
        }
        let label = reason.label();
        let sender = sender.map_or_else(|| "an unreadable sender".into(), |a| a.to_string());
        let Some(remedy) = reason.remedy() else {
            return debug!(
                reason = label,
                interface = %interface,
                "{interface}: from {sender}: {}",
                reason.meaning()
            );
        };
        let limit = self.limits.entry(label);
        let limit = limit.or_insert_with(|| LogLimit::new(LINES));
        if let Some(suppressed) = limit.permit(now) {
            warn!(
                reason = label,
                interface = %interface,
                "{interface}: refused a membership message from {sender}: {} {remedy}{suppressed}",
                reason.meaning()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_group() {
        let mut log = RefusalLog::default();
        let (now, name) = (Instant::now(), "eth1".parse().unwrap());
        let group = |n: u8| -> Group { format!("239.1.1.{n}").parse().unwrap() };
        let sender = Some([10, 0, 1, 7].into());
        let reason = MembershipRefusal::GroupDenied;
        for n in [1, 1, 2] {
            log.log(now, &name, sender, [group(n)].into_iter(), reason.into());
        }
        let refused = log.refused(now, &name, group(1));
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].messages, refused[0].last_sender), (2, sender));
        assert_eq!(
            (refused[0].reason, refused[0].remedy),
            ("group_denied", None)
        );
        assert!(log.refused(now, &name, group(3)).is_empty());
    }

    #[test]
    fn every_refusal_with_a_line_names_a_remedy() {
        let rejected = RejectReason::ALL.iter().map(|r| RefusalReason::from(*r));
        let refused = MembershipRefusal::ALL
            .iter()
            .map(|r| RefusalReason::from(*r));
        for reason in rejected.chain(refused) {
            let remedy = reason.remedy().unwrap_or("A sentence");
            let is_sentence =
                remedy.starts_with(|c: char| c.is_uppercase() || c == '`' || c == 'h');
            assert!(is_sentence && !remedy.ends_with('.'), "{remedy}");
        }
    }
}
