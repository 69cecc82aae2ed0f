//! The reads of ports to which answers arrive in fragments. The kernel reassembles such an answer; the
//! socket of the port is read some times after the first fragment.

use ahash::AHashMap;

use crate::discovery::askers::AnswerPort;

/// Reads of one port at the same time. Several devices may answer one after the other.
const MAX_RUNNING: u8 = 8;

/// The reads of one port.
#[derive(Debug, Default)]
struct PortReads {
    running: u8,
    /// A fragment arrived that none of them follows.
    is_late: bool,
}

/// The reads that are scheduled. Hosts can send any number of fragments, so the number of reads is
/// limited for each port, and only ports of open questions have any.
#[derive(Debug, Default)]
pub(super) struct FragmentedAnswers(AHashMap<AnswerPort, PortReads>);

impl FragmentedAnswers {
    /// Notes the first fragment of an answer to a port. Returns whether reads must be scheduled.
    pub fn note_fragment(&mut self, port: AnswerPort) -> bool {
        let reads = self.0.entry(port).or_default();
        let is_free = reads.running < MAX_RUNNING;
        match is_free {
            true => reads.running += 1,
            false => reads.is_late = true,
        }
        is_free
    }

    /// Notes the last of the reads that follow a fragment. Returns whether more must be scheduled, for
    /// fragments that arrived meanwhile.
    pub fn note_last_read(&mut self, port: AnswerPort) -> bool {
        let Some(reads) = self.0.get_mut(&port) else {
            return false;
        };
        if std::mem::take(&mut reads.is_late) {
            return true;
        }
        reads.running = reads.running.saturating_sub(1);
        if reads.running == 0 {
            self.0.remove(&port);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InterfaceId;

    fn port(port: u16) -> AnswerPort {
        AnswerPort {
            link: InterfaceId::new(1).unwrap(),
            address: [192, 0, 2, 1].into(),
            port,
        }
    }

    /// A flood of fragments schedules a constant number of reads, and the last fragment is followed by
    /// one.
    #[test]
    fn reads_of_a_port_are_limited() {
        let mut answers = FragmentedAnswers::default();
        let scheduled = (0..100_000).filter(|_| answers.note_fragment(port(61_440)));
        assert_eq!(scheduled.count(), 8);
        assert!(answers.note_fragment(port(61_441)), "another port");
        assert!(answers.note_last_read(port(61_440)));
        (0..8).for_each(|_| assert!(!answers.note_last_read(port(61_440))));
        assert!(!answers.note_last_read(port(61_441)));
        assert!(answers.0.is_empty());
        assert!(!answers.note_last_read(port(61_440)));
    }
}
