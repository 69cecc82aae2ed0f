//! Logs the changes of the interfaces that rules use: they appear, vanish, go down, lose their
//! carrier, and return.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::info;

use crate::actors::log_limit::LogLimit;
use crate::model::{IfName, InterfaceId, Link, Links};
use crate::table::Fib;

/// The state of a link, in the words of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Up,
    NoCarrier,
    Down,
}

impl LinkState {
    fn of(link: &Link) -> Self {
        match (link.up, link.carrier) {
            (true, true) => Self::Up,
            (true, false) => Self::NoCarrier,
            (false, _) => Self::Down,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::NoCarrier => "no carrier",
            Self::Down => "down",
        }
    }
}

/// The links at the last update.
#[derive(Debug, Default)]
pub(super) struct LinkLog {
    /// `None` before the first update.
    links: Option<BTreeMap<InterfaceId, (IfName, LinkState)>>,
    used: BTreeSet<InterfaceId>,
    limit: LogLimit,
}

impl LinkLog {
    /// Logs what changed since the last update at the links that `fib` uses or used then. Of the
    /// first update, it logs the links that are not up.
    pub(super) fn update(&mut self, fib: &Fib, links: &Links, now: Instant) {
        let used: BTreeSet<InterfaceId> = (fib.ingresses.keys().copied())
            .chain(fib.egresses.iter().map(|egress| egress.index))
            .collect();
        let new: BTreeMap<_, _> = links
            .iter()
            .map(|link| (link.index, (link.name.clone(), LinkState::of(link))))
            .collect();
        for (name, text) in self.changes(&used, &new) {
            if let Some(suppressed) = self.limit.permit(now) {
                info!(interface = %name, "{name}: {text}{suppressed}");
            }
        }
        self.links = Some(new);
        self.used = used;
    }

    fn changes(
        &self,
        used: &BTreeSet<InterfaceId>,
        new: &BTreeMap<InterfaceId, (IfName, LinkState)>,
    ) -> Vec<(IfName, &'static str)> {
        let mut changes = Vec::new();
        for index in used.union(&self.used) {
            let old = self.links.as_ref().map(|links| links.get(index));
            match (old, new.get(index)) {
                (None, Some((name, state))) if *state != LinkState::Up => {
                    changes.push((name.clone(), state.text()));
                }
                (Some(None), Some((name, LinkState::Up))) => {
                    changes.push((name.clone(), "appeared"));
                }
                (Some(Some((_, old))), Some((name, state))) if old != state => {
                    changes.push((name.clone(), state.text()));
                }
                (Some(Some((name, _))), None) => changes.push((name.clone(), "vanished")),
                _ => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = (&'static str, bool, bool);

    /// Returns what is logged for links 1, 2... after each step; all of them are used. A link
    /// without a name is not present.
    fn logged(steps: &[&[Change]]) -> Vec<Vec<String>> {
        let mut log = LinkLog::default();
        let step = |links: &&[Change]| {
            let new: BTreeMap<_, _> = (1..)
                .zip(*links)
                .filter(|(_, (name, ..))| !name.is_empty())
                .map(|(index, (name, up, carrier))| {
                    let index = InterfaceId::new(index).unwrap();
                    let link = Link {
                        up: *up,
                        carrier: *carrier,
                        ..Link::new(index, name.parse().unwrap())
                    };
                    (index, (link.name.clone(), LinkState::of(&link)))
                })
                .collect();
            let used = (1..=links.len() as u32)
                .filter_map(InterfaceId::new)
                .collect();
            let changes = log.changes(&used, &new);
            log.links = Some(new);
            log.used = used;
            let lines = changes.into_iter();
            lines.map(|(name, text)| format!("{name} {text}")).collect()
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn changes_are_logged_once() {
        let up = ("eth0", true, true);
        let steps: &[&[Change]] = &[
            &[up],
            &[up],
            &[("eth0", true, false)],
            &[("eth0", false, false)],
            &[("eth0", false, false)],
            &[up],
            &[("", false, false)],
            &[up],
        ];
        let lines = logged(steps).concat();
        assert_eq!(
            lines,
            [
                "eth0 no carrier",
                "eth0 down",
                "eth0 up",
                "eth0 vanished",
                "eth0 appeared"
            ]
        );
    }

    #[test]
    fn first_update_names_links_that_are_not_up() {
        let lines = logged(&[&[("eth0", true, true), ("eth1", false, false)]]);
        assert_eq!(lines, [["eth1 down"]]);
    }
}
