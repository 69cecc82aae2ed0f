//! The version that a host uses on a link with older queriers (RFC 9776 section 7.2.1, RFC 9777
//! section 8.2.1).

use std::time::Instant;

use crate::wire::membership_message::Generation;

/// The older version querier present timers of one interface.
#[derive(Debug, Default)]
pub(super) struct HostCompatibility {
    /// The IGMPv1 querier present timer.
    first_until: Option<Instant>,
    /// The IGMPv2 or MLDv1 querier present timer.
    second_until: Option<Instant>,
}

impl HostCompatibility {
    /// Starts the timer of an older querier.
    pub(super) fn note_query(&mut self, generation: Generation, until: Instant) {
        match generation {
            Generation::One => self.first_until = Some(until),
            Generation::Two => self.second_until = Some(until),
            Generation::Three => {}
        }
    }

    /// Returns the host compatibility mode: the version of the oldest querier that is present.
    pub(super) fn generation(&self) -> Generation {
        match (self.first_until, self.second_until) {
            (Some(_), _) => Generation::One,
            (None, Some(_)) => Generation::Two,
            (None, None) => Generation::Three,
        }
    }

    /// Stops the timers that expired.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for timer in [&mut self.first_until, &mut self.second_until] {
            timer.take_if(|until| *until <= now);
        }
    }

    /// Returns when the next timer expires.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let timers = [self.first_until, self.second_until];
        timers.into_iter().flatten().min()
    }
}
