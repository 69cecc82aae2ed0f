//! Querier election and general queries (RFC 9776 section 6.6.2, RFC 9777 section 7.6.2).
//!
//! ```text
//!  no address, or policy off             policy auto, query from a lower address
//!      NoQuerier <-----> ThisRouter --------------------------> OtherRouter
//!          ^                 ^                                       |
//!          |                 +-- other querier present timer (auto) -+
//!          +-------------------- other querier present timer (no address, or off)
//! ```

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::{ClockReading, QuerierPolicy, QuerierTimers};
use crate::wire::membership_message::Query;

use super::effective_timers::EffectiveTimers;
use super::saved::SavedQuerier;
use super::status::QuerierStatus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QuerierState {
    NoQuerier,
    ThisRouter {
        next_query: Instant,
        startup_queries_left: u8,
    },
    OtherRouter {
        address: IpAddr,
        /// The other querier present timer.
        expires: Instant,
        /// The router that takes over if the elected one expires, with its own timer.
        next_best: Option<(IpAddr, Instant)>,
    },
}

/// The querier election on one link, as seen by this router.
#[derive(Debug)]
pub struct QuerierElection {
    policy: QuerierPolicy,
    configured: EffectiveTimers,
    effective: EffectiveTimers,
    own_address: Option<IpAddr>,
    state: QuerierState,
    /// With policy `off`: the time at which the absence of a querier is reported.
    no_querier_at: Option<Instant>,
}

impl QuerierElection {
    /// Starts the election. With an address, and a policy other than `off`, this router is the
    /// querier and the first general query is due immediately.
    pub fn new(
        now: Instant,
        policy: QuerierPolicy,
        timers: &QuerierTimers,
        own_address: Option<IpAddr>,
    ) -> Self {
        let configured = EffectiveTimers::configured(timers);
        let mut election = Self {
            policy,
            configured,
            effective: configured,
            own_address,
            state: QuerierState::NoQuerier,
            no_querier_at: None,
        };
        election.restart(now);
        election
    }

    /// Returns the state as data.
    pub(super) fn saved(&self, clock: &ClockReading) -> SavedQuerier {
        let to_boot = |at| clock.to_boot(at);
        match (&self.state, self.own_address) {
            (QuerierState::NoQuerier, _) | (QuerierState::ThisRouter { .. }, None) => {
                SavedQuerier::NoQuerier
            }
            (
                QuerierState::ThisRouter {
                    next_query,
                    startup_queries_left,
                },
                Some(address),
            ) => SavedQuerier::ThisRouter {
                address,
                next_query: to_boot(*next_query),
                startup_queries_left: *startup_queries_left,
            },
            (
                QuerierState::OtherRouter {
                    address,
                    expires,
                    next_best,
                },
                _,
            ) => SavedQuerier::OtherRouter {
                address: *address,
                expires: to_boot(*expires),
                next_best: next_best.map(|(address, expires)| (address, to_boot(expires))),
                robustness: self.effective.robustness(),
                query_interval_ms: self.effective.query_interval().as_millis() as u64,
            },
        }
    }

    /// Continues saved state, if the policy and the address of this router still permit it. As the
    /// querier, this router sends its next query when it was due; if that time has passed, it
    /// starts anew.
    pub(super) fn restore(&mut self, clock: &ClockReading, saved: &SavedQuerier) {
        match *saved {
            SavedQuerier::NoQuerier => {}
            SavedQuerier::ThisRouter {
                address,
                next_query,
                startup_queries_left,
            } => {
                let longest = self.effective.query_interval();
                let next_query = clock.running_timer(next_query, longest);
                if let Some(next_query) = next_query
                    && self.is_us()
                    && self.own_address == Some(address)
                {
                    let most = self.effective.startup_query_count();
                    self.state = QuerierState::ThisRouter {
                        next_query,
                        startup_queries_left: startup_queries_left.min(most),
                    };
                }
            }
            SavedQuerier::OtherRouter {
                address,
                expires,
                next_best,
                robustness,
                query_interval_ms,
            } => {
                let loses_to = |own: IpAddr| own.is_unspecified() || address < own;
                let is_lower = self.own_address.is_none_or(loses_to);
                let may_be_elected = match self.policy {
                    QuerierPolicy::On => self.own_address.is_none(),
                    QuerierPolicy::Auto => is_lower,
                    QuerierPolicy::Off => self.own_address != Some(address),
                };
                let interval = Some(Duration::from_millis(query_interval_ms));
                let adopted = self.configured.adopted_values(robustness, interval);
                let longest = adopted.other_querier_present_interval();
                let Some(expires) = clock.running_timer(expires, longest) else {
                    return;
                };
                if may_be_elected && !address.is_unspecified() {
                    let running = |(address, expires)| {
                        Some((address, clock.running_timer(expires, longest)?))
                    };
                    self.no_querier_at = None;
                    self.effective = adopted;
                    self.state = QuerierState::OtherRouter {
                        address,
                        expires,
                        next_best: next_best.and_then(running),
                    };
                }
            }
        }
    }

    /// Returns the time until the next general query of this router. None if it is not the querier.
    pub(super) fn time_to_query(&self, now: Instant) -> Option<Duration> {
        match self.state {
            QuerierState::ThisRouter { next_query, .. } => {
                Some(next_query.saturating_duration_since(now))
            }
            QuerierState::NoQuerier | QuerierState::OtherRouter { .. } => None,
        }
    }

    /// Returns the timers and counters in effect.
    pub fn timers(&self) -> &EffectiveTimers {
        &self.effective
    }

    /// Returns the address that this router sends queries from.
    pub fn own_address(&self) -> Option<IpAddr> {
        self.own_address
    }

    /// Returns true if this router is the querier.
    pub fn is_us(&self) -> bool {
        matches!(self.state, QuerierState::ThisRouter { .. })
    }

    /// Returns the address of the querier, and true if it is this router.
    pub fn current(&self) -> (Option<IpAddr>, bool) {
        match self.state {
            QuerierState::NoQuerier => (None, false),
            QuerierState::ThisRouter { .. } => (self.own_address, true),
            QuerierState::OtherRouter { address, .. } => (Some(address), false),
        }
    }

    /// Returns the querier and the time left of the other querier present timer.
    pub fn status(&self, now: Instant) -> QuerierStatus {
        let (address, is_us) = self.current();
        let expires_in = match self.state {
            QuerierState::OtherRouter { expires, .. } => {
                Some(expires.saturating_duration_since(now))
            }
            QuerierState::NoQuerier | QuerierState::ThisRouter { .. } => None,
        };
        QuerierStatus {
            address,
            is_us,
            expires_in,
        }
    }

    /// Sets this router's address. Restarts the election if the address changes.
    pub fn set_own_address(&mut self, now: Instant, own_address: Option<IpAddr>) {
        if own_address != self.own_address {
            self.own_address = own_address;
            self.restart(now);
        }
    }

    /// Sets policy and timers. Restarts the election if either changes.
    pub fn reconfigure(&mut self, now: Instant, policy: QuerierPolicy, timers: &QuerierTimers) {
        let configured = EffectiveTimers::configured(timers);
        if policy != self.policy || configured != self.configured {
            self.policy = policy;
            self.configured = configured;
            self.restart(now);
        }
    }

    /// Restarts the election and, if this router may be the querier, the startup queries.
    pub(super) fn restart(&mut self, now: Instant) {
        self.no_querier_at = None;
        if self.policy == QuerierPolicy::Off || self.own_address.is_none() {
            // Another querier stays elected; only the role of this router has ended.
            if self.is_us() {
                self.state = QuerierState::NoQuerier;
                self.effective = self.configured;
            }
            if self.policy == QuerierPolicy::Off {
                self.start_no_querier_timer(now);
            }
            return;
        }
        self.effective = self.configured;
        self.state = QuerierState::ThisRouter {
            next_query: now,
            startup_queries_left: self.effective.startup_query_count(),
        };
    }

    /// Handles a general query from another router. Returns true if its sender would win the
    /// election, but the policy `on` ignores it.
    pub fn handle_general_query(&mut self, now: Instant, from: IpAddr, query: &Query) -> bool {
        // A router at 0.0.0.0 wins no election: its queries count for no other router either.
        let loses_to = |own: IpAddr| own.is_unspecified() || from < own;
        let is_lower = self.own_address.is_none_or(loses_to);
        match self.policy {
            QuerierPolicy::On if self.own_address.is_some() => return is_lower,
            QuerierPolicy::Auto if !is_lower => return false,
            QuerierPolicy::On | QuerierPolicy::Auto | QuerierPolicy::Off => {}
        }
        self.no_querier_at = None;
        let adopted = self.configured.adopted(query);
        let sender_expires = now + adopted.other_querier_present_interval();
        match &mut self.state {
            QuerierState::OtherRouter {
                address, next_best, ..
            } if *address < from => {
                // The lower address stays elected until its timer expires.
                if next_best.is_none_or(|(best, expires)| from <= best || expires <= now) {
                    *next_best = Some((from, sender_expires));
                }
            }
            QuerierState::OtherRouter {
                address,
                expires,
                next_best,
            } => {
                if from < *address {
                    *next_best = Some((*address, *expires));
                }
                (*address, *expires) = (from, sender_expires);
                self.effective = adopted;
            }
            QuerierState::NoQuerier | QuerierState::ThisRouter { .. } => {
                self.state = QuerierState::OtherRouter {
                    address: from,
                    expires: sender_expires,
                    next_best: None,
                };
                self.effective = adopted;
            }
        }
        false
    }

    /// Handles a general query from the unspecified address. Its sender cannot be elected, but
    /// with policy `off`, and no elected querier, this router adopts its timers.
    pub fn handle_unspecified_query(&mut self, now: Instant, query: &Query) {
        if self.policy == QuerierPolicy::Off && self.state == QuerierState::NoQuerier {
            self.effective = self.configured.adopted(query);
            self.start_no_querier_timer(now);
        }
    }

    /// Starts the timer after which the absence of queries is reported.
    fn start_no_querier_timer(&mut self, now: Instant) {
        self.no_querier_at = Some(now + self.effective.other_querier_present_interval());
    }

    /// With policy `off`: returns true once if no router has sent a query for the other querier
    /// present interval.
    pub(super) fn poll_no_querier(&mut self, now: Instant) -> bool {
        let is_due = self.no_querier_at.take_if(|at| *at <= now).is_some();
        is_due && self.state == QuerierState::NoQuerier
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            QuerierState::NoQuerier => self.no_querier_at,
            QuerierState::ThisRouter { next_query, .. } => Some(next_query),
            QuerierState::OtherRouter { expires, .. } => Some(expires),
        }
    }

    /// Handles expired timers. Returns true if a general query is to be sent.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if let QuerierState::OtherRouter {
            expires, next_best, ..
        } = self.state
            && expires <= now
        {
            match next_best.filter(|(_, expires)| *expires > now) {
                Some((address, expires)) => {
                    self.state = QuerierState::OtherRouter {
                        address,
                        expires,
                        next_best: None,
                    };
                }
                None => {
                    self.effective = self.configured;
                    self.state = match self.policy {
                        // The members are known, so no startup queries are needed.
                        QuerierPolicy::Auto | QuerierPolicy::On if self.own_address.is_some() => {
                            QuerierState::ThisRouter {
                                next_query: now,
                                startup_queries_left: 0,
                            }
                        }
                        _ => QuerierState::NoQuerier,
                    };
                }
            }
        }
        let QuerierState::ThisRouter {
            next_query,
            startup_queries_left,
        } = &mut self.state
        else {
            return false;
        };
        if *next_query > now {
            return false;
        }
        // The query that is due now counts as a startup query. After the last startup query the
        // full Query Interval passes.
        *startup_queries_left = startup_queries_left.saturating_sub(1);
        let wait = match *startup_queries_left {
            0 => self.effective.query_interval(),
            _ => self.effective.startup_query_interval(),
        };
        *next_query = now + wait;
        true
    }
}
