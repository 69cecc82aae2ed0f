//! What the machine takes and returns.

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
