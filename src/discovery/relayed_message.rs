//! What the machine takes and returns.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::askers::AnswerPort;
use super::mdns::MdnsMessage;
use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use crate::model::{InterfaceId, MacAddress};
use crate::wire::udp::UdpDatagram;

/// A message that arrived on a link.
#[derive(Debug, Clone, Copy)]
pub struct DiscoveryMessage<'a> {
    /// The link.
    pub link: InterfaceId,
    /// The station that sent it; `None` on links without addresses, or if this host sent it.
    pub station: Option<MacAddress>,
    /// Whether another program of this host sent it.
    pub is_of_this_host: bool,
    /// The datagram.
    pub datagram: UdpDatagram<'a>,
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The link.
    pub link: InterfaceId,
    /// The IP packet.
    pub packet: Vec<u8>,
    /// The station of the receiver; `None` for a group, and on links without addresses.
    pub station: Option<MacAddress>,
    /// The protocol, and what the message is: for counting.
    pub kind: (DiscoveryProtocol, &'static str),
}

impl OutgoingMessage {
    /// Returns a message with this datagram.
    ///
    /// # Errors
    /// The datagram does not fit into a packet.
    pub fn new(
        link: InterfaceId,
        datagram: &UdpDatagram<'_>,
        station: Option<MacAddress>,
        kind: (DiscoveryProtocol, &'static str),
    ) -> Result<Self, WithheldReason> {
        let packet = datagram.to_packet().ok_or(WithheldReason::TooBig)?;
        Ok(Self {
            link,
            packet,
            station,
            kind,
        })
    }

    /// Returns a message of multicast DNS from an address of this host.
    ///
    /// # Errors
    /// It cannot be written, or does not fit into a packet.
    pub fn mdns(
        link: InterfaceId,
        (source, destination): (IpAddr, SocketAddr),
        message: &MdnsMessage,
        station: Option<MacAddress>,
        kind: &'static str,
    ) -> Result<Self, WithheldReason> {
        let protocol = DiscoveryProtocol::Mdns;
        let payload = message.to_bytes().ok_or(WithheldReason::Malformed)?;
        let datagram = UdpDatagram {
            source: SocketAddr::new(source, protocol.port()),
            destination,
            ttl: protocol.ttl(),
            payload: &payload,
        };
        Self::new(link, &datagram, station, (protocol, kind))
    }

    /// Returns a received message as it is sent on another link, with its own source.
    ///
    /// # Errors
    /// It does not fit into a packet.
    pub fn forwarded(
        link: InterfaceId,
        received: &DiscoveryMessage<'_>,
        payload: &[u8],
        kind: (DiscoveryProtocol, &'static str),
    ) -> Result<Self, WithheldReason> {
        let source = received.datagram.source;
        Self::to_group(link, source, received, payload, kind)
    }

    /// Returns a received question as it leaves from one of our ports.
    ///
    /// # Errors
    /// It does not fit into a packet.
    pub fn question(
        port: AnswerPort,
        received: &DiscoveryMessage<'_>,
        payload: &[u8],
        protocol: DiscoveryProtocol,
    ) -> Result<Self, WithheldReason> {
        let source = SocketAddr::new(port.address, port.port);
        Self::to_group(port.link, source, received, payload, (protocol, "question"))
    }

    fn to_group(
        link: InterfaceId,
        source: SocketAddr,
        received: &DiscoveryMessage<'_>,
        payload: &[u8],
        kind: (DiscoveryProtocol, &'static str),
    ) -> Result<Self, WithheldReason> {
        let destination = match kind.0 {
            // A directed broadcast of one subnet means nothing in another.
            DiscoveryProtocol::Broadcast(number) => SocketAddr::from((Ipv4Addr::BROADCAST, number)),
            _ => received.datagram.destination,
        };
        let datagram = UdpDatagram {
            source,
            destination,
            ttl: kind.0.ttl(),
            payload,
        };
        Self::new(link, &datagram, None, kind)
    }
}

/// What happened to messages, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WithheldMessage {
    /// The protocol.
    pub protocol: DiscoveryProtocol,
    /// `question`, `answer` or `announcement`.
    pub kind: &'static str,
    /// Why it was withheld.
    pub reason: WithheldReason,
}
