//! Who asks the hosts of a link: startup, general queries, election (RFC 9776 section 6.6.2,
//! RFC 9777 section 7.6.2).
//!
//! ```text
//!  no address, or policy off            policy auto, a lower address asks
//!          Nobody <----------> Us ---------------------------------> Other
//!            ^                  ^                                      |
//!            |                  +---- its timer runs out (auto) -------+
//!            +----------------------- its timer runs out (no address, off)
//! ```

use std::net::IpAddr;
use std::time::Instant;

use crate::model::{QuerierPolicy, QuerierTimers};
use crate::wire::group_message::Query;

use super::effective_timers::EffectiveTimers;
use super::status::QuerierStatus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Nobody,
    Us {
        /// When the next general query is due.
        next: Instant,
        /// How many of the startup queries are still to be sent.
        startup: u8,
    },
    Other {
        address: IpAddr,
        until: Instant,
        /// Another that asked since and would ask in its stead.
        next_best: Option<(IpAddr, Instant)>,
    },
}

/// One router's part in the election of one link.
#[derive(Debug)]
pub struct QuerierElection {
    policy: QuerierPolicy,
    configured: EffectiveTimers,
    in_force: EffectiveTimers,
    own: Option<IpAddr>,
    role: Role,
    /// Where we only listen: until when somebody has to ask, before that is worth a word.
    silent: Option<Instant>,
}

impl QuerierElection {
    /// Starts up: with an address and a policy to ask, the first general query is due at once.
    pub fn new(
        now: Instant,
        policy: QuerierPolicy,
        timers: &QuerierTimers,
        own: Option<IpAddr>,
    ) -> Self {
        let configured = EffectiveTimers::configured(timers);
        let mut querier = Self {
            policy,
            configured,
            in_force: configured,
            own,
            role: Role::Nobody,
            silent: None,
        };
        querier.start(now);
        querier
    }

    /// The values in force.
    pub fn timers(&self) -> &EffectiveTimers {
        &self.in_force
    }

    /// Our address.
    pub fn own(&self) -> Option<IpAddr> {
        self.own
    }

    /// Whether we ask.
    pub fn is_us(&self) -> bool {
        matches!(self.role, Role::Us { .. })
    }

    /// Who asks: address, and whether it is us.
    pub fn current(&self) -> (Option<IpAddr>, bool) {
        match self.role {
            Role::Nobody => (None, false),
            Role::Us { .. } => (self.own, true),
            Role::Other { address, .. } => (Some(address), false),
        }
    }

    /// The same, and how long another is still believed to live.
    pub fn view(&self, now: Instant) -> QuerierStatus {
        let (address, is_us) = self.current();
        let expires_in = match self.role {
            Role::Other { until, .. } => Some(until.saturating_duration_since(now)),
            Role::Nobody | Role::Us { .. } => None,
        };
        QuerierStatus {
            address,
            is_us,
            expires_in,
        }
    }

    /// The address came, changed or went: election and startup anew.
    pub fn set_own(&mut self, now: Instant, own: Option<IpAddr>) {
        if own != self.own {
            self.own = own;
            self.start(now);
        }
    }

    /// Other settings: election and startup anew, where they differ.
    pub fn configure(&mut self, now: Instant, policy: QuerierPolicy, timers: &QuerierTimers) {
        let configured = EffectiveTimers::configured(timers);
        if policy != self.policy || configured != self.configured {
            self.policy = policy;
            self.configured = configured;
            self.start(now);
        }
    }

    /// Begins anew, as far as we may ask.
    pub(super) fn start(&mut self, now: Instant) {
        self.silent = None;
        if self.policy == QuerierPolicy::Off || self.own.is_none() {
            // Whoever asks now still does so: only our own part has ended.
            if self.is_us() {
                self.role = Role::Nobody;
                self.in_force = self.configured;
            }
            if self.policy == QuerierPolicy::Off {
                self.listen(now);
            }
            return;
        }
        self.in_force = self.configured;
        self.role = Role::Us {
            next: now,
            startup: self.in_force.startup_query_count(),
        };
    }

    /// A general query that may elect was heard. True where its sender would be elected over us
    /// if our policy allowed it.
    pub fn heard(&mut self, now: Instant, from: IpAddr, query: &Query) -> bool {
        let lower = self.own.is_none_or(|own| from < own);
        match self.policy {
            QuerierPolicy::On if self.own.is_some() => return lower,
            QuerierPolicy::Auto if !lower => return false,
            QuerierPolicy::On | QuerierPolicy::Auto | QuerierPolicy::Off => {}
        }
        self.silent = None;
        let heard = self.configured.adopted(query);
        let until = now + heard.other_querier_present_interval();
        match &mut self.role {
            Role::Other {
                address, next_best, ..
            } if *address < from => {
                // The lower one stays as long as it is believed to live.
                if next_best.is_none_or(|(best, at)| from <= best || at <= now) {
                    *next_best = Some((from, until));
                }
            }
            Role::Other {
                address,
                until: at,
                next_best,
            } => {
                if from < *address {
                    *next_best = Some((*address, *at));
                }
                (*address, *at) = (from, until);
                self.in_force = heard;
            }
            Role::Nobody | Role::Us { .. } => {
                self.role = Role::Other {
                    address: from,
                    until,
                    next_best: None,
                };
                self.in_force = heard;
            }
        }
        false
    }

    /// What a querier tells that cannot be elected, where we only listen.
    pub fn adopt(&mut self, now: Instant, query: &Query) {
        if self.policy == QuerierPolicy::Off && self.role == Role::Nobody {
            self.in_force = self.configured.adopted(query);
            self.listen(now);
        }
    }

    /// From now on somebody has to ask within the time another querier is believed to live.
    fn listen(&mut self, now: Instant) {
        self.silent = Some(now + self.in_force.other_querier_present_interval());
    }

    /// Where we only listen: whether by now nobody asked for so long that hosts are forgotten.
    /// Says so once.
    pub(super) fn fell_silent(&mut self, now: Instant) -> bool {
        let silent = self.silent.take_if(|at| *at <= now).is_some();
        silent && self.role == Role::Nobody
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.role {
            Role::Nobody => self.silent,
            Role::Us { next, .. } => Some(next),
            Role::Other { until, .. } => Some(until),
        }
    }

    /// Does what is due. True where a general query is to be sent.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if let Role::Other {
            until, next_best, ..
        } = self.role
            && until <= now
        {
            match next_best.filter(|(_, at)| *at > now) {
                Some((address, until)) => {
                    self.role = Role::Other {
                        address,
                        until,
                        next_best: None,
                    };
                }
                None => {
                    self.in_force = self.configured;
                    // No startup: hosts are known, the link only lost its querier.
                    self.role = match self.policy {
                        QuerierPolicy::Auto | QuerierPolicy::On if self.own.is_some() => Role::Us {
                            next: now,
                            startup: 0,
                        },
                        _ => Role::Nobody,
                    };
                }
            }
        }
        let Role::Us { next, startup } = &mut self.role else {
            return false;
        };
        if *next > now {
            return false;
        }
        // The first of the startup queries counts; the last is followed by a whole interval.
        *startup = startup.saturating_sub(1);
        let wait = match *startup {
            0 => self.in_force.query_interval(),
            _ => self.in_force.startup_query_interval(),
        };
        *next = now + wait;
        true
    }
}
