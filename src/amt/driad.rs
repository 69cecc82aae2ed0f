//! AMTRELAY records (RFC 8777): their data, and the names and order in which they are used.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::candidate::RelayCandidate;
use super::random::AmtRandom;
use crate::wire::amt::PORT;

/// The type of AMTRELAY records (RFC 8777 section 4.1).
pub const RECORD_TYPE: u16 = 260;

/// Length of the longest name in bytes (RFC 1035 section 2.3.4).
const MAX_NAME_LEN: usize = 255;

/// The relay of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayTarget {
    /// Type 0: no relay serves the source.
    None,
    /// Types 1 and 2: an address.
    Address(IpAddr),
    /// Type 3: a host name.
    Name(String),
}

/// The data of an AMTRELAY record (section 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmtRelayRecord {
    /// Records with a lower precedence come first.
    pub precedence: u8,
    /// Whether a Relay Discovery must precede the Request: the D bit is 0.
    pub needs_discovery: bool,
    /// The relay.
    pub relay: RelayTarget,
}

/// Why the data of a record is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The length does not fit the type of relay.
    #[error("the AMTRELAY record is too short or too long")]
    Length,
    /// A type of relay that RFC 8777 does not define.
    #[error("the AMTRELAY record has relay type {0}")]
    RelayType(u8),
    /// The name is compressed, too long, or no host name.
    #[error("the name in the AMTRELAY record is invalid")]
    Name,
}

impl AmtRelayRecord {
    /// Parses the data of a record.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn parse(data: &[u8]) -> Result<Self, RecordError> {
        let [precedence, kind, relay @ ..] = data else {
            return Err(RecordError::Length);
        };
        let target = match kind & 0x7f {
            // Name servers write the root name for "no relay", or nothing.
            0 if matches!(relay, [] | [0]) => RelayTarget::None,
            1 => {
                let addr: [u8; 4] = relay.try_into().map_err(|_| RecordError::Length)?;
                RelayTarget::Address(Ipv4Addr::from(addr).into())
            }
            2 => {
                let addr: [u8; 16] = relay.try_into().map_err(|_| RecordError::Length)?;
                RelayTarget::Address(Ipv6Addr::from(addr).into())
            }
            3 => RelayTarget::Name(host_name(relay)?),
            0 => return Err(RecordError::Length),
            other => return Err(RecordError::RelayType(other)),
        };
        Ok(Self {
            precedence: *precedence,
            needs_discovery: kind & 0x80 == 0,
            relay: target,
        })
    }
}

/// Reads an uncompressed name. Only letters, digits, hyphens and underscores are accepted, so that
/// the result is safe in logs and in a lookup.
fn host_name(mut bytes: &[u8]) -> Result<String, RecordError> {
    if bytes.len() > MAX_NAME_LEN {
        return Err(RecordError::Name);
    }
    let mut name = String::new();
    loop {
        let (len, rest) = bytes.split_first().ok_or(RecordError::Length)?;
        if *len == 0 {
            let is_end = rest.is_empty() && !name.is_empty();
            return is_end.then_some(name).ok_or(RecordError::Length);
        }
        if *len > 63 {
            return Err(RecordError::Name);
        }
        let (label, rest) = rest
            .split_at_checked(usize::from(*len))
            .ok_or(RecordError::Length)?;
        for byte in label {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return Err(RecordError::Name);
            }
            name.push(char::from(*byte));
        }
        name.push('.');
        bytes = rest;
    }
}

/// Returns the name at which the records of a source are (RFC 1035 section 3.5, RFC 3596 section
/// 2.5).
pub fn reverse_name(source: IpAddr) -> String {
    let mut name = String::new();
    // Writing to a String cannot fail.
    match source {
        IpAddr::V4(addr) => {
            for octet in addr.octets().iter().rev() {
                let _ = write!(name, "{octet}.");
            }
            name + "in-addr.arpa."
        }
        IpAddr::V6(addr) => {
            for octet in addr.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", octet & 0x0f, octet >> 4);
            }
            name + "ip6.arpa."
        }
    }
}

/// An address of a relay, and the order in which it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// Lower values come first: the precedence of a record, or the priority of a service.
    pub precedence: u16,
    /// Whether a Relay Discovery must precede the Request.
    pub needs_discovery: bool,
    /// The address.
    pub address: SocketAddr,
}

impl RelayAddress {
    /// Returns the address of a record that has `address` as its relay, or whose name has it.
    pub fn of_record(record: &AmtRelayRecord, address: IpAddr) -> Self {
        Self {
            precedence: record.precedence.into(),
            needs_discovery: record.needs_discovery,
            address: SocketAddr::new(address, PORT),
        }
    }
}

/// Most candidates of one lookup. The owner of the zone of a source must not be able to make a
/// gateway send to any number of addresses.
const MAX_CANDIDATES: usize = 32;

/// Returns candidates in order: by precedence; within one, IP versions alternate, IPv6 first (RFC
/// 6724 section 6 rule 6, RFC 8305 section 4), and addresses of one version are in random order.
/// Also returns how many addresses are left out, because there are too many.
pub fn candidates(
    mut addresses: Vec<RelayAddress>,
    random: &mut AmtRandom,
) -> (Vec<RelayCandidate>, usize) {
    addresses.retain(|a| is_usable(a.address.ip()));
    addresses.sort_by_cached_key(|a| (a.precedence, random.nonce()));
    let mut ordered: Vec<RelayCandidate> = Vec::new();
    for of_precedence in addresses.chunk_by(|a, b| a.precedence == b.precedence) {
        let of_version = |v6: bool| {
            let addresses = of_precedence.iter();
            addresses.filter(move |a| a.address.is_ipv6() == v6)
        };
        let (mut v6, mut v4) = (of_version(true), of_version(false));
        let alternating = std::iter::from_fn(|| match (v6.next(), v4.next()) {
            (None, None) => None,
            (a, b) => Some(a.into_iter().chain(b)),
        });
        for address in alternating.flatten() {
            let is_known = |c: &RelayCandidate| c.address == address.address;
            if !ordered.iter().any(is_known) {
                ordered.push(RelayCandidate {
                    address: address.address,
                    needs_discovery: address.needs_discovery,
                    rank: address.precedence,
                });
            }
        }
    }
    let left_out = ordered.len().saturating_sub(MAX_CANDIDATES);
    ordered.truncate(MAX_CANDIDATES);
    (ordered, left_out)
}

/// Returns whether a relay can have an address.
fn is_usable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(addr) if addr.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(precedence: u8, needs_discovery: bool, relay: RelayTarget) -> AmtRelayRecord {
        AmtRelayRecord {
            precedence,
            needs_discovery,
            relay,
        }
    }

    #[test]
    fn records_of_every_type_are_parsed() {
        let v4 = RelayTarget::Address("203.0.113.15".parse().unwrap());
        let v6 = RelayTarget::Address("2001:db8::15".parse().unwrap());
        let name = RelayTarget::Name("amt.example.com.".into());
        let mut v6_data = vec![20, 2];
        v6_data.extend("2001:db8::15".parse::<Ipv6Addr>().unwrap().octets());
        for (data, expected) in [
            (&[10, 0, 0][..], record(10, true, RelayTarget::None)),
            (&[10, 0x80], record(10, false, RelayTarget::None)),
            (&[10, 1, 203, 0, 113, 15], record(10, true, v4.clone())),
            (&[0, 0x81, 203, 0, 113, 15], record(0, false, v4)),
            (&v6_data, record(20, true, v6)),
            (
                b"\x80\x83\x03amt\x07example\x03com\x00",
                record(128, false, name),
            ),
        ] {
            assert_eq!(AmtRelayRecord::parse(data), Ok(expected), "{data:?}");
        }
    }

    #[test]
    fn invalid_records_are_rejected() {
        for (data, error) in [
            (&[][..], RecordError::Length),
            (&[10], RecordError::Length),
            (&[10, 0, 1], RecordError::Length),
            (&[10, 1, 1, 2, 3], RecordError::Length),
            (&[10, 1, 1, 2, 3, 4, 5], RecordError::Length),
            (&[10, 2, 1, 2, 3, 4], RecordError::Length),
            (&[10, 4, 1, 2, 3, 4], RecordError::RelayType(4)),
            (&[10, 3], RecordError::Length),
            (&[10, 3, 0], RecordError::Length),
            (&[10, 3, 3, b'a', b'm', b't'], RecordError::Length),
            (&[10, 3, 1, b'a', 0, 1], RecordError::Length),
            (&[10, 3, 0xc0, 12], RecordError::Name),
            (&[10, 3, 1, b' ', 0], RecordError::Name),
        ] {
            assert_eq!(AmtRelayRecord::parse(data), Err(error), "{data:?}");
        }
    }

    #[test]
    fn reverse_names_are_those_of_the_rfcs() {
        // The examples of RFC 8777 section 4.3.2.
        assert_eq!(
            reverse_name("198.51.100.12".parse().unwrap()),
            "12.100.51.198.in-addr.arpa."
        );
        assert_eq!(
            reverse_name("2001:db8::a".parse().unwrap()),
            "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
        );
    }

    #[test]
    fn candidates_are_ordered_by_precedence_and_alternate_versions() {
        let mut random = AmtRandom::new([4; 32]);
        let address = |precedence, text: &str| RelayAddress {
            precedence,
            needs_discovery: true,
            address: SocketAddr::new(text.parse().unwrap(), PORT),
        };
        let addresses = vec![
            address(20, "192.0.2.9"),
            address(10, "192.0.2.1"),
            address(10, "192.0.2.2"),
            address(10, "192.0.2.3"),
            address(10, "2001:db8::1"),
            address(10, "2001:db8::2"),
            address(30, "192.0.2.1"),
            address(5, "224.0.0.1"),
        ];
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let (ordered, _) = candidates(addresses.clone(), &mut random);
            let versions: Vec<bool> = ordered.iter().map(|c| c.address.is_ipv6()).collect();
            assert_eq!(versions, [true, false, true, false, false, false]);
            assert_eq!(ordered[5].address.ip(), IpAddr::from([192, 0, 2, 9]));
            assert_eq!(ordered[5].rank, 20);
            orders.insert(ordered[1].address);
        }
        assert_eq!(orders.len(), 3);
        let address = |n: u32| RelayAddress {
            precedence: 1 + (n % 2) as u16,
            needs_discovery: true,
            address: SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + n).into(), PORT),
        };
        let (ordered, left_out) = candidates((0..100).map(address).collect(), &mut random);
        assert_eq!((ordered.len(), left_out), (MAX_CANDIDATES, 68));
        assert!(ordered.iter().all(|candidate| candidate.rank == 1));
    }

    proptest! {
        #[test]
        fn any_data_is_parsed_or_rejected(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(AmtRelayRecord { relay: RelayTarget::Name(name), .. }) = AmtRelayRecord::parse(&data) {
                prop_assert!(name.len() < MAX_NAME_LEN && name.ends_with('.'));
            }
        }
    }
}
