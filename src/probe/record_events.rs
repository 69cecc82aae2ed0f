//! When a recording is written: events of a stream, and how they share files.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// How long a missing packet may be late before it counts as lost.
const REORDERING: Duration = Duration::from_millis(200);

/// Why a recording is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordReasons {
    /// A signal requests it.
    pub signal: bool,
    /// The recorder ends.
    pub end: bool,
    /// RTP packets that were lost.
    pub lost: u64,
    /// How often the stream fell silent.
    pub silences: u64,
}

impl RecordReasons {
    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the reasons of another event.
    pub fn add(&mut self, other: Self) {
        self.signal |= other.signal;
        self.end |= other.end;
        self.lost += other.lost;
        self.silences += other.silences;
    }

    /// Returns whether the recording is to be written at once.
    fn is_urgent(&self) -> bool {
        self.signal || self.end
    }
}

impl fmt::Display for RecordReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = match self.lost {
            0 => None,
            1 => Some("1 RTP packet lost".to_owned()),
            n => Some(format!("{n} RTP packets lost")),
        };
        let silent = match self.silences {
            0 => None,
            1 => Some("the stream fell silent".to_owned()),
            n => Some(format!("the stream fell silent {n} times")),
        };
        let signal = self.signal.then(|| "requested by a signal".to_owned());
        let end = self.end.then(|| "end of the recorder".to_owned());
        let reasons: Vec<String> = [lost, silent, signal, end].into_iter().flatten().collect();
        f.write_str(&reasons.join(", "))
    }
}

/// The conditions under which a recording is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordConditions {
    /// RTP packets are lost.
    pub loss: bool,
    /// No packet arrives for this time.
    pub silence: Option<Duration>,
}

/// Watches a stream for the conditions. Times count from the start.
#[derive(Debug)]
pub struct RecordWatch {
    conditions: RecordConditions,
    /// Lost packets that were reported.
    reported: u64,
    /// Since when more are missing.
    missing_since: Option<Duration>,
    last_packet: Duration,
    is_silent: bool,
}

impl RecordWatch {
    /// Starts to watch.
    pub fn new(conditions: RecordConditions) -> Self {
        Self {
            conditions,
            reported: 0,
            missing_since: None,
            last_packet: Duration::ZERO,
            is_silent: false,
        }
    }

    /// Looks at a stream of which `missing` packets have not arrived so far, and whose last packet
    /// arrived at `last_packet`. Returns what has happened since the last call.
    pub fn poll(
        &mut self,
        now: Duration,
        last_packet: Option<Duration>,
        missing: u64,
    ) -> RecordReasons {
        let mut reasons = RecordReasons::default();
        if self.conditions.loss {
            reasons.lost = self.poll_loss(now, missing);
        }
        if let Some(last_packet) = last_packet.filter(|last| *last > self.last_packet) {
            self.last_packet = last_packet;
            self.is_silent = false;
        }
        if let Some(silence) = self.conditions.silence
            && !self.is_silent
            && now.saturating_sub(self.last_packet) >= silence
        {
            self.is_silent = true;
            reasons.silences = 1;
        }
        reasons
    }

    /// Returns the packets that are missing for so long that they are lost.
    fn poll_loss(&mut self, now: Duration, missing: u64) -> u64 {
        if missing <= self.reported {
            // Some arrived after all, and may be lost again.
            self.reported = missing;
            self.missing_since = None;
            return 0;
        }
        let since = *self.missing_since.get_or_insert(now);
        if now.saturating_sub(since) < REORDERING {
            return 0;
        }
        let lost = missing - self.reported;
        self.reported = missing;
        self.missing_since = None;
        lost
    }
}

/// Decides when the ring is written to a file.
///
/// A condition waits for what follows it, and for the ring to be full again after the last file. So a
/// stream that loses packets all the time makes one file in the time of a ring, and nothing is left
/// out between two files.
#[derive(Debug)]
pub struct RecordSchedule {
    ring: Duration,
    after: Duration,
    last_file: Option<Duration>,
    waiting: RecordReasons,
    due: Duration,
}

impl RecordSchedule {
    /// Creates a schedule for a ring of this duration. Files contain the time `after` a condition.
    pub fn new(ring: Duration, after: Duration) -> Self {
        Self {
            ring,
            after,
            last_file: None,
            waiting: RecordReasons::default(),
            due: Duration::ZERO,
        }
    }

    /// Adds reasons to write a file.
    pub fn add(&mut self, reasons: RecordReasons, now: Duration) {
        if reasons.is_empty() {
            return;
        }
        if self.waiting.is_empty() {
            let after = now + self.after;
            let full = self.last_file.map(|last| last + self.ring);
            self.due = full.map_or(after, |full| full.max(after));
        }
        self.waiting.add(reasons);
        if reasons.is_urgent() {
            self.due = now;
        }
    }

    /// Returns the reasons of a file that is to be written now.
    pub fn poll(&mut self, now: Duration) -> Option<RecordReasons> {
        if self.waiting.is_empty() || now < self.due {
            return None;
        }
        self.last_file = Some(now);
        Some(std::mem::take(&mut self.waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn missing_packet_is_lost_after_the_time_for_reordering() {
        let mut watch = RecordWatch::new(RecordConditions {
            loss: true,
            silence: None,
        });
        let mut lost = |now, missing| watch.poll(ms(now), None, missing).lost;
        assert_eq!((lost(0, 0), lost(100, 2), lost(299, 2)), (0, 0, 0));
        assert_eq!((lost(300, 3), lost(310, 3)), (3, 0));
        // Late packets are not lost.
        assert_eq!((lost(400, 5), lost(450, 3), lost(900, 3)), (0, 0, 0));
        assert_eq!((lost(1000, 4), lost(1200, 4)), (0, 1));
    }

    #[test]
    fn silence_is_reported_once_until_the_next_packet() {
        let mut watch = RecordWatch::new(RecordConditions {
            loss: false,
            silence: Some(ms(2000)),
        });
        let mut silences = |now, last: Option<u64>| watch.poll(ms(now), last.map(ms), 9).silences;
        assert_eq!((silences(1999, None), silences(2000, None)), (0, 1));
        assert_eq!((silences(5000, None), silences(5100, Some(5050))), (0, 0));
        assert_eq!(
            (silences(7049, Some(5050)), silences(7050, Some(5050))),
            (0, 1)
        );
        assert_eq!(silences(9000, Some(5050)), 0);
    }

    #[test]
    fn conditions_wait_for_a_full_ring_and_signals_do_not() {
        let mut schedule = RecordSchedule::new(ms(60_000), ms(1000));
        let loss = |lost| RecordReasons {
            lost,
            ..RecordReasons::default()
        };
        schedule.add(loss(2), ms(5000));
        assert_eq!(schedule.poll(ms(5999)), None);
        assert_eq!(schedule.poll(ms(6000)), Some(loss(2)));
        schedule.add(loss(1), ms(7000));
        schedule.add(loss(4), ms(20_000));
        assert_eq!(schedule.poll(ms(65_999)), None);
        assert_eq!(schedule.poll(ms(66_000)), Some(loss(5)));
        let signal = RecordReasons {
            signal: true,
            ..RecordReasons::default()
        };
        schedule.add(loss(1), ms(70_000));
        schedule.add(signal, ms(71_000));
        let both = RecordReasons { lost: 1, ..signal };
        assert_eq!(schedule.poll(ms(71_000)), Some(both));
        assert_eq!(both.to_string(), "1 RTP packet lost, requested by a signal");
        assert_eq!(schedule.poll(ms(999_000)), None);
    }
}
