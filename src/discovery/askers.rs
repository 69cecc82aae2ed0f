//! The open questions: who asked, from which of our ports the question was asked elsewhere, and
//! until when answers are passed on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::config::DiscoveryLimits;
use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use crate::model::{InterfaceId, MacAddress};

/// The ports from which questions leave: outside the ports that the kernel gives to programs
/// (`net.ipv4.ip_local_port_range`). The socket filter relies on the size, a power of two.
pub const FIRST_PORT: u16 = 61_440;
/// The number of these ports.
pub const PORTS: u16 = 512;

/// The largest number of answers to one question.
const MAX_ANSWERS: u32 = 1024;

/// Where answers to a question arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AnswerPort {
    /// The link on which the question was asked.
    pub link: InterfaceId,
    /// Our address on it.
    pub address: IpAddr,
    /// Our port.
    pub port: u16,
}

/// Who asked what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The link of the asker.
    pub link: InterfaceId,
    /// Its address and port.
    pub address: SocketAddr,
    /// The protocol of the question.
    pub protocol: DiscoveryProtocol,
}

/// An open question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenQuestion {
    /// Who asked.
    pub asker: Asker,
    /// The station of the asker; `None` on links without addresses.
    pub station: Option<MacAddress>,
    /// The group that it asked.
    pub group: IpAddr,
    /// Position of the [`DiscoveryRule`](super::config::DiscoveryRule).
    pub rule: usize,
    /// When answers are no longer passed on.
    pub expires: Instant,
    /// The number of answers so far.
    pub answers: u32,
}

/// Reserves ports of this host.
pub trait Ports {
    /// Reserves the port. Returns false if it is in use.
    fn reserve(&mut self, port: AnswerPort) -> bool;
    /// Releases a reserved port.
    fn release(&mut self, port: AnswerPort);
}

/// The open questions, with limits.
#[derive(Debug, Default)]
pub struct AskerTable {
    by_port: AHashMap<AnswerPort, OpenQuestion>,
    ports: AHashMap<(Asker, InterfaceId), AnswerPort>,
    per_asker: AHashMap<(InterfaceId, IpAddr), usize>,
    /// Where the search for a free port begins.
    next: u16,
}

impl AskerTable {
    /// Opens a question on a link, or prolongs it, and returns the port for its answers.
    ///
    /// # Errors
    /// A limit is reached, or no port is free.
    pub fn open(
        &mut self,
        question: OpenQuestion,
        (link, address): (InterfaceId, IpAddr),
        limits: &DiscoveryLimits,
        ports: &mut dyn Ports,
    ) -> Result<AnswerPort, WithheldReason> {
        let key = (question.asker, link);
        if let Some(port) = self.ports.get(&key).copied() {
            if port.address == address {
                // Answers to both questions arrive there, so their number is that of both.
                let answers = self.by_port.get(&port).map_or(0, |q| q.answers);
                let question = OpenQuestion {
                    answers,
                    ..question
                };
                self.by_port.insert(port, question);
                return Ok(port);
            }
            self.close(port, ports);
        }
        if self.by_port.len() >= limits.questions {
            return Err(WithheldReason::QuestionLimit);
        }
        let asker = (question.asker.link, question.asker.address.ip());
        let open = self.per_asker.get(&asker).copied().unwrap_or(0);
        if open >= limits.questions_per_asker {
            return Err(WithheldReason::AskerLimit);
        }
        let port = self.reserve(link, address, ports);
        let port = port.ok_or(WithheldReason::NoPort)?;
        *self.per_asker.entry(asker).or_insert(0) += 1;
        self.ports.insert(key, port);
        self.by_port.insert(port, question);
        Ok(port)
    }

    /// Reserves a free port.
    fn reserve(
        &mut self,
        link: InterfaceId,
        address: IpAddr,
        ports: &mut dyn Ports,
    ) -> Option<AnswerPort> {
        for _ in 0..PORTS {
            let number = FIRST_PORT + self.next % PORTS;
            self.next = (self.next + 1) % PORTS;
            let port = AnswerPort {
                link,
                address,
                port: number,
            };
            if !self.by_port.contains_key(&port) && ports.reserve(port) {
                return Some(port);
            }
        }
        None
    }

    /// Returns the question whose answers arrive at a port.
    pub fn get(&self, port: AnswerPort) -> Option<&OpenQuestion> {
        self.by_port.get(&port)
    }

    /// Returns the question to which an answer belongs, and counts the answer. Returns `None` if its
    /// time is over, or it was answered too often.
    pub fn answer(&mut self, now: Instant, port: AnswerPort) -> Option<&OpenQuestion> {
        let question = self.by_port.get_mut(&port)?;
        if question.expires <= now || question.answers >= MAX_ANSWERS {
            return None;
        }
        question.answers += 1;
        Some(question)
    }

    /// Closes the questions whose time is over.
    pub fn expire(&mut self, now: Instant, ports: &mut dyn Ports) {
        self.close_where(ports, |_, question| question.expires <= now);
    }

    /// Closes the questions for which a function returns true.
    pub fn close_where(
        &mut self,
        ports: &mut dyn Ports,
        is_over: impl Fn(&AnswerPort, &OpenQuestion) -> bool,
    ) {
        let over = self.by_port.iter();
        let over: Vec<AnswerPort> = over
            .filter(|(port, question)| is_over(port, question))
            .map(|(port, _)| *port)
            .collect();
        over.into_iter().for_each(|port| self.close(port, ports));
    }

    fn close(&mut self, port: AnswerPort, ports: &mut dyn Ports) {
        let Some(question) = self.by_port.remove(&port) else {
            return;
        };
        self.ports.remove(&(question.asker, port.link));
        let asker = (question.asker.link, question.asker.address.ip());
        if let Some(open) = self.per_asker.get_mut(&asker) {
            *open -= 1;
            if *open == 0 {
                self.per_asker.remove(&asker);
            }
        }
        ports.release(port);
    }

    /// Returns the earliest time at which a question expires.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_port.values().map(|question| question.expires).min()
    }

    /// Returns the number of open questions.
    pub fn len(&self) -> usize {
        self.by_port.len()
    }

    /// Returns whether no question is open.
    pub fn is_empty(&self) -> bool {
        self.by_port.is_empty()
    }

    /// Returns the open questions.
    pub fn iter(&self) -> impl Iterator<Item = (&AnswerPort, &OpenQuestion)> {
        self.by_port.iter()
    }
}

/// Returns when a question that is asked now expires.
pub fn expiry(now: Instant, answer_time: Duration) -> Instant {
    now.checked_add(answer_time).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct FakePorts {
        used: BTreeSet<AnswerPort>,
        taken: BTreeSet<u16>,
    }

    impl Ports for FakePorts {
        fn reserve(&mut self, port: AnswerPort) -> bool {
            !self.taken.contains(&port.port) && self.used.insert(port)
        }
        fn release(&mut self, port: AnswerPort) {
            assert!(self.used.remove(&port), "{port:?} was not reserved");
        }
    }

    fn id(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    fn question(host: u8, port: u16, expires: Instant) -> OpenQuestion {
        let asker = Asker {
            link: id(1),
            address: SocketAddr::from(([10, 0, 0, host], port)),
            protocol: DiscoveryProtocol::Ssdp,
        };
        OpenQuestion {
            asker,
            station: None,
            group: [239, 255, 255, 250].into(),
            rule: 0,
            expires,
            answers: 0,
        }
    }

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn repeated_question_keeps_its_port_and_is_prolonged() {
        let now = Instant::now();
        let (mut table, mut ports) = (AskerTable::default(), FakePorts::default());
        let limits = DiscoveryLimits::default();
        let second = Duration::from_secs(1);
        let first = table
            .open(
                question(1, 5000, now + second),
                (id(2), OURS),
                &limits,
                &mut ports,
            )
            .unwrap();
        let again = table
            .open(
                question(1, 5000, now + 3 * second),
                (id(2), OURS),
                &limits,
                &mut ports,
            )
            .unwrap();
        assert_eq!(first, again);
        let other = table
            .open(
                question(2, 5000, now + second),
                (id(2), OURS),
                &limits,
                &mut ports,
            )
            .unwrap();
        assert_ne!(first, other);
        table.expire(now + 2 * second, &mut ports);
        assert_eq!(table.len(), 1);
        assert!(table.answer(now + 2 * second, first).is_some());
        assert!(table.answer(now + 3 * second, first).is_none());
        table.expire(now + 3 * second, &mut ports);
        assert!(table.is_empty() && ports.used.is_empty());
    }

    #[test]
    fn limits_hold_for_one_asker_and_for_all() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let (mut table, mut ports) = (AskerTable::default(), FakePorts::default());
        let limits = DiscoveryLimits {
            questions: 10,
            questions_per_asker: 4,
            ..Default::default()
        };
        let mut open = |host, port| {
            table.open(
                question(host, port, later),
                (id(2), OURS),
                &limits,
                &mut ports,
            )
        };
        (0..4).for_each(|n| assert!(open(1, n).is_ok()));
        assert_eq!(open(1, 4), Err(WithheldReason::AskerLimit));
        (0..6).for_each(|n| assert!(open(2 + n as u8, 1).is_ok()));
        assert_eq!(open(9, 1), Err(WithheldReason::QuestionLimit));
    }

    #[test]
    fn ports_in_use_are_skipped() {
        let now = Instant::now();
        let (mut table, mut ports) = (AskerTable::default(), FakePorts::default());
        ports.taken = (FIRST_PORT..FIRST_PORT + PORTS)
            .filter(|p| *p != FIRST_PORT + 77)
            .collect();
        let limits = DiscoveryLimits::default();
        let mut open =
            |host| table.open(question(host, 1, now), (id(2), OURS), &limits, &mut ports);
        assert_eq!(open(1).unwrap().port, FIRST_PORT + 77);
        assert_eq!(open(2), Err(WithheldReason::NoPort));
    }

    proptest! {
        /// Against a plain list of questions: every open question has a port of its own, and no port
        /// is leaked.
        #[test]
        fn table_behaves_as_a_list(
            steps in proptest::collection::vec((0u8..6, 0u16..8, 0u64..6, 0u32..3), 1..200),
        ) {
            let start = Instant::now();
            let (mut table, mut ports) = (AskerTable::default(), FakePorts::default());
            let limits = DiscoveryLimits { questions: 12, questions_per_asker: 5, ..Default::default() };
            let mut model: BTreeMap<(u8, u16, u32), (Instant, AnswerPort)> = BTreeMap::new();
            for (step, (host, port, wait, link)) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(step as u64);
                table.expire(now, &mut ports);
                model.retain(|_, (expires, _)| *expires > now);
                let expires = now + Duration::from_secs(1 + wait);
                let opened = table.open(question(host, port, expires), (id(2 + link), OURS), &limits, &mut ports);
                let key = (host, port, link);
                let of_host = model.keys().filter(|(h, ..)| *h == host).count();
                let expected = match model.contains_key(&key) {
                    true => None,
                    false if model.len() >= 12 => Some(WithheldReason::QuestionLimit),
                    false if of_host >= 5 => Some(WithheldReason::AskerLimit),
                    false => None,
                };
                prop_assert_eq!(opened.err(), expected);
                if let Ok(port) = opened {
                    if let Some((_, before)) = model.get(&key) {
                        prop_assert_eq!(*before, port);
                    }
                    model.insert(key, (expires, port));
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(ports.used.len(), model.len());
                for ((host, port, _), (_, at)) in &model {
                    let found = table.answer(now, *at).unwrap();
                    prop_assert_eq!(found.asker.address, SocketAddr::from(([10, 0, 0, *host], *port)));
                }
            }
        }
    }
}
