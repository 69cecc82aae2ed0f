//! Messages of WS-Discovery (1.0 of 2005, which ONVIF and Windows use, and 1.1): SOAP in XML.

use quick_xml::Reader;
use quick_xml::events::Event;

/// The longest message that is parsed. ONVIF devices list many scopes.
const MAX_LEN: usize = 32_768;
/// The largest number of XML events of a message.
const MAX_EVENTS: usize = 4096;
/// The largest number of types of a message.
const MAX_TYPES: usize = 64;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WsKind {
    /// `Probe` or `Resolve`: a question.
    Question,
    /// `ProbeMatches` or `ResolveMatches`: an answer.
    Answer,
    /// `Hello` or `Bye`.
    Announcement,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WsMessage {
    /// What it is.
    pub kind: WsKind,
    /// The types that it asks for or offers, without their namespace prefixes.
    pub types: Vec<String>,
}

/// Parses a message. Returns `None` if it is malformed, or has a document type, whose entities could
/// grow without limit.
pub fn parse(payload: &[u8]) -> Option<WsMessage> {
    if payload.len() > MAX_LEN {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut kind = None;
    let mut types = Vec::new();
    let mut in_body = false;
    let mut in_types = false;
    for _ in 0..MAX_EVENTS {
        match reader.read_event().ok()? {
            Event::Start(element) | Event::Empty(element) => {
                let name = element.local_name();
                in_types = in_body && name.as_ref() == b"Types";
                let found = match name.as_ref() {
                    b"Body" => {
                        in_body = true;
                        None
                    }
                    _ if !in_body => None,
                    b"Probe" | b"Resolve" => Some(WsKind::Question),
                    b"ProbeMatches" | b"ResolveMatches" => Some(WsKind::Answer),
                    b"Hello" | b"Bye" => Some(WsKind::Announcement),
                    _ => None,
                };
                kind = kind.or(found);
            }
            Event::End(element) => {
                in_types = false;
                if element.local_name().as_ref() == b"Body" {
                    break;
                }
            }
            Event::Text(text) if in_types => {
                let text = std::str::from_utf8(&text).ok()?;
                for name in text.split_ascii_whitespace() {
                    let local = name.rsplit(':').next().unwrap_or(name);
                    if types.len() < MAX_TYPES {
                        types.push(local.to_string());
                    }
                }
            }
            Event::DocType(_) => return None,
            Event::Eof => break,
            _ => {}
        }
    }
    let kind = kind?;
    Some(WsMessage { kind, types })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As sent by an ONVIF client.
    const PROBE: &str = r#"<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope" xmlns:w="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl"><e:Header><w:MessageID>uuid:84ede3de-7dec-11d0-c360-f01234567890</w:MessageID><w:To e:mustUnderstand="true">urn:schemas-xmlsoap-org:ws:2005:04:discovery</w:To><w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</w:Action></e:Header><e:Body><d:Probe><d:Types>dn:NetworkVideoTransmitter</d:Types></d:Probe></e:Body></e:Envelope>"#;

    #[test]
    fn probes_and_matches_are_told_apart() {
        let probe = parse(PROBE.as_bytes()).unwrap();
        assert_eq!(probe.kind, WsKind::Question);
        assert_eq!(probe.types, ["NetworkVideoTransmitter"]);
        let matches = PROBE
            .replace("<d:Probe>", "<d:ProbeMatches><d:ProbeMatch>")
            .replace("</d:Probe>", "</d:ProbeMatch></d:ProbeMatches>")
            .replace("dn:Net", "tds:Device dn:Net");
        let answer = parse(matches.as_bytes()).unwrap();
        assert_eq!(answer.kind, WsKind::Answer);
        assert_eq!(answer.types, ["Device", "NetworkVideoTransmitter"]);
        let hello = PROBE.replace("d:Probe>", "d:Hello>");
        assert_eq!(parse(hello.as_bytes()).unwrap().kind, WsKind::Announcement);
        let any = PROBE.replace(
            "<d:Types>dn:NetworkVideoTransmitter</d:Types>",
            "<d:Types/>",
        );
        assert_eq!(parse(any.as_bytes()).unwrap().types, Vec::<String>::new());
    }

    #[test]
    fn document_types_and_other_texts_are_refused() {
        let bomb = format!("<!DOCTYPE x [<!ENTITY a \"aaaa\">]>{PROBE}");
        for bad in ["", "<a/>", "<a><b></a>", "plain", bomb.as_str()] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(&[b' '; MAX_LEN + 1]), None);
    }

    proptest! {
        #[test]
        fn changed_messages_are_parsed_without_panic(
            at in 0..PROBE.len(), bytes in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut message = PROBE.as_bytes().to_vec();
            message.splice(at..(at + bytes.len()).min(message.len()), bytes);
            parse(&message);
            parse(&message[..at]);
        }
    }
}
