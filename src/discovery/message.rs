//! What a message of a protocol is: a question, an answer, or an announcement, and of what.

use std::net::{IpAddr, SocketAddr};

use super::gate::OfferGate;
use super::knx;
use super::mdns::RecordGate;
use super::offer::{Property, ServiceOffer};
use super::protocol::{DiscoveryProtocol, Transport};
use super::reason::WithheldReason;
use super::ssdp::{self, SsdpMessage};
use super::ws_discovery::{self, WsKind};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// It asks for answers.
    Question,
    /// It answers a question.
    Answer,
    /// It offers something to everybody.
    Announcement,
    /// Its format is not known: it may be either.
    Either,
}

/// What a message of a protocol other than multicast DNS says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageContent {
    /// What it is.
    pub kind: MessageKind,
    /// What it asks for or offers: search target, types, or name; empty if it does not say.
    pub what: String,
    /// Types of WS-Discovery.
    types: Vec<String>,
    /// The URL of the description (SSDP).
    location: Option<String>,
    protocol: DiscoveryProtocol,
}

impl MessageContent {
    /// Parses a message.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(protocol: DiscoveryProtocol, payload: &[u8]) -> Result<Self, WithheldReason> {
        let content = |kind, what: &str| Self {
            kind,
            what: what.into(),
            types: Vec::new(),
            location: None,
            protocol,
        };
        let malformed = WithheldReason::Malformed;
        Ok(match protocol {
            DiscoveryProtocol::Ssdp => match ssdp::parse(payload).ok_or(malformed)? {
                SsdpMessage::Search { target } => content(MessageKind::Question, target),
                SsdpMessage::Notify { target, location } => Self {
                    location: location.map(String::from),
                    ..content(MessageKind::Announcement, target)
                },
                SsdpMessage::Answer { target, location } => Self {
                    location: location.map(String::from),
                    ..content(MessageKind::Answer, target)
                },
            },
            DiscoveryProtocol::WsDiscovery => {
                let message = ws_discovery::parse(payload).ok_or(malformed)?;
                let kind = match message.kind {
                    WsKind::Question => MessageKind::Question,
                    WsKind::Answer => MessageKind::Answer,
                    WsKind::Announcement => MessageKind::Announcement,
                };
                Self {
                    types: message.types.clone(),
                    ..content(kind, &message.types.join(" "))
                }
            }
            DiscoveryProtocol::Knx if knx::is_search(payload) => content(MessageKind::Question, ""),
            DiscoveryProtocol::Llmnr | DiscoveryProtocol::Coap | DiscoveryProtocol::Slp => {
                content(MessageKind::Question, "")
            }
            _ if protocol.transport() == Transport::Announcements => {
                content(MessageKind::Announcement, "")
            }
            _ => content(MessageKind::Either, ""),
        })
    }

    /// Returns what it asks for or offers, for the policy.
    pub fn offer(&self) -> ServiceOffer<'_> {
        let is_question = self.kind == MessageKind::Question;
        match self.protocol {
            DiscoveryProtocol::Ssdp if is_question && ssdp::is_general(&self.what) => {
                ServiceOffer {
                    st: Property::Unknown,
                    ..ServiceOffer::default()
                }
            }
            DiscoveryProtocol::Ssdp => ServiceOffer {
                st: Property::Is(&self.what),
                ..ServiceOffer::default()
            },
            // A message that names no type asks for all, or is the end of an offer.
            DiscoveryProtocol::WsDiscovery if self.types.is_empty() => ServiceOffer {
                types: Property::Unknown,
                ..ServiceOffer::default()
            },
            DiscoveryProtocol::WsDiscovery => ServiceOffer {
                types: Property::AnyOf(&self.types),
                ..ServiceOffer::default()
            },
            _ => ServiceOffer::default(),
        }
    }

    /// Returns an offer as hosts on the other link can use it.
    ///
    /// # Errors
    /// They cannot use it.
    pub fn translate(
        &self,
        gate: &OfferGate<'_>,
        payload: &[u8],
    ) -> Result<Vec<u8>, WithheldReason> {
        let Some(location) = &self.location else {
            return Ok(payload.to_vec());
        };
        // A description at a name, or one that is no URL, is left to the asker.
        let Some((host, end)) = host_of_url(location) else {
            return Ok(payload.to_vec());
        };
        let address = gate.address(host.ip())?;
        let port = match gate.translator.is_translated(host.ip()) {
            true => gate.translator.port(host.ip(), host.port(), true)?,
            false => host.port(),
        };
        let new = SocketAddr::new(address, port);
        if new == host {
            return Ok(payload.to_vec());
        }
        let rest = location.get(end..).unwrap_or_default();
        let url = format!("http://{new}{rest}");
        Ok(replace(payload, location.as_bytes(), url.as_bytes()))
    }
}

/// Returns the address and port of a URL of HTTP with an address, and the position of its path.
fn host_of_url(url: &str) -> Option<(SocketAddr, usize)> {
    const SCHEME: &str = "http://";
    let rest = url.strip_prefix(SCHEME)?;
    let len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest.get(..len)?;
    let address = match host.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let ip = host.trim_start_matches('[').trim_end_matches(']');
            // A scope, as in fe80::1%eth0, says nothing on another host.
            let ip = ip.split('%').next().unwrap_or(ip);
            SocketAddr::new(ip.parse::<IpAddr>().ok()?, 80)
        }
    };
    Some((address, SCHEME.len() + len))
}

/// Replaces the first occurrence of `old`.
fn replace(payload: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = payload
        .windows(old.len().max(1))
        .position(|part| part == old);
    let Some((before, after)) = at.and_then(|at| payload.split_at_checked(at)) else {
        return payload.to_vec();
    };
    let after = after.get(old.len()..).unwrap_or_default();
    [before, new, after].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_urls_are_found() {
        for (url, host, path) in [
            ("http://10.0.0.2:8200/a.xml", "10.0.0.2:8200", "/a.xml"),
            ("http://10.0.0.2", "10.0.0.2:80", ""),
            ("http://[fd00::1]:81/x", "[fd00::1]:81", "/x"),
            ("http://[fe80::1%eth0]/x", "[fe80::1]:80", "/x"),
        ] {
            let (address, end) = host_of_url(url).unwrap();
            assert_eq!((address.to_string().as_str(), &url[end..]), (host, path));
        }
        for other in ["http://host/x", "https://10.0.0.2/", "", "http://"] {
            assert_eq!(host_of_url(other), None, "{other}");
        }
    }
}
