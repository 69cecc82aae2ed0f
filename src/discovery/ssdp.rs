//! Messages of SSDP (UPnP Device Architecture 2.0 section 1): a start line and headers of HTTP.

/// The longest message that is parsed.
const MAX_LEN: usize = 8192;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SsdpMessage<'m> {
    /// `M-SEARCH`: a question for the target `ST`.
    Search {
        /// The search target.
        target: &'m str,
    },
    /// `NOTIFY`: an announcement of `NT`.
    Notify {
        /// The notification type.
        target: &'m str,
        /// The URL of the description; absent in `ssdp:byebye`.
        location: Option<&'m str>,
    },
    /// An answer, which offers `ST`.
    Answer {
        /// The search target.
        target: &'m str,
        /// The URL of the description.
        location: Option<&'m str>,
    },
}

/// Parses a message. Returns `None` if it is malformed.
pub fn parse(payload: &[u8]) -> Option<SsdpMessage<'_>> {
    if payload.len() > MAX_LEN {
        return None;
    }
    // Servers put names in other encodings into headers that are not read here.
    let lines = payload.split(|byte| *byte == b'\n');
    let mut lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let start = std::str::from_utf8(lines.next()?).ok()?;
    let (mut st, mut nt, mut location) = (None, None, None);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let Some(value) = value
            .get(1..)
            .and_then(|value| std::str::from_utf8(value).ok())
        else {
            continue;
        };
        let slot = match name.trim_ascii() {
            name if name.eq_ignore_ascii_case(b"st") => &mut st,
            name if name.eq_ignore_ascii_case(b"nt") => &mut nt,
            name if name.eq_ignore_ascii_case(b"location") => &mut location,
            _ => continue,
        };
        *slot = Some(value.trim());
    }
    let mut words = start.split_ascii_whitespace();
    match words.next()? {
        "M-SEARCH" => Some(SsdpMessage::Search { target: st? }),
        "NOTIFY" => Some(SsdpMessage::Notify {
            target: nt?,
            location,
        }),
        version if version.starts_with("HTTP/1.") && words.next() == Some("200") => {
            Some(SsdpMessage::Answer {
                target: st?,
                location,
            })
        }
        _ => None,
    }
}

/// Returns whether devices of every kind answer a question for this target.
pub fn is_general(target: &str) -> bool {
    target == "ssdp:all" || target == "upnp:rootdevice" || target.starts_with("uuid:")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_of_devices_are_parsed() {
        // As sent by gssdp-discover 1.6 and minidlna 1.3.
        let search = b"M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMan: \"ssdp:discover\"\r\nST: ssdp:all\r\nMX: 3\r\n\r\n";
        assert_eq!(
            parse(search),
            Some(SsdpMessage::Search { target: "ssdp:all" })
        );
        let answer = b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1810\r\nST: urn:schemas-upnp-org:device:MediaServer:1\r\nLOCATION: http://10.0.0.2:8200/rootDesc.xml\r\n\r\n";
        assert_eq!(
            parse(answer),
            Some(SsdpMessage::Answer {
                target: "urn:schemas-upnp-org:device:MediaServer:1",
                location: Some("http://10.0.0.2:8200/rootDesc.xml"),
            })
        );
        let notify = b"NOTIFY * HTTP/1.1\nnt:upnp:rootdevice\nNTS:ssdp:byebye\n\n";
        assert_eq!(
            parse(notify),
            Some(SsdpMessage::Notify {
                target: "upnp:rootdevice",
                location: None
            })
        );
        for bad in [
            &b""[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"M-SEARCH * HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 404 X\r\nST: a\r\n",
        ] {
            assert_eq!(parse(bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut message = b"M-SEARCH * HTTP/1.1\r\nST:".to_vec();
            message.extend(&bytes);
            parse(&message);
            parse(&bytes);
        }
    }
}
