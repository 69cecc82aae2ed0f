//! A link with one [`Downstream`] and a virtual clock. Messages, queries and states are short
//! texts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::membership::{
    Downstream, DownstreamConfig, MembershipEvent, MembershipRefusal, Protocol, SavedDownstream,
};
use crate::model::{BootTime, ClockReading, Group, ProxyRule, Source};
use crate::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};

/// A link with one router interface under test.
pub struct VirtualLink {
    pub machine: Downstream,
    pub start: Instant,
    pub now: Instant,
    pub group: Group,
    /// The queries sent and not taken yet, each with its time in seconds since the start.
    pub sent: Vec<(f64, String)>,
}

/// Returns a proxy rule with default settings.
pub fn rule() -> ProxyRule {
    ProxyRule::new(vec![], vec![])
}

impl VirtualLink {
    /// Creates a link with an IGMP router at 10.0.0.1, which starts as the querier.
    pub fn new(rule: ProxyRule) -> Self {
        Self::with_protocol(Protocol::Igmp, rule, Some("10.0.0.1"))
    }

    /// Creates a link with a router at `own`.
    pub fn with_protocol(protocol: Protocol, rule: ProxyRule, own: Option<&str>) -> Self {
        let start = Instant::now();
        let config = DownstreamConfig::new(protocol, Arc::new(rule));
        let own = own.map(|a| a.parse().unwrap());
        let group = match protocol {
            Protocol::Igmp => "239.1.1.1",
            Protocol::Mld => "ff05::1:1",
        };
        Self {
            machine: Downstream::new(start, config, own),
            start,
            now: start,
            group: group.parse().unwrap(),
            sent: Vec::new(),
        }
    }

    fn protocol(&self) -> Protocol {
        self.machine.config().protocol
    }

    pub fn source(&self, letter: char) -> Source {
        let n = letter as u32 - 'a' as u32 + 1;
        let addr: IpAddr = match self.protocol() {
            Protocol::Igmp => [10, 9, (n >> 8) as u8, n as u8].into(),
            Protocol::Mld => {
                let bits = "2001:db8::a:0".parse::<Ipv6Addr>().unwrap().to_bits();
                Ipv6Addr::from_bits(bits + u128::from(n)).into()
            }
        };
        Source::new(addr).unwrap()
    }

    fn letter(&self, source: Source) -> char {
        let n = match source.addr() {
            IpAddr::V4(a) => a.to_bits() & 0xffff,
            IpAddr::V6(a) => a.to_bits() as u32 & 0xffff,
        };
        char::from_u32('a' as u32 + n - 1).unwrap()
    }

    pub fn sources(&self, letters: &str) -> Vec<Source> {
        let letters = letters.chars().filter(|c| c.is_alphabetic());
        letters.map(|c| self.source(c)).collect()
    }

    fn letters<'a>(&self, sources: impl IntoIterator<Item = &'a Source>) -> String {
        let sorted: BTreeSet<_> = sources.into_iter().collect();
        sorted.into_iter().map(|s| self.letter(*s)).collect()
    }

    pub fn host(&self, n: u8) -> IpAddr {
        match self.protocol() {
            Protocol::Igmp => [10, 0, 0, 100 + n].into(),
            Protocol::Mld => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(n)).into(),
        }
    }

    pub fn seconds(&self) -> f64 {
        self.now.duration_since(self.start).as_secs_f64()
    }

    /// Advances the clock to `seconds` after the start, and handles every timeout on the way.
    pub fn advance_to(&mut self, seconds: f64) -> &mut Self {
        let until = self.start + Duration::from_secs_f64(seconds);
        assert!(until >= self.now);
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

    /// Ends the process of the router and starts another one after `seconds`, with these settings
    /// and address.
    pub fn restart(&mut self, seconds: f64, rule: ProxyRule, own: Option<&str>) -> &mut Self {
        self.restart_with(seconds, rule, own, |_| {})
    }

    /// As [`Self::restart`], with a change of the state in between. The state takes the way through a
    /// file.
    pub fn restart_with(
        &mut self,
        seconds: f64,
        rule: ProxyRule,
        own: Option<&str>,
        change: impl Fn(&mut SavedDownstream),
    ) -> &mut Self {
        let clock = |link: &Self| ClockReading {
            now: link.now,
            boot: BootTime::from_ms(1_000_000 + (link.seconds() * 1000.0) as u64),
        };
        let saved = self.machine.saved(&clock(self));
        let text = serde_json::to_string(&saved).unwrap();
        let mut saved = serde_json::from_str(&text).unwrap();
        change(&mut saved);
        self.now += Duration::from_secs_f64(seconds);
        let config = DownstreamConfig::new(self.protocol(), Arc::new(rule));
        let own = own.map(|a| a.parse().unwrap());
        self.machine = Downstream::restored(&clock(self), config, own, &saved);
        self.drain();
        self
    }

    /// Reports to the router that received messages were lost before it could process them.
    pub fn lose_messages(&mut self) -> &mut Self {
        self.machine.handle_message_loss(self.now);
        self
    }

    fn drain(&mut self) {
        while let Some(out) = self.machine.poll_query() {
            let all = self.protocol().general_query_destination();
            assert_eq!(out.destination, out.query.group.map_or(all, Group::addr));
            let text = self.query_text(&out.query);
            self.sent.push((self.seconds(), text));
        }
    }

    fn query_text(&self, query: &Query) -> String {
        let flag = if query.suppress { "S " } else { "" };
        let text = match (query.group, &query.sources[..]) {
            (None, []) => "Q".into(),
            (Some(_), []) => "Q(G)".into(),
            (_, sources) => format!("Q(G,{})", self.letters(sources)),
        };
        let version = match query.generation {
            Generation::One => "1",
            Generation::Two => "2",
            Generation::Three => "",
        };
        format!("{flag}{text}{version}")
    }

    /// Delivers a message from a host: `IS_IN ab`, `TO_EX`, `v2`, `v1` or `leave`.
    pub fn try_receive(&mut self, host: u8, text: &str) -> Result<(), MembershipRefusal> {
        let (from, to) = (self.host(host), self.group.addr());
        let message = self.message(text);
        let result = self.machine.handle_message(self.now, from, to, &message);
        self.drain();
        result
    }

    /// Delivers a message from a host, which must be accepted.
    pub fn receive(&mut self, host: u8, text: &str) -> &mut Self {
        assert_eq!(self.try_receive(host, text), Ok(()), "{text}");
        self
    }

    fn message(&self, text: &str) -> MembershipMessage {
        let (word, letters) = text.split_once(' ').unwrap_or((text, ""));
        let group = self.group;
        let kind = match word {
            "v1" | "v2" => {
                let generation = match word {
                    "v1" => Generation::One,
                    _ => Generation::Two,
                };
                return MembershipMessage::Report { generation, group };
            }
            "leave" => return MembershipMessage::Leave { group },
            "IS_IN" => RecordType::ModeIsInclude,
            "IS_EX" => RecordType::ModeIsExclude,
            "TO_IN" => RecordType::ChangeToInclude,
            "TO_EX" => RecordType::ChangeToExclude,
            "ALLOW" => RecordType::AllowNewSources,
            "BLOCK" => RecordType::BlockOldSources,
            other => panic!("unknown message: {other}"),
        };
        let sources = self.sources(letters);
        MembershipMessage::Records(vec![GroupRecord {
            kind,
            group,
            sources,
        }])
    }

    /// Returns a general query from another router, with the default values.
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

    /// Returns a query for the group, and for its sources in `letters`.
    pub fn specific_query(&self, letters: &str) -> Query {
        Query {
            group: Some(self.group),
            max_response_time: Duration::from_secs(1),
            sources: self.sources(letters),
            ..self.general_query()
        }
    }

    /// Delivers a query from another router, sent to the destination that the RFC requires.
    pub fn receive_query(&mut self, from: &str, query: &Query) -> Result<(), MembershipRefusal> {
        let to = match query.group {
            Some(group) => group.addr(),
            None => self.protocol().general_query_destination(),
        };
        self.receive_query_to(from, to, query)
    }

    /// Delivers a query from another router, sent to `to`.
    pub fn receive_query_to(
        &mut self,
        from: &str,
        to: IpAddr,
        query: &Query,
    ) -> Result<(), MembershipRefusal> {
        let message = MembershipMessage::Query(query.clone());
        let from = from.parse().unwrap();
        let result = self.machine.handle_message(self.now, from, to, &message);
        self.drain();
        result
    }

    /// Returns the state of the group: `INCLUDE a170 b270`, `EXCLUDE 270: a170 c0`, `gone`.
    pub fn state(&self) -> String {
        let mut groups = self.machine.groups(self.now);
        let Some(view) = groups.find(|v| v.group == self.group) else {
            return "gone".into();
        };
        let left = |d: Option<Duration>| d.map_or(0.0, |d| d.as_secs_f64());
        let mut text = match view.group_timer {
            None => "INCLUDE".to_string(),
            Some(timer) => format!("EXCLUDE {}:", timer.as_secs_f64()),
        };
        for s in &view.sources {
            text += &format!(" {}{}", self.letter(s.source), left(s.source_timer));
        }
        text.trim_end_matches(':').to_string()
    }

    pub fn generation(&self) -> Generation {
        let view = self.machine.groups(self.now).next();
        view.map_or(Generation::Three, |v| v.generation)
    }

    /// Returns the specific queries sent since the last call, such as `0 Q(G), 1 Q(G)`. Discards
    /// the general queries.
    pub fn take_specific_queries(&mut self) -> String {
        let sent = std::mem::take(&mut self.sent);
        let own = sent.iter().filter(|(_, q)| q.contains('('));
        let texts: Vec<_> = own.map(|(at, q)| format!("{at} {q}")).collect();
        texts.join(", ")
    }

    /// Returns the times of the general queries sent since the last call. Discards the specific
    /// queries.
    pub fn take_general_query_times(&mut self) -> Vec<f64> {
        let sent = std::mem::take(&mut self.sent);
        let all = sent.iter().filter(|(_, q)| !q.contains('('));
        all.map(|(at, _)| *at).collect()
    }

    /// Returns the filter changes since the last call, such as `include ab`, `exclude` or `none`.
    pub fn take_changes(&mut self) -> Vec<String> {
        use crate::model::SourceFilter::{Exclude, Include};
        let mut changes = Vec::new();
        while let Some((_, filter)) = self.machine.poll_change() {
            changes.push(match &filter {
                Include(sources) if sources.is_empty() => "none".to_string(),
                Include(sources) => format!("include {}", self.letters(sources)),
                Exclude(sources) if sources.is_empty() => "exclude".to_string(),
                Exclude(sources) => format!("exclude {}", self.letters(sources)),
            });
        }
        changes
    }

    pub fn take_events(&mut self) -> Vec<MembershipEvent> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }
}
