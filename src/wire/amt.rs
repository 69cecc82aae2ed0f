//! Messages of Automatic Multicast Tunneling (RFC 7450 section 5.1), the payload of UDP datagrams.
//!
//! All integers are in network byte order. The first byte holds the version (4 bits, 0) and the
//! type (4 bits).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::ip::IpHeader;

/// The UDP port of relays (section 7.2).
pub const PORT: u16 = 2268;

/// Type of a Relay Discovery message.
pub const RELAY_DISCOVERY: u8 = 1;
/// Type of a Relay Advertisement message.
pub const RELAY_ADVERTISEMENT: u8 = 2;
/// Type of a Request message.
pub const REQUEST: u8 = 3;
/// Type of a Membership Query message.
pub const MEMBERSHIP_QUERY: u8 = 4;
/// Type of a Membership Update message.
pub const MEMBERSHIP_UPDATE: u8 = 5;
/// Type of a Multicast Data message.
pub const MULTICAST_DATA: u8 = 6;
/// Type of a Teardown message.
pub const TEARDOWN: u8 = 7;

/// The header of a Multicast Data message: type and a reserved byte. The IP packet follows.
pub const DATA_HEADER: [u8; 2] = [MULTICAST_DATA, 0];

/// Length of type, reserved bytes, and nonce: a Relay Discovery or Request message.
const SHORT_LEN: usize = 8;
/// Length of type, flags, Response MAC and nonce, before the IP packet of a query or update.
const RESPONSE_HEADER_LEN: usize = 12;
/// Length of the Gateway Port Number and Gateway IP Address fields.
const GATEWAY_LEN: usize = 18;
/// Length of a Teardown message.
const TEARDOWN_LEN: usize = RESPONSE_HEADER_LEN + GATEWAY_LEN;

/// Value of the Response MAC field: it proves that the sender of an update received the query of
/// the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseMac(pub [u8; 6]);

/// Where a sender puts flags into their byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlagLayout {
    /// At the least significant end: P is 0x01; L is 0x02 and G is 0x01.
    #[default]
    Standard,
    /// At the most significant end, as in the `amt` driver of Linux: P is 0x80; L is 0x40 and G is
    /// 0x80. That driver drops messages in which other bits are set.
    Linux,
}

impl FlagLayout {
    /// Returns the P flag of a Request.
    fn p(self) -> u8 {
        match self {
            Self::Standard => 0x01,
            Self::Linux => 0x80,
        }
    }

    /// Returns the L and G flags of a Membership Query.
    fn l_and_g(self) -> (u8, u8) {
        match self {
            Self::Standard => (0x02, 0x01),
            Self::Linux => (0x40, 0x80),
        }
    }

    /// Returns the layout of a byte in which flags are set.
    fn of(flags: u8) -> Self {
        match flags & 0xc0 {
            0 => Self::Standard,
            _ => Self::Linux,
        }
    }
}

/// An AMT message. Encapsulated IP packets are borrowed from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AmtMessage<'a> {
    /// Gateway to the discovery address: requests the address of a relay.
    RelayDiscovery {
        /// The discovery nonce.
        nonce: u32,
    },
    /// Relay to gateway: the answer to a Relay Discovery.
    RelayAdvertisement {
        /// The nonce of the Relay Discovery.
        nonce: u32,
        /// The address to send Requests to.
        relay: IpAddr,
    },
    /// Gateway to relay: requests a Membership Query.
    Request {
        /// The request nonce.
        nonce: u32,
        /// P flag: whether an MLDv2 query is requested instead of an IGMPv3 query.
        is_mld: bool,
        /// The position of the flag.
        flags: FlagLayout,
    },
    /// Relay to gateway: a general query.
    MembershipQuery {
        /// L flag: whether the relay accepts no updates of new gateways.
        is_limit_reached: bool,
        /// The value that updates must contain.
        mac: ResponseMac,
        /// The nonce of the Request.
        nonce: u32,
        /// The IP packet with the general query.
        packet: &'a [u8],
        /// The source address of the Request as the relay received it; `None` without the G flag.
        gateway: Option<SocketAddr>,
        /// The position of the flags.
        flags: FlagLayout,
    },
    /// Gateway to relay: a report.
    MembershipUpdate {
        /// The value of the last Membership Query.
        mac: ResponseMac,
        /// The nonce of the last Membership Query.
        nonce: u32,
        /// The IP packet with the report.
        packet: &'a [u8],
    },
    /// Relay to gateway: a multicast packet.
    MulticastData {
        /// The IP packet.
        packet: &'a [u8],
    },
    /// Gateway to relay: ends a tunnel to a former address of the gateway.
    Teardown {
        /// The value of the last Membership Query that the former address received.
        mac: ResponseMac,
        /// The nonce of that query.
        nonce: u32,
        /// The former address.
        gateway: SocketAddr,
    },
}

/// Why a datagram is no AMT message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmtParseError {
    /// A version other than 0.
    #[error("the version of the AMT message is not 0")]
    Version,
    /// A type other than 1 to 7.
    #[error("the type of the AMT message is not known")]
    UnknownType,
    /// A length that the type cannot have.
    #[error("the AMT message is too short or too long")]
    Length,
}

impl<'a> AmtMessage<'a> {
    /// Parses the payload of a UDP datagram. Ignores reserved bits. Encapsulated packets are not
    /// examined, except for the length of a queried packet.
    ///
    /// A Request may be one byte too long, as a known gateway sends it.
    ///
    /// # Errors
    /// See [`AmtParseError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AmtParseError> {
        let kind = *bytes.first().ok_or(AmtParseError::Length)?;
        if kind >> 4 != 0 {
            return Err(AmtParseError::Version);
        }
        let message = match kind {
            RELAY_DISCOVERY if bytes.len() == SHORT_LEN => Some(Self::RelayDiscovery {
                nonce: be_u32(bytes, 4)?,
            }),
            RELAY_ADVERTISEMENT => parse_advertisement(bytes)?,
            REQUEST if matches!(bytes.len(), SHORT_LEN | 9) => {
                // Only P tells the layout: a request has no other flag.
                let p = bytes[1] & (FlagLayout::Standard.p() | FlagLayout::Linux.p());
                Some(Self::Request {
                    nonce: be_u32(bytes, 4)?,
                    is_mld: p != 0,
                    flags: FlagLayout::of(p),
                })
            }
            MEMBERSHIP_QUERY => Some(parse_query(bytes)?),
            MEMBERSHIP_UPDATE => bytes
                .get(RESPONSE_HEADER_LEN..)
                .map(|packet| {
                    Ok(Self::MembershipUpdate {
                        mac: mac(bytes)?,
                        nonce: be_u32(bytes, 8)?,
                        packet,
                    })
                })
                .transpose()?,
            MULTICAST_DATA => bytes
                .get(DATA_HEADER.len()..)
                .map(|packet| Self::MulticastData { packet }),
            TEARDOWN if bytes.len() == TEARDOWN_LEN => Some(Self::Teardown {
                mac: mac(bytes)?,
                nonce: be_u32(bytes, 8)?,
                gateway: gateway(&bytes[RESPONSE_HEADER_LEN..])?,
            }),
            RELAY_DISCOVERY | REQUEST | TEARDOWN => None,
            _ => return Err(AmtParseError::UnknownType),
        };
        message.ok_or(AmtParseError::Length)
    }

    /// Returns the payload of the UDP datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match *self {
            Self::RelayDiscovery { nonce } => {
                out.extend([RELAY_DISCOVERY, 0, 0, 0]);
                out.extend(nonce.to_be_bytes());
            }
            Self::RelayAdvertisement { nonce, relay } => {
                out.extend([RELAY_ADVERTISEMENT, 0, 0, 0]);
                out.extend(nonce.to_be_bytes());
                match relay {
                    IpAddr::V4(addr) => out.extend(addr.octets()),
                    IpAddr::V6(addr) => out.extend(addr.octets()),
                }
            }
            Self::Request {
                nonce,
                is_mld,
                flags,
            } => {
                let p = if is_mld { flags.p() } else { 0 };
                out.extend([REQUEST, p, 0, 0]);
                out.extend(nonce.to_be_bytes());
            }
            Self::MembershipQuery {
                is_limit_reached,
                mac,
                nonce,
                packet,
                gateway,
                flags,
            } => {
                let (l, g) = flags.l_and_g();
                let l = if is_limit_reached { l } else { 0 };
                let g = if gateway.is_some() { g } else { 0 };
                write_response_header(&mut out, MEMBERSHIP_QUERY, l | g, mac, nonce);
                out.extend(packet);
                gateway
                    .iter()
                    .for_each(|addr| write_gateway(&mut out, addr));
            }
            Self::MembershipUpdate { mac, nonce, packet } => {
                write_response_header(&mut out, MEMBERSHIP_UPDATE, 0, mac, nonce);
                out.extend(packet);
            }
            Self::MulticastData { packet } => {
                out.extend(DATA_HEADER);
                out.extend(packet);
            }
            Self::Teardown {
                mac,
                nonce,
                gateway,
            } => {
                write_response_header(&mut out, TEARDOWN, 0, mac, nonce);
                write_gateway(&mut out, &gateway);
            }
        }
        out
    }

    /// Returns the metrics label of the type.
    pub fn label(&self) -> &'static str {
        match self {
            Self::RelayDiscovery { .. } => "discovery",
            Self::RelayAdvertisement { .. } => "advertisement",
            Self::Request { .. } => "request",
            Self::MembershipQuery { .. } => "query",
            Self::MembershipUpdate { .. } => "update",
            Self::MulticastData { .. } => "data",
            Self::Teardown { .. } => "teardown",
        }
    }
}

fn parse_advertisement(bytes: &[u8]) -> Result<Option<AmtMessage<'_>>, AmtParseError> {
    let Some((head, address)) = bytes.split_at_checked(SHORT_LEN) else {
        return Ok(None);
    };
    // The length tells the IP version.
    let relay = match address.len() {
        4 => address
            .first_chunk::<4>()
            .map(|a| Ipv4Addr::from(*a).into()),
        16 => address
            .first_chunk::<16>()
            .map(|a| Ipv6Addr::from(*a).into()),
        _ => None,
    };
    let nonce = be_u32(head, 4)?;
    Ok(relay.map(|relay| AmtMessage::RelayAdvertisement { nonce, relay }))
}

fn parse_query(bytes: &[u8]) -> Result<AmtMessage<'_>, AmtParseError> {
    let packet = bytes.get(RESPONSE_HEADER_LEN..);
    let mut packet = packet.ok_or(AmtParseError::Length)?;
    let flags = FlagLayout::of(bytes[1]);
    let (l, g) = flags.l_and_g();
    let has_gateway = bytes[1] & g != 0;
    let mut sender = None;
    if has_gateway {
        // The fields follow the packet. Its own length says where it ends, so that a wrong flag
        // does not shorten it.
        let at = packet.len().checked_sub(GATEWAY_LEN);
        let at = at.ok_or(AmtParseError::Length)?;
        let (query, fields) = packet.split_at(at);
        IpHeader::parse(query).map_err(|_| AmtParseError::Length)?;
        sender = Some(gateway(fields)?);
        packet = query;
    }
    Ok(AmtMessage::MembershipQuery {
        is_limit_reached: bytes[1] & l != 0,
        mac: mac(bytes)?,
        nonce: be_u32(bytes, 8)?,
        packet,
        gateway: sender,
        flags,
    })
}

fn write_response_header(out: &mut Vec<u8>, kind: u8, flags: u8, mac: ResponseMac, nonce: u32) {
    out.extend([kind, flags]);
    out.extend(mac.0);
    out.extend(nonce.to_be_bytes());
}

/// Writes the Gateway Port Number and Gateway IP Address fields. An IPv4 address is written as an
/// IPv4-compatible IPv6 address.
fn write_gateway(out: &mut Vec<u8>, gateway: &SocketAddr) {
    out.extend(gateway.port().to_be_bytes());
    match gateway.ip() {
        IpAddr::V4(addr) => out.extend(addr.to_ipv6_compatible().octets()),
        IpAddr::V6(addr) => out.extend(addr.octets()),
    }
}

/// Reads what [`write_gateway`] writes. IPv4-mapped addresses are read as IPv4 addresses too.
fn gateway(fields: &[u8]) -> Result<SocketAddr, AmtParseError> {
    let port = fields.first_chunk::<2>().ok_or(AmtParseError::Length)?;
    let addr = fields.get(2..).and_then(|rest| rest.first_chunk::<16>());
    let addr = Ipv6Addr::from(*addr.ok_or(AmtParseError::Length)?);
    let ip = match (addr.segments(), addr.octets()) {
        // `::1` and other addresses in `::/104` are IPv6 addresses.
        ([0, 0, 0, 0, 0, 0, ..], [.., a, b, c, d]) if a != 0 => Ipv4Addr::new(a, b, c, d).into(),
        _ => IpAddr::V6(addr).to_canonical(),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

fn mac(bytes: &[u8]) -> Result<ResponseMac, AmtParseError> {
    let mac = bytes.get(2..).and_then(|rest| rest.first_chunk::<6>());
    mac.map(|mac| ResponseMac(*mac))
        .ok_or(AmtParseError::Length)
}

fn be_u32(bytes: &[u8], at: usize) -> Result<u32, AmtParseError> {
    let value = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    value
        .map(|value| u32::from_be_bytes(*value))
        .ok_or(AmtParseError::Length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::link_control::{encapsulate_v4, encapsulate_v6};
    use proptest::prelude::*;

    const MAC: ResponseMac = ResponseMac([0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6]);
    const NONCE: u32 = 0x0102_0304;

    fn igmp_query() -> Vec<u8> {
        let query = [0x11, 0x64, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0];
        encapsulate_v4([192, 0, 2, 1].into(), [224, 0, 0, 1].into(), &query)
    }

    fn query(gateway: Option<&str>, packet: &[u8], flags: FlagLayout) -> Vec<u8> {
        let message = AmtMessage::MembershipQuery {
            is_limit_reached: true,
            mac: MAC,
            nonce: NONCE,
            packet,
            gateway: gateway.map(|addr| addr.parse().unwrap()),
            flags,
        };
        let bytes = message.to_bytes();
        assert_eq!(AmtMessage::parse(&bytes), Ok(message));
        bytes
    }

    #[test]
    fn fixed_messages_have_the_bytes_of_their_layout() {
        let v4: IpAddr = "192.0.2.9".parse().unwrap();
        let v6: IpAddr = "2001:db8::9".parse().unwrap();
        let nonce = NONCE;
        let request = |is_mld, flags| AmtMessage::Request {
            nonce,
            is_mld,
            flags,
        };
        let teardown = AmtMessage::Teardown {
            mac: MAC,
            nonce,
            gateway: "192.0.2.7:40000".parse().unwrap(),
        };
        let v6_relay = "02000000 01020304 20010db8 00000000 00000000 00000009";
        for (message, hex) in [
            (
                AmtMessage::RelayDiscovery { nonce },
                "01000000 01020304".into(),
            ),
            (
                AmtMessage::RelayAdvertisement { nonce, relay: v4 },
                "02000000 01020304 c0000209".into(),
            ),
            (
                AmtMessage::RelayAdvertisement { nonce, relay: v6 },
                v6_relay.to_string(),
            ),
            (
                request(false, FlagLayout::Standard),
                "03000000 01020304".into(),
            ),
            (
                request(true, FlagLayout::Standard),
                "03010000 01020304".into(),
            ),
            (request(true, FlagLayout::Linux), "03800000 01020304".into()),
            (
                teardown,
                "0700 a1a2a3a4a5a6 01020304 9c40 000000000000000000000000c0000207".into(),
            ),
        ] {
            let hex: String = hex;
            let expected = bytes(&hex);
            assert_eq!(message.to_bytes(), expected, "{message:?}");
            assert_eq!(AmtMessage::parse(&expected), Ok(message));
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: String = hex.split_whitespace().collect();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn query_has_flags_before_and_gateway_after_its_packet() {
        let packet = igmp_query();
        let plain = query(None, &packet, FlagLayout::Standard);
        assert_eq!(plain[..12], bytes("0402 a1a2a3a4a5a6 01020304"));
        assert_eq!(plain[12..], packet);
        let with_gateway = query(Some("[2001:db8::7]:258"), &packet, FlagLayout::Standard);
        assert_eq!(with_gateway[..2], [4, 0x03]);
        let fields = bytes("0102 20010db8000000000000000000000007");
        assert_eq!(with_gateway[12 + packet.len()..], fields);
        let linux = query(Some("192.0.2.7:258"), &packet, FlagLayout::Linux);
        assert_eq!(linux[..2], [4, 0xc0]);
    }

    #[test]
    fn data_and_update_borrow_their_packet() {
        let packet = igmp_query();
        let data = AmtMessage::MulticastData { packet: &packet };
        assert_eq!(data.to_bytes()[..2], [6, 0]);
        assert_eq!(AmtMessage::parse(&data.to_bytes()), Ok(data));
        let update = AmtMessage::MembershipUpdate {
            mac: MAC,
            nonce: NONCE,
            packet: &packet,
        };
        assert_eq!(update.to_bytes()[..12], bytes("0500 a1a2a3a4a5a6 01020304"));
        assert_eq!(AmtMessage::parse(&update.to_bytes()), Ok(update));
    }

    #[test]
    fn gateway_address_in_mapped_form_is_read_as_ipv4() {
        let mut teardown = bytes("0700 a1a2a3a4a5a6 01020304 9c40");
        teardown.extend(bytes("00000000000000000000ffffc0000207"));
        let Ok(AmtMessage::Teardown { gateway, .. }) = AmtMessage::parse(&teardown) else {
            panic!();
        };
        assert_eq!(gateway, "192.0.2.7:40000".parse().unwrap());
    }

    #[test]
    fn request_of_nine_bytes_is_accepted() {
        let request = AmtMessage::Request {
            nonce: NONCE,
            is_mld: false,
            flags: FlagLayout::Standard,
        };
        let mut long = request.to_bytes();
        long.push(0);
        assert_eq!(AmtMessage::parse(&long), Ok(request));
        long.push(0);
        assert_eq!(AmtMessage::parse(&long), Err(AmtParseError::Length));
    }

    #[test]
    fn reserved_bits_are_ignored() {
        let request = AmtMessage::parse(&[3, 0x7e, 0xff, 0xff, 1, 2, 3, 4]);
        let is_mld = false;
        // 0x40 is no flag of a Request.
        assert!(matches!(request, Ok(AmtMessage::Request { is_mld: m, .. }) if m == is_mld));
        let data = AmtMessage::parse(&[6, 0xff, 0x45]);
        assert_eq!(data, Ok(AmtMessage::MulticastData { packet: &[0x45] }));
    }

    #[test]
    fn invalid_version_type_and_length_are_rejected() {
        for (bytes, error) in [
            (&[][..], AmtParseError::Length),
            (&[0x16, 0, 0, 0], AmtParseError::Version),
            (&[0, 0, 0, 0, 0, 0, 0, 0], AmtParseError::UnknownType),
            (&[8, 0, 0, 0, 0, 0, 0, 0], AmtParseError::UnknownType),
            (&[1, 0, 0, 0, 0, 0, 0], AmtParseError::Length),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0], AmtParseError::Length),
            (&[2, 0, 0, 0, 0, 0, 0, 0], AmtParseError::Length),
            (&[2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3], AmtParseError::Length),
            (&[6], AmtParseError::Length),
        ] {
            assert_eq!(AmtMessage::parse(bytes), Err(error), "{bytes:?}");
        }
        // The G flag without the fields.
        let mut short = query(None, &igmp_query(), FlagLayout::Standard);
        short[1] |= 1;
        assert_eq!(AmtMessage::parse(&short), Err(AmtParseError::Length));
        let teardown = [7; TEARDOWN_LEN + 1];
        assert_eq!(AmtMessage::parse(&teardown), Err(AmtParseError::Length));
    }

    proptest! {
        #[test]
        fn parsed_message_is_rebuilt_and_parsed_alike(
            kind in 0u8..9,
            rest in proptest::collection::vec(any::<u8>(), 0..80),
            v6 in any::<bool>(),
            use_query in any::<bool>(),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            if use_query && kind == MEMBERSHIP_QUERY && bytes.len() >= RESPONSE_HEADER_LEN {
                let tail = bytes.split_off(RESPONSE_HEADER_LEN);
                bytes.extend(match v6 {
                    true => encapsulate_v6("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap(), &[130; 28]),
                    false => igmp_query(),
                });
                bytes.extend(tail);
            }
            if let Ok(message) = AmtMessage::parse(&bytes) {
                let rebuilt = message.to_bytes();
                prop_assert_eq!(AmtMessage::parse(&rebuilt), Ok(message));
                prop_assert!(rebuilt.len() <= bytes.len());
            }
        }
    }
}
