//! A [`Host`] with a virtual clock. Filters and reports are short texts: `in ab` is INCLUDE {a, b},
//! `ex` is EXCLUDE {}, and groups are numbers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::membership::{
    Host, HostConfig, HostEvent, MembershipRefusal, MessageAddresses, Protocol,
};
use crate::model::{Group, Source, SourceFilter};
use crate::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};

/// A host under test.
pub struct VirtualHost {
    pub machine: Host,
    pub start: Instant,
    pub now: Instant,
    protocol: Protocol,
    /// The reports that were sent and not taken yet, each with its time in seconds.
    pub sent: Vec<(f64, String)>,
}

/// Returns a configuration that follows the version of the querier.
pub fn config(protocol: Protocol) -> HostConfig {
    HostConfig {
        protocol,
        generation: None,
        refresh: None,
    }
}

impl VirtualHost {
    /// Creates an IGMP host at 10.0.0.2.
    pub fn igmp() -> Self {
        Self::new(config(Protocol::Igmp), 1)
    }

    /// Creates an MLD host at fe80::2.
    pub fn mld() -> Self {
        Self::new(config(Protocol::Mld), 1)
    }

    /// Creates a host whose delays depend on `seed`.
    pub fn new(config: HostConfig, seed: u64) -> Self {
        let start = Instant::now();
        let own = match config.protocol {
            Protocol::Igmp => IpAddr::from([10, 0, 0, 2]),
            Protocol::Mld => "fe80::2".parse().unwrap(),
        };
        Self {
            machine: Host::new(start, config, vec![own], seed),
            start,
            now: start,
            protocol: config.protocol,
            sent: Vec::new(),
        }
    }

    pub fn group(&self, n: u16) -> Group {
        let addr: IpAddr = match self.protocol {
            Protocol::Igmp => [239, 1, (n >> 8) as u8, n as u8].into(),
            Protocol::Mld => Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, n).into(),
        };
        Group::new(addr).unwrap()
    }

    pub fn number(group: Group) -> u16 {
        match group.addr() {
            IpAddr::V4(addr) => addr.to_bits() as u16,
            IpAddr::V6(addr) => addr.segments()[7],
        }
    }

    pub fn source(&self, letter: char) -> Source {
        let n = letter as u16 - 'a' as u16 + 1;
        let addr: IpAddr = match self.protocol {
            Protocol::Igmp => [10, 9, 0, n as u8].into(),
            Protocol::Mld => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(),
        };
        Source::new(addr).unwrap()
    }

    fn letter(source: &Source) -> char {
        let n = match source.addr() {
            IpAddr::V4(addr) => addr.octets()[3],
            IpAddr::V6(addr) => addr.octets()[15],
        };
        char::from_u32(u32::from('a') + u32::from(n) - 1).unwrap()
    }

    pub fn sources(&self, letters: &str) -> Vec<Source> {
        letters.chars().map(|letter| self.source(letter)).collect()
    }

    /// Returns the filter of a text: `in ab`, `ex`, `ex a`, or `none`.
    pub fn filter(&self, text: &str) -> SourceFilter {
        let (mode, letters) = text.split_once(' ').unwrap_or((text, ""));
        let sources: BTreeSet<Source> = self.sources(letters).into_iter().collect();
        match mode {
            "in" => SourceFilter::Include(sources),
            "ex" => SourceFilter::Exclude(sources),
            "none" => SourceFilter::none(),
            other => panic!("unknown mode: {other}"),
        }
    }

    /// Sets the filter of a group, without a report yet.
    pub fn change(&mut self, group: u16, filter: &str) -> &mut Self {
        let (group, filter) = (self.group(group), self.filter(filter));
        self.machine.set_filter(self.now, group, filter);
        self
    }

    /// Sets the filter of a group and sends the reports that are due.
    pub fn set(&mut self, group: u16, filter: &str) -> &mut Self {
        self.change(group, filter).advance(0.0)
    }

    /// Delivers a general query with the default values.
    pub fn query(&mut self) -> &mut Self {
        let query = self.general_query();
        self.receive_query(&query)
    }

    pub fn general_query(&self) -> Query {
        Query {
            generation: Generation::Three,
            group: None,
            max_response_time: Duration::from_secs(10),
            suppress: false,
            robustness: 2,
            interval: Some(Duration::from_secs(125)),
            sources: vec![],
        }
    }

    /// Returns a query of an older version.
    pub fn older_query(&self, generation: Generation) -> Query {
        Query {
            generation,
            robustness: 0,
            interval: None,
            ..self.general_query()
        }
    }

    /// Returns a query for a group and, if there are any, the sources in `letters`.
    pub fn specific_query(&self, group: u16, letters: &str) -> Query {
        Query {
            group: Some(self.group(group)),
            max_response_time: Duration::from_secs(1),
            sources: self.sources(letters),
            ..self.general_query()
        }
    }

    pub fn receive_query(&mut self, query: &Query) -> &mut Self {
        let destination = match query.group {
            Some(group) => group.addr(),
            None => self.protocol.general_query_destination(),
        };
        let message = MembershipMessage::Query(query.clone());
        assert_eq!(self.receive(self.other(), destination, &message), Ok(()));
        self
    }

    /// Delivers a message and sends the reports that are due.
    pub fn receive(
        &mut self,
        sender: IpAddr,
        destination: IpAddr,
        message: &MembershipMessage,
    ) -> Result<(), MembershipRefusal> {
        let addresses = MessageAddresses {
            sender,
            destination,
        };
        let result = self.machine.handle_message(self.now, addresses, message);
        self.advance(0.0);
        result
    }

    /// Returns the address of this host.
    pub fn own(&self) -> IpAddr {
        match self.protocol {
            Protocol::Igmp => [10, 0, 0, 2].into(),
            Protocol::Mld => "fe80::2".parse().unwrap(),
        }
    }

    /// Returns the address of another machine.
    pub fn other(&self) -> IpAddr {
        match self.protocol {
            Protocol::Igmp => [10, 0, 0, 1].into(),
            Protocol::Mld => "fe80::1".parse().unwrap(),
        }
    }

    pub fn seconds(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }

    /// Advances the clock by `seconds`, and handles every timeout on the way.
    pub fn advance(&mut self, seconds: f64) -> &mut Self {
        let until = self.now + Duration::from_secs_f64(seconds);
        self.drain();
        while let Some(due) = self.machine.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(due);
            self.machine.handle_timeout(self.now);
            let again = self.machine.poll_timeout();
            assert!(
                again.is_none_or(|at| at > self.now),
                "a handled timeout is due again immediately"
            );
            self.drain();
        }
        self.now = until;
        self
    }

    fn drain(&mut self) {
        while let Some(report) = self.machine.poll_report() {
            let text = Self::text(&report);
            self.sent.push((self.seconds(), text));
        }
    }

    /// Returns a report as text: `TO_EX 1, ALLOW 2 ab`, `v2 1` or `leave 1`.
    pub fn text(report: &MembershipMessage) -> String {
        match report {
            MembershipMessage::Query(_) => "query".into(),
            MembershipMessage::Report { generation, group } => {
                let version = match generation {
                    Generation::One => 1,
                    Generation::Two => 2,
                    Generation::Three => 3,
                };
                format!("v{version} {}", Self::number(*group))
            }
            MembershipMessage::Leave { group } => format!("leave {}", Self::number(*group)),
            MembershipMessage::Records(records) => {
                let texts: Vec<_> = records.iter().map(Self::record_text).collect();
                texts.join(", ")
            }
        }
    }

    fn record_text(record: &GroupRecord) -> String {
        let kind = match record.kind {
            RecordType::ModeIsInclude => "IS_IN",
            RecordType::ModeIsExclude => "IS_EX",
            RecordType::ChangeToInclude => "TO_IN",
            RecordType::ChangeToExclude => "TO_EX",
            RecordType::AllowNewSources => "ALLOW",
            RecordType::BlockOldSources => "BLOCK",
        };
        let letters: String = record.sources.iter().map(Self::letter).collect();
        let text = format!("{kind} {} {letters}", Self::number(record.group));
        text.trim_end().to_string()
    }

    /// Returns the reports since the last call.
    pub fn take(&mut self) -> Vec<String> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|(_, text)| text).collect()
    }

    pub fn take_events(&mut self) -> Vec<HostEvent> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }
}
