//! Messages of multicast DNS (RFC 6762) with DNS-SD (RFC 6763): what they offer, and the part that
//! may cross.

use std::hash::Hash;
use std::net::IpAddr;

use ahash::AHashSet;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::offer::{Property, ServiceOffer};
use super::reason::WithheldReason;
use super::service_hosts::ServiceHosts;
use super::subject::{Subject, has_label};
use crate::model::InterfaceId;

/// The longest message: RFC 6762 section 17.
const MAX_LEN: usize = 9000;
/// Shortest question and record in bytes, which bound their number by the length of the message.
const MIN_QUESTION: usize = 5;
const MIN_RECORD: usize = 11;

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

    /// Returns the kind of a message that is multicast.
    pub fn kind(&self) -> &'static str {
        match self.is_response() {
            false => "question",
            true => "announcement",
        }
    }

    /// Returns whether this is a probe: it has the records that its sender is about to offer (RFC 6762
    /// section 8.2).
    pub fn is_probe(&self) -> bool {
        !self.is_response() && !self.0.authorities.is_empty()
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
            false => {
                let has_known = !self.0.answers.is_empty();
                let queries = self.0.queries.iter();
                queries.map(|query| query_key(query, has_known)).collect()
            }
            true => self.records().map(record_key).collect(),
        }
    }

    /// Returns the keys of the questions that ask for a unicast answer, without known answers.
    pub fn unicast_questions(&self) -> impl Iterator<Item = ItemKey> {
        let queries = self.0.queries.iter();
        let queries = queries.filter(|query| query.mdns_unicast_response);
        queries.map(|query| query_key(query, false))
    }

    /// Returns the keys of the answers that the asker of a query knows (RFC 6762 section 7.1).
    pub fn known_answers(&self) -> impl Iterator<Item = ItemKey> {
        self.0.answers.iter().map(record_key)
    }

    /// Returns the keys of the questions that the records of a response answer.
    pub fn answered_questions(&self) -> Vec<ItemKey> {
        let keys = |record: &Record| {
            [record.record_type(), RecordType::ANY].map(|kind| question_key(&record.name, kind))
        };
        self.records().flat_map(keys).collect()
    }

    /// Returns whether a response has an answer that is not known.
    pub fn has_answer_beyond(&self, known: &AHashSet<ItemKey>) -> bool {
        let mut answers = self.0.answers.iter();
        answers.any(|record| !known.contains(&record_key(record)))
    }

    /// Returns the records of all sections.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        let sections = [&self.0.answers, &self.0.authorities, &self.0.additionals];
        sections.into_iter().flatten()
    }

    /// Removes the items for which a function returns true. Returns whether anything remains to be
    /// sent.
    pub fn remove_items(&mut self, mut is_removed: impl FnMut(&ItemKey) -> bool) -> bool {
        let is_response = self.is_response();
        let has_known = !self.0.answers.is_empty();
        let message = &mut self.0;
        match is_response {
            false => message
                .queries
                .retain(|query| !is_removed(&query_key(query, has_known))),
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
    /// Whether a question has known answers, so that devices may leave it unanswered.
    has_known_answers: bool,
}

impl ItemKey {
    /// Returns the key of the same question without known answers, if it has some. A question is a
    /// repetition of one that asks for more, and not of one that asks for less (RFC 6762 section
    /// 7.3).
    pub fn without_known_answers(&self) -> Option<Self> {
        self.has_known_answers.then(|| Self {
            has_known_answers: false,
            ..self.clone()
        })
    }
}

fn question_key(name: &Name, kind: RecordType) -> ItemKey {
    ItemKey {
        name: name.to_ascii().to_lowercase(),
        kind: kind.into(),
        data: None,
        has_known_answers: false,
    }
}

fn query_key(query: &Query, has_known_answers: bool) -> ItemKey {
    ItemKey {
        has_known_answers,
        ..question_key(query.name(), query.query_type())
    }
}

fn record_key(record: &Record) -> ItemKey {
    ItemKey {
        data: Some((record.data.to_string(), record.ttl == 0)),
        ..question_key(&record.name, record.record_type())
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
    let subject = Subject::of_name(query.name());
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
    let subject = Subject::of_record(record);
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
    let is_udp = has_label(&record.name, "_udp");
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
mod tests;
