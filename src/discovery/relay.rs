//! The machine: takes the messages of each link, and returns those to send on other links.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::askers::{
    AnswerPort, Asker, AskerTable, FIRST_PORT, OpenQuestion, PORTS, Ports, expiry,
};
use super::config::DiscoveryRule;
use super::decision_log::DecisionLog;
use super::knx;
use super::link_table::LinkTable;
use super::mdns::{ItemKey, MdnsMessage, RecordGate};
use super::message::{MessageContent, MessageKind};
use super::observed::ObservationTable;
use super::protocol::{DiscoveryProtocol, Transport};
use super::reason::WithheldReason;
use super::recent_responses::RecentResponses;
use super::relayed_message::{DiscoveryMessage, OutgoingMessage, WithheldMessage};
use super::repeats::{LinkRates, RepeatGuard};
use super::rule_table::RuleTable;
use super::service_hosts::ServiceHosts;
use super::work_limit::WorkLimit;
use crate::model::addr::is_link_local_source;
use crate::model::{InterfaceId, PublishedPorts};
use crate::wire::udp::UdpDatagram;

/// The TTL of answers that are passed on: they have only one hop left.
const ANSWER_TTL: u8 = 64;
/// How long the answers to a unicast question of multicast DNS are passed on: those to shared records
/// are delayed by up to 120 ms, those to truncated questions by 500 ms (RFC 6762 section 6).
const MDNS_ANSWER_TIME: Duration = Duration::from_secs(5);

/// The machine.
#[derive(Debug)]
pub struct DiscoveryRelay {
    table: RuleTable,
    askers: AskerTable,
    repeats: RepeatGuard,
    rates: LinkRates,
    recent: RecentResponses,
    hosts: ServiceHosts,
    log: DecisionLog,
    work: WorkLimit,
}

impl DiscoveryRelay {
    /// Returns a machine without links.
    pub fn new(rules: Vec<DiscoveryRule>) -> Self {
        let limit = rules.iter().map(|rule| rule.limits.offers).max();
        Self {
            table: RuleTable::new(rules),
            askers: AskerTable::default(),
            repeats: RepeatGuard::default(),
            rates: LinkRates::default(),
            recent: RecentResponses::default(),
            hosts: ServiceHosts::default(),
            log: DecisionLog::new(limit.unwrap_or(0)),
            work: WorkLimit::default(),
        }
    }

    /// Returns the rules.
    pub fn rules(&self) -> &[DiscoveryRule] {
        self.table.rules()
    }

    /// Returns the links.
    pub fn links(&self) -> &LinkTable {
        self.table.links()
    }

    /// Returns the open questions.
    pub fn questions(&self) -> &AskerTable {
        &self.askers
    }

    /// Returns what was offered.
    pub fn offers(&self) -> &ObservationTable {
        self.log.offers()
    }

    /// Returns what was asked for, by asker.
    pub fn asked(&self) -> &ObservationTable {
        self.log.asked()
    }

    /// Returns what was withheld since the last call.
    pub fn take_withheld(&mut self) -> Vec<WithheldMessage> {
        self.log.take_withheld()
    }

    /// Sets the links, and the ports that the container engine publishes. Questions on links that are
    /// gone, or from addresses that are gone, are closed.
    pub fn set_links(
        &mut self,
        links: LinkTable,
        published: PublishedPorts,
        ports: &mut dyn Ports,
    ) {
        self.table.set_links(links, published);
        let links = self.table.links();
        self.askers.close_where(ports, |port, question| {
            let is_open = links
                .get(&port.link)
                .is_some_and(|link| link.is_own(port.address));
            !is_open || !links.contains_key(&question.asker.link)
        });
        self.rates.retain(|link| links.contains_key(&link));
        self.recent.clear();
        self.work.retain(|link| links.contains_key(&link));
    }

    /// Closes questions whose time is over, and forgets old offers and questions.
    pub fn expire(&mut self, now: Instant, ports: &mut dyn Ports) {
        self.hosts.expire(now);
        self.askers.expire(now, ports);
        self.recent.expire(now);
        let links = self.table.links();
        self.log.expire(now, |link| links.contains_key(&link));
    }

    /// Closes all questions.
    pub fn close(&mut self, ports: &mut dyn Ports) {
        self.askers.close_where(ports, |_, _| true);
    }

    /// Counts a packet that the kernel refused to send.
    pub fn note_send_failure(&mut self, message: &OutgoingMessage) {
        let (protocol, kind) = message.kind;
        self.log
            .withhold(protocol, kind, WithheldReason::SendFailed);
    }

    /// Handles a message, and returns the packets to send.
    pub fn handle(
        &mut self,
        now: Instant,
        received: &DiscoveryMessage<'_>,
        ports: &mut dyn Ports,
    ) -> Vec<OutgoingMessage> {
        let destination = received.datagram.destination;
        let is_answer = (FIRST_PORT..FIRST_PORT + PORTS).contains(&destination.port());
        let Some(link) = self.table.links().get(&received.link) else {
            return Vec::new();
        };
        if is_answer && link.is_own(destination.ip()) {
            return self.handle_answer(now, received).into_iter().collect();
        }
        let is_own = self.table.is_own(received.datagram.source.ip());
        let mut out = Vec::new();
        let mut is_admitted = None;
        for rule in 0..self.table.rules().len() {
            let Some(protocol) = self.table.protocol_of(rule, destination) else {
                continue;
            };
            if is_own && !received.is_of_this_host {
                self.log
                    .withhold(protocol, "announcement", WithheldReason::OwnAddress);
                continue;
            }
            let len = received.datagram.payload.len();
            let admit = || self.work.admits(now, received.link, len);
            if !*is_admitted.get_or_insert_with(admit) {
                let reason = WithheldReason::RateLimit;
                self.log.withhold(protocol, "question", reason);
                continue;
            }
            match protocol.transport() {
                Transport::Mdns => self.handle_mdns(now, rule, received, ports, &mut out),
                _ => self.handle_other(now, (rule, protocol), received, ports, &mut out),
            }
        }
        out
    }

    /// Handles a message of a protocol other than multicast DNS.
    fn handle_other(
        &mut self,
        now: Instant,
        (rule, protocol): (usize, DiscoveryProtocol),
        received: &DiscoveryMessage<'_>,
        ports: &mut dyn Ports,
        out: &mut Vec<OutgoingMessage>,
    ) {
        let content = match MessageContent::parse(protocol, received.datagram.payload) {
            Ok(content) if content.kind != MessageKind::Answer => content,
            Ok(_) => {
                return self
                    .log
                    .withhold(protocol, "answer", WithheldReason::Malformed);
            }
            Err(reason) => return self.log.withhold(protocol, "question", reason),
        };
        // What this host asks, it asks on each of its links.
        let may_ask = !received.is_of_this_host;
        let (asks, announces) = match content.kind {
            MessageKind::Question => (may_ask, false),
            MessageKind::Announcement => (false, true),
            MessageKind::Answer | MessageKind::Either => (may_ask, !may_ask),
        };
        if asks {
            for egress in self.table.ways(rule, received.link, true) {
                let sent = self.ask(now, (rule, protocol), &content, received, egress, ports);
                let (ends, what) = ((received.link, egress), (content.what.as_str(), ""));
                let withheld = sent.as_ref().err().copied();
                self.log
                    .note_question(now, ends, protocol, received, what, withheld);
                self.push(now, sent, (protocol, "question"), out);
            }
        }
        if announces {
            for egress in self.table.ways(rule, received.link, false) {
                let sent = self.announce(now, (rule, protocol), &content, received, egress);
                self.push(now, sent, (protocol, "announcement"), out);
            }
        }
    }

    fn push(
        &mut self,
        now: Instant,
        sent: Result<OutgoingMessage, WithheldReason>,
        (protocol, kind): (DiscoveryProtocol, &'static str),
        out: &mut Vec<OutgoingMessage>,
    ) {
        let admitted = sent.and_then(|message| {
            let limits = self.table.limits(message.link);
            let admits = self
                .rates
                .admits(now, message.link, limits.messages_per_second);
            admits.then_some(message).ok_or(WithheldReason::RateLimit)
        });
        match admitted {
            Ok(message) => out.push(message),
            Err(reason) => self.log.withhold(protocol, kind, reason),
        }
    }

    /// Returns the question as it is asked on another link.
    fn ask(
        &mut self,
        now: Instant,
        (rule, protocol): (usize, DiscoveryProtocol),
        content: &MessageContent,
        received: &DiscoveryMessage<'_>,
        egress: InterfaceId,
        ports: &mut dyn Ports,
    ) -> Result<OutgoingMessage, WithheldReason> {
        let datagram = &received.datagram;
        let gate = self
            .table
            .gate(rule, (egress, received.link), datagram.source.ip(), None)?;
        gate.check_question(&content.offer())?;
        let repeated = self
            .repeats
            .hash((protocol, datagram.source.ip(), datagram.payload));
        if self.repeats.exceeds_repeats(now, egress, repeated) {
            return Err(WithheldReason::Repeated);
        }
        let Some(config) = self.table.rule(rule) else {
            return Err(WithheldReason::NoAddress);
        };
        if !config.relays_answers(protocol).0 {
            let kind = (protocol, "question");
            return OutgoingMessage::forwarded(egress, received, datagram.payload, kind);
        }
        let answer_time = match protocol.transport() {
            Transport::UnicastAnswers(time) => time,
            _ => MDNS_ANSWER_TIME,
        };
        let port = self.open(now, (rule, protocol), received, egress, answer_time, ports)?;
        let payload = match port.address {
            IpAddr::V4(address) if protocol == DiscoveryProtocol::Knx => {
                let endpoint = std::net::SocketAddrV4::new(address, port.port);
                knx::with_endpoint(datagram.payload, endpoint)
            }
            _ => datagram.payload.to_vec(),
        };
        OutgoingMessage::question(port, received, &payload, protocol)
    }

    /// Opens a question, and returns the port for its answers.
    fn open(
        &mut self,
        now: Instant,
        (rule, protocol): (usize, DiscoveryProtocol),
        received: &DiscoveryMessage<'_>,
        egress: InterfaceId,
        answer_time: Duration,
        ports: &mut dyn Ports,
    ) -> Result<AnswerPort, WithheldReason> {
        let group = received.datagram.destination.ip();
        let address = self.table.source_for(egress, group);
        let address = address.ok_or(WithheldReason::NoAddress)?;
        let limits = self.table.rule(rule).map(|rule| rule.limits);
        let limits = limits.unwrap_or_default();
        let question = OpenQuestion {
            asker: Asker {
                link: received.link,
                address: received.datagram.source,
                protocol,
            },
            station: received.station,
            group,
            rule,
            expires: expiry(now, answer_time),
            answers: 0,
        };
        self.askers
            .open(question, (egress, address), &limits, ports)
    }

    /// Returns an announcement as it is made on another link.
    fn announce(
        &mut self,
        now: Instant,
        (rule, protocol): (usize, DiscoveryProtocol),
        content: &MessageContent,
        received: &DiscoveryMessage<'_>,
        egress: InterfaceId,
    ) -> Result<OutgoingMessage, WithheldReason> {
        let datagram = &received.datagram;
        let device = datagram.source.ip();
        let gate = self
            .table
            .gate(rule, (received.link, egress), device, received.station)?;
        let checked = gate.check_offer(&content.offer());
        let translated = checked.and_then(|()| content.translate(&gate, datagram.payload));
        let translated = match is_link_local_source(device) && device.is_ipv6() {
            true => translated.and(Err(WithheldReason::UnusableAddress)),
            false => translated,
        };
        let ends = (received.link, egress);
        let what = (content.what.as_str(), "");
        let withheld = translated.as_ref().err().copied();
        self.log
            .note_offer(now, ends, protocol, received, what, withheld);
        let payload = translated?;
        let repeated = self.repeats.hash((protocol, device, datagram.payload));
        if self.repeats.exceeds_repeats(now, egress, repeated) {
            return Err(WithheldReason::Repeated);
        }
        OutgoingMessage::forwarded(egress, received, &payload, (protocol, "announcement"))
    }

    /// Passes an answer on to the asker, from the address of the device.
    fn handle_answer(
        &mut self,
        now: Instant,
        received: &DiscoveryMessage<'_>,
    ) -> Option<OutgoingMessage> {
        let datagram = &received.datagram;
        let port = AnswerPort {
            link: received.link,
            address: datagram.destination.ip(),
            port: datagram.destination.port(),
        };
        // A datagram to a port of ours that no question has opened belongs to no protocol.
        let protocol = self.askers.get(port)?.asker.protocol;
        let answer = match self.askers.answer(now, port).cloned() {
            Some(question) => self.answer(now, &question, received),
            None => Err(WithheldReason::NotAsked),
        };
        let withhold = |reason| self.log.withhold(protocol, "answer", reason);
        answer.map_err(withhold).ok()
    }

    fn answer(
        &mut self,
        now: Instant,
        question: &OpenQuestion,
        received: &DiscoveryMessage<'_>,
    ) -> Result<OutgoingMessage, WithheldReason> {
        let datagram = &received.datagram;
        let (protocol, device) = (question.asker.protocol, datagram.source.ip());
        let ends = (received.link, question.asker.link);
        let payload = match protocol {
            DiscoveryProtocol::Mdns => {
                let message = MdnsMessage::parse(datagram.payload);
                let message = message.filter(MdnsMessage::is_response);
                let message = message.ok_or(WithheldReason::Malformed)?;
                self.hosts.learn(now, received.link, message.records());
                let gate = self
                    .table
                    .gate(question.rule, ends, device, received.station)?;
                let filtered =
                    message.filter(&gate, None, (&self.hosts, received.link, ends.1), |_| false);
                self.log
                    .note_items(now, ends, received, "answer", &filtered.items);
                let Some(message) = filtered.message else {
                    return Err(WithheldReason::NotAllowed);
                };
                message.to_bytes().ok_or(WithheldReason::Malformed)?
            }
            _ => {
                let content = MessageContent::parse(protocol, datagram.payload)?;
                let gate = self
                    .table
                    .gate(question.rule, ends, device, received.station)?;
                let checked = gate.check_offer(&content.offer());
                let translated = checked.and_then(|()| content.translate(&gate, datagram.payload));
                let what = (content.what.as_str(), "");
                let withheld = translated.as_ref().err().copied();
                self.log
                    .note_offer(now, ends, protocol, received, what, withheld);
                translated?
            }
        };
        // A link-local source on another link would be another host, or none.
        if device.is_ipv6() && is_link_local_source(device) {
            return Err(WithheldReason::UnusableAddress);
        }
        let answer = UdpDatagram {
            source: datagram.source,
            destination: question.asker.address,
            ttl: ANSWER_TTL,
            payload: &payload,
        };
        let kind = (protocol, "answer");
        OutgoingMessage::new(question.asker.link, &answer, question.station, kind)
    }

    /// Handles a message of multicast DNS.
    fn handle_mdns(
        &mut self,
        now: Instant,
        rule: usize,
        received: &DiscoveryMessage<'_>,
        ports: &mut dyn Ports,
        out: &mut Vec<OutgoingMessage>,
    ) {
        let protocol = DiscoveryProtocol::Mdns;
        let Some(message) = MdnsMessage::parse(received.datagram.payload) else {
            return self
                .log
                .withhold(protocol, "question", WithheldReason::Malformed);
        };
        let (is_question, kind) = (!message.is_response(), message.kind());
        // What this host asks, it asks on each of its links.
        if is_question && received.is_of_this_host {
            return;
        }
        // RFC 6762 section 6: responses from other ports are ignored.
        let is_legacy = received.datagram.source.port() != protocol.port();
        if !is_question && is_legacy {
            return self.log.withhold(protocol, kind, WithheldReason::Malformed);
        }
        if !is_question {
            self.hosts.learn(now, received.link, message.records());
        }
        if !is_legacy {
            for key in message.item_keys() {
                let item = self.repeats.hash((protocol, rule, &key));
                self.repeats.note_seen(now, received.link, item);
            }
        }
        if is_question && !is_legacy {
            for answer in self.recent_answers(now, rule, &message, received) {
                self.push(now, answer, (protocol, "answer"), out);
            }
        }
        for egress in self.table.ways(rule, received.link, is_question) {
            let sent = self.cross(now, rule, &message, received, egress, ports);
            self.push(now, sent, (protocol, kind), out);
        }
    }

    /// Returns what was relayed to the link of an asker a moment ago, for its questions that ask for
    /// unicast answers.
    fn recent_answers(
        &self,
        now: Instant,
        rule: usize,
        message: &MdnsMessage,
        received: &DiscoveryMessage<'_>,
    ) -> Vec<Result<OutgoingMessage, WithheldReason>> {
        let destination = received.datagram.source;
        let source = self.table.source_for(received.link, destination.ip());
        let link = self.table.links().get(&received.link);
        // RFC 6762 section 11: only hosts of the link are answered.
        let is_on_link = link.is_some_and(|link| link.contains(destination.ip()));
        let Some(source) = source.filter(|_| is_on_link) else {
            return Vec::new();
        };
        let answers = self.recent.answers(now, rule, received.link, message);
        let outgoing = |answer: &MdnsMessage| {
            let (ends, station) = ((source, destination), received.station);
            OutgoingMessage::mdns(received.link, ends, answer, station, "answer")
        };
        answers.into_iter().map(outgoing).collect()
    }

    /// Returns the part of a message of multicast DNS that crosses to another link.
    fn cross(
        &mut self,
        now: Instant,
        rule: usize,
        message: &MdnsMessage,
        received: &DiscoveryMessage<'_>,
        egress: InterfaceId,
        ports: &mut dyn Ports,
    ) -> Result<OutgoingMessage, WithheldReason> {
        let is_question = !message.is_response();
        let datagram = &received.datagram;
        let ends = match is_question {
            true => (egress, received.link),
            false => (received.link, egress),
        };
        let gate = self
            .table
            .gate(rule, ends, datagram.source.ip(), received.station)?;
        let is_reverse_way = is_question
            && self
                .table
                .ways(rule, received.link, false)
                .contains(&egress);
        let ways = (received.link, egress);
        let asker_gate = self
            .table
            .gate(rule, ways, datagram.source.ip(), received.station);
        let asker_gate = asker_gate.ok().filter(|_| is_reverse_way);
        let asker_gate = asker_gate.as_ref().map(|gate| gate as &dyn RecordGate);
        let is_known = |key: &ItemKey| {
            let item = self.repeats.hash((DiscoveryProtocol::Mdns, rule, key));
            self.repeats.was_sent(received.link, item)
        };
        let hosts = (&self.hosts, received.link, egress);
        let filtered = message.filter(&gate, asker_gate, hosts, is_known);
        self.log
            .note_items(now, ends, received, message.kind(), &filtered.items);
        let withheld = filtered.items.iter().find_map(|item| item.withheld);
        let sent = match filtered.message {
            Some(message) => self.pass_on(now, rule, message, received, egress, ports),
            // An offer of the asker's side, from which no offers cross.
            None if message.is_probe() => Err(withheld.unwrap_or(WithheldReason::NotAllowed)),
            None => Err(withheld.unwrap_or(WithheldReason::Malformed)),
        };
        // A probe asks whether a name is free, and for no service.
        if is_question && !message.is_probe() {
            let withheld = sent.as_ref().err().copied();
            self.log
                .note_questions(now, ways, received, &filtered.items, withheld);
        }
        sent
    }

    /// Returns a message of multicast DNS as it leaves on another link, without what was sent there a
    /// moment ago.
    fn pass_on(
        &mut self,
        now: Instant,
        rule: usize,
        mut message: MdnsMessage,
        received: &DiscoveryMessage<'_>,
        egress: InterfaceId,
        ports: &mut dyn Ports,
    ) -> Result<OutgoingMessage, WithheldReason> {
        let is_question = !message.is_response();
        let datagram = &received.datagram;
        let group = datagram.destination.ip();
        if is_question && datagram.source.port() != DiscoveryProtocol::Mdns.port() {
            let place = (rule, DiscoveryProtocol::Mdns);
            let port = self.open(now, place, received, egress, MDNS_ANSWER_TIME, ports)?;
            let payload = message.to_bytes().ok_or(WithheldReason::Malformed)?;
            return OutgoingMessage::question(port, received, &payload, DiscoveryProtocol::Mdns);
        }
        message.make_multicast();
        let whole = (!is_question).then(|| message.clone());
        let repeats = &mut self.repeats;
        let has_content = message.remove_items(|key| {
            let hash = |key: &ItemKey| repeats.hash((DiscoveryProtocol::Mdns, rule, key));
            let (item, wider) = (hash(key), key.without_known_answers().map(|key| hash(&key)));
            repeats.note_sent(egress, item);
            let mut keys = wider.into_iter().chain([item]);
            let is_repeated = keys.any(|item| repeats.is_repeated(now, egress, item));
            if !is_repeated {
                repeats.note_seen(now, egress, item);
            }
            is_repeated
        });
        if !has_content {
            return Err(WithheldReason::Repeated);
        }
        if let Some(response) = whole {
            self.recent.note(now, rule, egress, &response);
        }
        let source = self.table.source_for(egress, group);
        let source = source.ok_or(WithheldReason::NoAddress)?;
        let ends = (source, datagram.destination);
        OutgoingMessage::mdns(egress, ends, &message, None, message.kind())
    }
}

#[cfg(test)]
mod tests;
