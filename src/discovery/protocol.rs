//! The discovery protocols: groups, ports, and how their answers travel.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// A discovery protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DiscoveryProtocol {
    /// Multicast DNS (RFC 6762).
    Mdns,
    /// Simple Service Discovery Protocol (UPnP Device Architecture 2.0 section 1).
    Ssdp,
    /// WS-Discovery 1.1, also of ONVIF.
    WsDiscovery,
    /// Link-Local Multicast Name Resolution (RFC 4795).
    Llmnr,
    /// The Constrained Application Protocol (RFC 7252 section 8).
    Coap,
    /// KNXnet/IP (ISO 22510).
    Knx,
    /// The Service Location Protocol (RFC 2608).
    Slp,
    /// The Session Announcement Protocol (RFC 2974).
    Sap,
    /// Participant discovery of DDS (DDSI-RTPS 2.5 section 9.6.1) in this domain.
    Dds(u16),
    /// A group and port that the settings name.
    Group(SocketAddr),
    /// UDP broadcasts to this port.
    Broadcast(u16),
}

/// Which messages of a protocol cross, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Questions and answers are multicast. Answers to questions from other ports are unicast.
    Mdns,
    /// Questions are multicast, and answered by unicast within this time.
    UnicastAnswers(Duration),
    /// Messages are multicast with addresses inside, so the source stays.
    Announcements,
}

impl DiscoveryProtocol {
    /// The protocols that have a name in the settings.
    pub const NAMED: [(&'static str, Self); 9] = [
        ("mdns", Self::Mdns),
        ("ssdp", Self::Ssdp),
        ("ws-discovery", Self::WsDiscovery),
        ("llmnr", Self::Llmnr),
        ("coap", Self::Coap),
        ("knx", Self::Knx),
        ("slp", Self::Slp),
        ("sap", Self::Sap),
        ("dds", Self::Dds(0)),
    ];

    /// Returns the value of the label `protocol` in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dds(_) => "dds",
            Self::Group(_) => "group",
            Self::Broadcast(_) => "broadcast",
            named => {
                let mut all = Self::NAMED.iter();
                all.find(|(_, protocol)| *protocol == named)
                    .map_or("", |(name, _)| name)
            }
        }
    }

    /// Returns the UDP port to which messages are sent.
    pub fn port(self) -> u16 {
        match self {
            Self::Mdns => 5353,
            Self::Ssdp => 1900,
            Self::WsDiscovery => 3702,
            Self::Llmnr => 5355,
            Self::Coap => 5683,
            Self::Knx => 3671,
            Self::Slp => 427,
            Self::Sap => 9875,
            // DDSI-RTPS section 9.6.1.1: PB + DG * domain + d0.
            Self::Dds(domain) => 7400_u16.saturating_add(domain.saturating_mul(250)),
            Self::Group(address) => address.port(),
            Self::Broadcast(port) => port,
        }
    }

    /// Returns the groups; none for broadcasts.
    pub fn groups(self) -> Vec<IpAddr> {
        let v4 = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        let v6 = |first, last| IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last));
        match self {
            Self::Mdns => vec![v4(224, 0, 0, 251), v6(0xff02, 0xfb)],
            Self::Ssdp => vec![v4(239, 255, 255, 250), v6(0xff02, 0xc), v6(0xff05, 0xc)],
            Self::WsDiscovery => vec![v4(239, 255, 255, 250), v6(0xff02, 0xc)],
            Self::Llmnr => vec![
                v4(224, 0, 0, 252),
                IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 3)),
            ],
            Self::Coap => vec![v4(224, 0, 1, 187), v6(0xff02, 0xfd), v6(0xff05, 0xfd)],
            Self::Knx => vec![v4(224, 0, 23, 12)],
            Self::Slp => vec![v4(239, 255, 255, 253), v6(0xff02, 0x116), v6(0xff05, 0x116)],
            Self::Sap => vec![v4(224, 2, 127, 254), v4(239, 255, 255, 255)],
            Self::Dds(_) => vec![v4(239, 255, 0, 1)],
            Self::Group(address) => vec![address.ip()],
            Self::Broadcast(_) => Vec::new(),
        }
    }

    /// Returns how its messages cross.
    pub fn transport(self) -> Transport {
        let answers = |seconds| Transport::UnicastAnswers(Duration::from_secs(seconds));
        match self {
            Self::Mdns => Transport::Mdns,
            // MX is at most 5 seconds (UPnP section 1.3.2); some devices wait longer.
            Self::Ssdp => answers(8),
            // APP_MAX_DELAY is 500 ms, MATCH_TIMEOUT 6 seconds (WS-Discovery section 3.1.3).
            Self::WsDiscovery => answers(8),
            Self::Llmnr => answers(3),
            // DEFAULT_LEISURE is 5 seconds (RFC 7252 section 4.8).
            Self::Coap => answers(10),
            Self::Knx => answers(10),
            // CONFIG_MC_MAX is 15 seconds (RFC 2608 section 13).
            Self::Slp => answers(15),
            Self::Sap | Self::Dds(_) => Transport::Announcements,
            Self::Group(_) | Self::Broadcast(_) => answers(10),
        }
    }

    /// Returns the TTL or hop limit with which messages leave.
    pub fn ttl(self) -> u8 {
        match self {
            // RFC 6762 section 11, RFC 4795 section 2.5.
            Self::Mdns | Self::Llmnr => 255,
            Self::WsDiscovery | Self::Dds(_) | Self::Broadcast(_) => 1,
            // UPnP section 1.3.2.
            Self::Ssdp => 2,
            _ => 4,
        }
    }
}

impl fmt::Display for DiscoveryProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(address) => address.fmt(f),
            Self::Broadcast(port) => write!(f, "broadcast:{port}"),
            Self::Dds(domain @ 1..) => write!(f, "dds:{domain}"),
            named => f.write_str(named.label()),
        }
    }
}

/// Why a text is no protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a discovery protocol")]
pub struct ParseProtocolError;

/// The highest domain whose ports exist (DDSI-RTPS section 9.6.1).
pub const MAX_DDS_DOMAIN: u16 = 232;

impl FromStr for DiscoveryProtocol {
    type Err = ParseProtocolError;

    fn from_str(text: &str) -> Result<Self, ParseProtocolError> {
        if let Some((_, protocol)) = Self::NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(*protocol);
        }
        let number = |text: &str| text.parse::<u16>().ok();
        if let Some(port) = text.strip_prefix("broadcast:") {
            let port = number(port).filter(|port| *port > 0);
            return port.map(Self::Broadcast).ok_or(ParseProtocolError);
        }
        if let Some(domain) = text.strip_prefix("dds:") {
            let domain = number(domain).filter(|domain| *domain <= MAX_DDS_DOMAIN);
            return domain.map(Self::Dds).ok_or(ParseProtocolError);
        }
        let address = text.parse::<SocketAddr>().map_err(|_| ParseProtocolError)?;
        let is_good = address.ip().is_multicast() && address.port() > 0;
        is_good
            .then_some(Self::Group(address))
            .ok_or(ParseProtocolError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_protocols_are_parsed_and_written() {
        for text in [
            "mdns",
            "ssdp",
            "ws-discovery",
            "llmnr",
            "coap",
            "knx",
            "slp",
            "sap",
            "dds",
            "dds:7",
            "broadcast:65001",
            "239.1.2.3:5000",
            "[ff02::1234]:5000",
        ] {
            let protocol: DiscoveryProtocol = text.parse().unwrap();
            assert_eq!(protocol.to_string(), text);
            assert!(!protocol.label().is_empty());
            assert!(protocol.port() > 0);
        }
        for bad in [
            "",
            "dns",
            "broadcast:0",
            "dds:233",
            "10.0.0.1:5",
            "239.1.2.3",
            "239.1.2.3:0",
        ] {
            assert!(bad.parse::<DiscoveryProtocol>().is_err(), "{bad}");
        }
        assert_eq!(DiscoveryProtocol::Dds(1).port(), 7650);
    }

    /// RFC 6762 section 11, RFC 4795 section 2.5.
    #[test]
    fn link_local_name_protocols_leave_with_ttl_255() {
        assert_eq!(DiscoveryProtocol::Mdns.ttl(), 255);
        assert_eq!(DiscoveryProtocol::Llmnr.ttl(), 255);
    }
}
