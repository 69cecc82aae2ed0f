//! Messages of multicast DNS (RFC 6762) with DNS-SD (RFC 6763): what they offer, and the part that
//! may cross.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroUsize;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record};
use lru::LruCache;

use super::offer::{Property, ServiceOffer};
use super::reason::WithheldReason;
use crate::model::InterfaceId;

/// The longest message: RFC 6762 section 17.
const MAX_LEN: usize = 9000;
/// Shortest question and record in bytes, which bound their number by the length of the message.
const MIN_QUESTION: usize = 5;
const MIN_RECORD: usize = 11;

/// What a question or record is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    /// A service, and the instance where there is one.
    Service(String, Option<String>),
    /// All service types.
    ServiceTypes,
    /// A host.
    Host(String),
    /// An address, of a host that the question does not know.
    Reverse,
}

/// Returns the labels of a name as text, without the final `local`.
fn labels(name: &Name) -> Vec<String> {
    let labels = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).into_owned());
    let mut labels: Vec<String> = labels.collect();
    if labels.len() > 1
        && labels
            .last()
            .is_some_and(|l| l.eq_ignore_ascii_case("local"))
    {
        labels.pop();
    }
    labels
}

fn subject(name: &Name) -> Subject {
    let labels = labels(name);
    let is_transport =
        |label: &str| label.eq_ignore_ascii_case("_tcp") || label.eq_ignore_ascii_case("_udp");
    let at = labels.iter().rposition(|label| is_transport(label));
    if let Some(at) = at.filter(|at| *at > 0) {
        let (Some(service), Some(transport)) = (labels.get(at - 1), labels.get(at)) else {
            return Subject::ServiceTypes;
        };
        if service.eq_ignore_ascii_case("_dns-sd") {
            return Subject::ServiceTypes;
        }
        let before = labels.get(..at - 1).unwrap_or_default();
        let is_subtype = before
            .last()
            .is_some_and(|l| l.eq_ignore_ascii_case("_sub"));
        let instance = (!before.is_empty() && !is_subtype).then(|| before.join("."));
        return Subject::Service(format!("{service}.{transport}"), instance);
    }
    match labels
        .last()
        .is_some_and(|label| label.eq_ignore_ascii_case("arpa"))
    {
        true => Subject::Reverse,
        false => Subject::Host(labels.join(".")),
    }
}

fn record_subject(record: &Record) -> Subject {
    let own = subject(&record.name);
    let RData::PTR(target) = &record.data else {
        return own;
    };
    match (own, subject(&target.0)) {
        (Subject::Service(service, None), Subject::Service(_, instance)) => {
            Subject::Service(service, instance)
        }
        (Subject::ServiceTypes, Subject::Service(service, _)) => Subject::Service(service, None),
        (Subject::Reverse, Subject::Host(host)) => Subject::Host(host),
        (own, _) => own,
    }
}

/// The largest number of hosts, and of instances, that are known.
const MAX_KNOWN: usize = 4096;
/// The largest number of services of one host.
const MAX_SERVICES: usize = 64;

/// Which host offers which service, from the SRV records of each link.
#[derive(Debug)]
pub struct ServiceHosts {
    services: LruCache<(InterfaceId, String), Vec<(String, String)>>,
    hosts: LruCache<(InterfaceId, String, String), String>,
}

impl Default for ServiceHosts {
    fn default() -> Self {
        let max = NonZeroUsize::new(MAX_KNOWN).unwrap_or(NonZeroUsize::MIN);
        Self {
            services: LruCache::new(max),
            hosts: LruCache::new(max),
        }
    }
}

impl ServiceHosts {
    /// Learns from the SRV records of a response that arrived on a link.
    pub fn learn(&mut self, link: InterfaceId, message: &MdnsMessage) {
        let sections = [
            &message.0.answers,
            &message.0.authorities,
            &message.0.additionals,
        ];
        for record in sections.into_iter().flatten() {
            let RData::SRV(srv) = &record.data else {
                continue;
            };
            let Subject::Service(service, Some(instance)) = subject(&record.name) else {
                continue;
            };
            let Subject::Host(host) = subject(&srv.target) else {
                continue;
            };
            let (service, instance) = (service.to_lowercase(), instance.to_lowercase());
            let host = host.to_lowercase();
            let services = self
                .services
                .get_or_insert_mut((link, host.clone()), Vec::new);
            let entry = (service.clone(), instance.clone());
            if !services.contains(&entry) && services.len() < MAX_SERVICES {
                services.push(entry);
            }
            self.hosts.put((link, service, instance), host);
        }
    }

    /// Returns whether a question is about an instance or host that is known on `link` and not on
    /// `other`.
    fn is_only_on(&self, link: InterfaceId, other: InterfaceId, query: &Query) -> bool {
        let is_on = |link| match subject(query.name()) {
            Subject::Service(service, Some(instance)) => {
                self.host(link, &service, &instance).is_some()
            }
            Subject::Host(host) => !self.services(link, &host).is_empty(),
            _ => false,
        };
        is_on(link) && !is_on(other)
    }

    fn services(&self, link: InterfaceId, host: &str) -> &[(String, String)] {
        let services = self.services.peek(&(link, host.to_lowercase()));
        services.map_or(&[], Vec::as_slice)
    }

    fn host(&self, link: InterfaceId, service: &str, instance: &str) -> Option<&str> {
        let key = (link, service.to_lowercase(), instance.to_lowercase());
        self.hosts.peek(&key).map(String::as_str)
    }
}

/// Decides what may cross, and what it becomes. [`MdnsMessage::filter`] asks it.
pub trait RecordGate {
    /// Returns why an offer may not cross.
    fn check_offer(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason>;
    /// Returns why a question may not cross.
    fn check_question(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason>;
    /// Returns the address that an offered address becomes.
    fn address(&self, address: IpAddr) -> Result<IpAddr, WithheldReason>;
    /// Returns the port that an offered port becomes.
    fn port(&self, port: u16, is_tcp: bool) -> Result<u16, WithheldReason>;
}

/// What a filter did with a question or record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilteredItem {
    /// Service type, or host name.
    pub what: String,
    /// Instance name; empty if there is none.
    pub instance: String,
    /// Why it is withheld; `None` if it crosses.
    pub withheld: Option<WithheldReason>,
}

/// The part of a message that may cross.
#[derive(Debug, Clone)]
pub struct FilteredMessage {
    /// The message; `None` if nothing of it may cross.
    pub message: Option<MdnsMessage>,
    /// What was decided about its questions or records.
    pub items: Vec<FilteredItem>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdnsMessage(Message);

impl MdnsMessage {
    /// Parses a message. Returns `None` if it is malformed, no query or response, or claims more
    /// records than it can hold.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let header: &[u8; 12] = payload.first_chunk()?;
        let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let records = count(6) + count(8) + count(10);
        let least = header.len() + count(4) * MIN_QUESTION + records * MIN_RECORD;
        if payload.len() > MAX_LEN || payload.len() < least {
            return None;
        }
        let message = Message::from_vec(payload).ok()?;
        (message.metadata.op_code == OpCode::Query).then_some(Self(message))
    }

    /// Returns whether this is a response.
    pub fn is_response(&self) -> bool {
        self.0.metadata.message_type == MessageType::Response
    }

    /// Returns the bytes of the message.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        self.0.to_vec().ok()
    }

    /// Prepares a question for a link where it is multicast: answers must be multicast too, and known
    /// answers that follow in other messages do not cross.
    pub fn make_multicast(&mut self) {
        self.0.metadata.truncation = false;
        for query in &mut self.0.queries {
            query.mdns_unicast_response = false;
        }
        if self.is_response() {
            // RFC 6762 section 6: no questions, and identifier zero (section 18.1).
            self.0.queries.clear();
        }
        self.0.metadata.id = 0;
    }

    /// Returns the keys of the items of the message: of the questions of a query, or of the records
    /// of a response.
    pub fn item_keys(&self) -> Vec<ItemKey> {
        match self.is_response() {
            false => self.0.queries.iter().map(question_key).collect(),
            true => self.records().map(record_key).collect(),
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        let sections = [&self.0.answers, &self.0.authorities, &self.0.additionals];
        sections.into_iter().flatten()
    }

    /// Removes the items for which a function returns true. Returns whether anything remains to be
    /// sent.
    pub fn remove_items(&mut self, mut is_removed: impl FnMut(&ItemKey) -> bool) -> bool {
        let is_response = self.is_response();
        let message = &mut self.0;
        match is_response {
            false => message
                .queries
                .retain(|query| !is_removed(&question_key(query))),
            true => {
                let sections = [
                    &mut message.answers,
                    &mut message.authorities,
                    &mut message.additionals,
                ];
                for section in sections {
                    section.retain(|record| !is_removed(&record_key(record)));
                }
            }
        }
        self.has_content()
    }

    fn has_content(&self) -> bool {
        match self.is_response() {
            false => !self.0.queries.is_empty(),
            true => !self.0.answers.is_empty() || !self.0.additionals.is_empty(),
        }
    }

    /// Returns the part that may cross. `hosts` are the known hosts, the link on which the message
    /// arrived, and the one to which it would cross.
    ///
    /// The records of a query are known answers and proposed records (RFC 6762 sections 7.1 and 8.2).
    /// They cross if `is_known` says that they came from the other side, or as offers of the asker's
    /// side, about which `asker_gate` decides.
    pub fn filter(
        &self,
        gate: &dyn RecordGate,
        asker_gate: Option<&dyn RecordGate>,
        (hosts, link, other): (&ServiceHosts, InterfaceId, InterfaceId),
        is_known: impl Fn(&ItemKey) -> bool,
    ) -> FilteredMessage {
        let (known, hosts) = (hosts, (hosts, link));
        let mut filtered = self.clone();
        let mut items = Vec::new();
        if !self.is_response() {
            filtered.0.queries.retain(|query| {
                let mut withheld = check_question(gate, query);
                if withheld.withheld.is_none() && known.is_only_on(link, other, query) {
                    withheld.withheld = Some(WithheldReason::OnOwnLink);
                }
                items.push(withheld.clone());
                withheld.withheld.is_none()
            });
            let crosses = |record: &mut Record| {
                is_known(&record_key(record))
                    || asker_gate.is_some_and(|gate| filter_record(gate, hosts, record).1.is_ok())
            };
            filtered.0.answers.retain_mut(crosses);
            filtered.0.authorities.retain_mut(crosses);
            filtered.0.additionals.retain_mut(crosses);
            // A probe says what its sender is about to offer.
            let proposed = |records: &[Record], query: &Query| {
                records.iter().any(|record| record.name == query.name)
            };
            let (before, after) = (&self.0.authorities, &filtered.0.authorities);
            let queries = &mut filtered.0.queries;
            queries.retain(|query| !proposed(before, query) || proposed(after, query));
        } else {
            let sections = [
                &mut filtered.0.answers,
                &mut filtered.0.authorities,
                &mut filtered.0.additionals,
            ];
            for section in sections {
                section.retain_mut(|record| {
                    let (subject, result) = filter_record(gate, hosts, record);
                    items.push(item(subject, result.err()));
                    result.is_ok()
                });
            }
        }
        let has_content = filtered.has_content();
        FilteredMessage {
            message: has_content.then_some(filtered),
            items,
        }
    }
}

/// Identifies a question, or a record with its data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ItemKey {
    name: String,
    kind: u16,
    /// The data of a record, and whether it is a goodbye (RFC 6762 section 10.1).
    data: Option<(String, bool)>,
}

fn question_key(query: &Query) -> ItemKey {
    ItemKey {
        name: query.name().to_ascii().to_lowercase(),
        kind: query.query_type().into(),
        data: None,
    }
}

fn record_key(record: &Record) -> ItemKey {
    ItemKey {
        name: record.name.to_ascii().to_lowercase(),
        kind: record.record_type().into(),
        data: Some((record.data.to_string(), record.ttl == 0)),
    }
}

fn item(subject: Subject, withheld: Option<WithheldReason>) -> FilteredItem {
    let (what, instance) = match subject {
        Subject::Service(service, instance) => (service, instance.unwrap_or_default()),
        Subject::ServiceTypes => ("_services._dns-sd._udp".into(), String::new()),
        Subject::Host(host) => (host, String::new()),
        Subject::Reverse => ("arpa".into(), String::new()),
    };
    FilteredItem {
        what,
        instance,
        withheld,
    }
}

fn check_question(gate: &dyn RecordGate, query: &Query) -> FilteredItem {
    let subject = subject(query.name());
    let offer = match &subject {
        Subject::Service(service, instance) => ServiceOffer {
            service: Property::Is(service),
            instance: instance.as_deref().map_or(Property::Unknown, Property::Is),
            name: Property::Unknown,
            ..ServiceOffer::default()
        },
        Subject::ServiceTypes | Subject::Reverse => ServiceOffer {
            service: Property::Unknown,
            instance: Property::Unknown,
            name: Property::Unknown,
            ..ServiceOffer::default()
        },
        Subject::Host(host) => ServiceOffer {
            service: Property::Unknown,
            instance: Property::Unknown,
            name: Property::Is(host),
            ..ServiceOffer::default()
        },
    };
    let result = gate.check_question(&offer);
    item(subject, result.err())
}

/// Decides about a record, and translates its address or port.
fn filter_record(
    gate: &dyn RecordGate,
    (hosts, link): (&ServiceHosts, InterfaceId),
    record: &mut Record,
) -> (Subject, Result<(), WithheldReason>) {
    let subject = record_subject(record);
    let result = check_record(gate, hosts, link, &subject).and_then(|()| translate(gate, record));
    (subject, result)
}

fn check_record(
    gate: &dyn RecordGate,
    hosts: &ServiceHosts,
    link: InterfaceId,
    subject: &Subject,
) -> Result<(), WithheldReason> {
    match subject {
        Subject::Service(service, instance) => {
            let host = instance.as_deref();
            let host = host.and_then(|instance| hosts.host(link, service, instance));
            // The list of service types says nothing about an instance.
            let absent = Property::Unknown;
            gate.check_offer(&ServiceOffer {
                service: Property::Is(service),
                instance: instance.as_deref().map_or(absent, Property::Is),
                name: host.map_or(Property::Unknown, Property::Is),
                ..ServiceOffer::default()
            })
        }
        Subject::Host(host) => {
            let of_host = ServiceOffer {
                name: Property::Is(host),
                ..ServiceOffer::default()
            };
            let services = hosts.services(link, host);
            if services.is_empty() {
                return gate.check_offer(&of_host);
            }
            // The addresses of a host are needed for each service that may cross.
            let mut result = Err(WithheldReason::NotAllowed);
            for (service, instance) in services {
                result = gate.check_offer(&ServiceOffer {
                    service: Property::Is(service),
                    instance: Property::Is(instance),
                    ..of_host
                });
                if result.is_ok() {
                    break;
                }
            }
            result
        }
        Subject::ServiceTypes | Subject::Reverse => gate.check_offer(&ServiceOffer::default()),
    }
}

fn translate(gate: &dyn RecordGate, record: &mut Record) -> Result<(), WithheldReason> {
    let is_udp = labels(&record.name)
        .iter()
        .any(|label| label.eq_ignore_ascii_case("_udp"));
    match &mut record.data {
        RData::A(address) => {
            if let IpAddr::V4(new) = gate.address(address.0.into())? {
                *address = A(new);
            }
        }
        RData::AAAA(address) => {
            if let IpAddr::V6(new) = gate.address(address.0.into())? {
                *address = AAAA(new);
            }
        }
        RData::SRV(srv) => srv.port = gate.port(srv.port, !is_udp)?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::str::FromStr;

    use hickory_proto::rr::rdata::{PTR, SRV, TXT};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_str(text).unwrap()
    }

    fn id() -> InterfaceId {
        InterfaceId::new(1).unwrap()
    }

    fn other() -> InterfaceId {
        InterfaceId::new(2).unwrap()
    }

    /// Lets some service types pass, and moves addresses and ports.
    struct Only(&'static [&'static str]);

    impl RecordGate for Only {
        fn check_offer(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
            match offer.service {
                Property::Is(service) if self.0.contains(&service) => Ok(()),
                _ => Err(WithheldReason::NotAllowed),
            }
        }
        fn check_question(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
            match offer.service {
                Property::Unknown => Ok(()),
                _ => self.check_offer(offer),
            }
        }
        fn address(&self, _: IpAddr) -> Result<IpAddr, WithheldReason> {
            Ok([192, 0, 2, 1].into())
        }
        fn port(&self, port: u16, is_tcp: bool) -> Result<u16, WithheldReason> {
            assert!(is_tcp);
            Ok(port + 8000)
        }
    }

    fn response() -> Message {
        let mut message = Message::response(0, OpCode::Query);
        let record = |name_text: &str, data| Record::from_rdata(name(name_text), 120, data);
        for (service, host, port) in [
            ("_http._tcp", "web.local.", 80),
            ("_ssh._tcp", "sec.local.", 22),
        ] {
            let instance = format!("Box.{service}.local.");
            message.answers.push(record(
                &format!("{service}.local."),
                RData::PTR(PTR(name(&instance))),
            ));
            message.additionals.push(record(
                &instance,
                RData::SRV(SRV::new(0, 0, port, name(host))),
            ));
            message
                .additionals
                .push(record(&instance, RData::TXT(TXT::new(vec!["a=b".into()]))));
            message
                .additionals
                .push(record(host, RData::A(A(Ipv4Addr::new(10, 0, 0, 9)))));
        }
        message
    }

    /// A packet with allowed and denied records leaves with the allowed ones, and no name or address
    /// of the others is in it.
    #[test]
    fn answer_leaves_with_its_allowed_records() {
        let bytes = response().to_vec().unwrap();
        let message = MdnsMessage::parse(&bytes).unwrap();
        let mut hosts = ServiceHosts::default();
        hosts.learn(id(), &message);
        let filtered = message.filter(
            &Only(&["_http._tcp"]),
            None,
            (&hosts, id(), other()),
            |_| false,
        );
        let out = filtered.message.unwrap().to_bytes().unwrap();
        let out = Message::from_vec(&out).unwrap();
        assert_eq!((out.answers.len(), out.additionals.len()), (1, 3));
        assert!(
            !format!("{out}").contains("ssh") && !format!("{out}").contains("sec"),
            "{out}"
        );
        let addresses = out.additionals.iter().filter_map(|r| match &r.data {
            RData::A(a) => Some(a.0),
            _ => None,
        });
        assert_eq!(addresses.collect::<Vec<_>>(), [Ipv4Addr::new(192, 0, 2, 1)]);
        let port = out.additionals.iter().find_map(|r| match &r.data {
            RData::SRV(srv) => Some(srv.port),
            _ => None,
        });
        assert_eq!(port, Some(8080));
        let withheld = filtered
            .items
            .iter()
            .filter(|i| i.withheld.is_some())
            .count();
        assert_eq!(withheld, 4);
        let none = message.filter(&Only(&[]), None, (&hosts, id(), other()), |_| false);
        assert!(none.message.is_none());
    }

    #[test]
    fn query_leaves_with_its_allowed_questions_and_known_answers() {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        for service in [
            "_http._tcp.local.",
            "_ssh._tcp.local.",
            "_services._dns-sd._udp.local.",
        ] {
            let mut question = Query::query(name(service), hickory_proto::rr::RecordType::PTR);
            question.set_mdns_unicast_response(true);
            query.add_query(question);
        }
        query.answers = response().answers;
        let message = MdnsMessage::parse(&query.to_vec().unwrap()).unwrap();
        let hosts = ServiceHosts::default();
        let gate = Only(&["_http._tcp"]);
        let filtered = message.filter(&gate, Some(&gate), (&hosts, id(), other()), |_| false);
        let mut message = filtered.message.unwrap();
        message.make_multicast();
        let out = Message::from_vec(&message.to_bytes().unwrap()).unwrap();
        assert_eq!(
            (out.queries.len(), out.answers.len(), out.metadata.id),
            (2, 1, 0)
        );
        assert!(out.queries.iter().all(|q| !q.mdns_unicast_response()));
    }

    /// A probe (RFC 6762 section 8.1) has the names of what its sender is about to offer.
    #[test]
    fn probe_crosses_only_as_an_offer() {
        let mut probe = Message::new(0, MessageType::Query, OpCode::Query);
        let any = hickory_proto::rr::RecordType::ANY;
        probe.add_query(Query::query(name("Box._http._tcp.local."), any));
        let srv = RData::SRV(SRV::new(0, 0, 80, name("web.local.")));
        let record = Record::from_rdata(name("Box._http._tcp.local."), 120, srv);
        probe.authorities.push(record);
        let message = MdnsMessage::parse(&probe.to_vec().unwrap()).unwrap();
        let (hosts, gate) = (ServiceHosts::default(), Only(&["_http._tcp"]));
        let inwards = message.filter(&gate, None, (&hosts, id(), other()), |_| false);
        assert!(inwards.message.is_none());
        let both = message.filter(&gate, Some(&gate), (&hosts, id(), other()), |_| false);
        assert_eq!(both.message.unwrap().0.queries.len(), 1);
    }

    /// What the asker's own link has is not asked elsewhere, unless the other link has it too.
    #[test]
    fn question_about_the_own_link_does_not_cross() {
        let mut query = Message::new(0, MessageType::Query, OpCode::Query);
        for text in ["Box._http._tcp.local.", "web.local."] {
            query.add_query(Query::query(name(text), hickory_proto::rr::RecordType::ANY));
        }
        let query = MdnsMessage::parse(&query.to_vec().unwrap()).unwrap();
        let mut hosts = ServiceHosts::default();
        let count = |hosts: &ServiceHosts| {
            let filtered =
                query.filter(&Only(&["_http._tcp"]), None, (hosts, id(), other()), |_| {
                    false
                });
            filtered.message.map_or(0, |m| m.0.queries.len())
        };
        assert_eq!(count(&hosts), 2);
        hosts.learn(id(), &MdnsMessage(response()));
        assert_eq!(count(&hosts), 0);
        hosts.learn(other(), &MdnsMessage(response()));
        assert_eq!(count(&hosts), 2);
    }

    #[test]
    fn goodbye_is_another_item_than_its_record() {
        let message = MdnsMessage(response());
        let mut goodbye = response();
        goodbye.answers.iter_mut().for_each(|r| r.ttl = 0);
        assert_ne!(message.item_keys()[0], MdnsMessage(goodbye).item_keys()[0]);
    }

    #[test]
    fn hostile_counts_and_loops_are_refused() {
        let mut header = [0u8; 12];
        header[6..8].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(MdnsMessage::parse(&header), None);
        // A question whose name points to itself.
        let mut own = [0u8; 18];
        own[5] = 1;
        own[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(MdnsMessage::parse(&own), None);
        assert_eq!(MdnsMessage::parse(&[0; 9001]), None);
    }

    proptest! {
        /// What is changed at random is refused, or can be filtered and written.
        #[test]
        fn changed_messages_are_filtered_without_panic(
            at in 0usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..6), cut in 0usize..400,
        ) {
            let mut packet = response().to_vec().unwrap();
            let len = packet.len();
            let at = at % len;
            packet.splice(at..(at + bytes.len()).min(len), bytes);
            packet.truncate(len - cut % 40);
            if let Some(message) = MdnsMessage::parse(&packet) {
                let mut hosts = ServiceHosts::default();
                hosts.learn(id(), &message);
                struct All;
                impl RecordGate for All {
                    fn check_offer(&self, _: &ServiceOffer<'_>) -> Result<(), WithheldReason> { Ok(()) }
                    fn check_question(&self, _: &ServiceOffer<'_>) -> Result<(), WithheldReason> { Ok(()) }
                    fn address(&self, a: IpAddr) -> Result<IpAddr, WithheldReason> { Ok(a) }
                    fn port(&self, port: u16, _: bool) -> Result<u16, WithheldReason> { Ok(port) }
                }
                let filtered = message.filter(&All, Some(&All), (&hosts, id(), other()), |_| false);
                if let Some(bytes) = filtered.message.and_then(|m| m.to_bytes()) {
                    prop_assert!(MdnsMessage::parse(&bytes).is_some());
                }
            }
        }
    }
}
