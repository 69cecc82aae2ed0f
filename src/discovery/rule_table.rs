//! The rules with the links that they select: to which protocol a message belongs, on which links it
//! crosses, and who decides about offers there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::config::{DiscoveryLimits, DiscoveryRule};
use super::gate::OfferGate;
use super::link_table::{DiscoveryLink, LinkTable, OfferTranslator};
use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use crate::model::{InterfaceId, MacAddress, PublishedPorts};

/// The rules and links.
#[derive(Debug)]
pub struct RuleTable {
    rules: Vec<DiscoveryRule>,
    links: LinkTable,
    published: PublishedPorts,
}

impl RuleTable {
    /// Returns a table without links.
    pub fn new(rules: Vec<DiscoveryRule>) -> Self {
        Self {
            rules,
            links: LinkTable::new(),
            published: PublishedPorts::new(),
        }
    }

    /// Sets the links, and the ports that the container engine publishes.
    pub fn set_links(&mut self, links: LinkTable, published: PublishedPorts) {
        self.links = links;
        self.published = published;
    }

    /// Returns the rules.
    pub fn rules(&self) -> &[DiscoveryRule] {
        &self.rules
    }

    /// Returns the links.
    pub fn links(&self) -> &LinkTable {
        &self.links
    }

    /// Returns the rule at a position.
    pub fn rule(&self, position: usize) -> Option<&DiscoveryRule> {
        self.rules.get(position)
    }

    /// Returns whether an address is one of this host.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.links.values().any(|link| link.is_own(address))
    }

    /// Returns the address from which messages to `destination` leave on a link.
    pub fn source_for(&self, link: InterfaceId, destination: IpAddr) -> Option<IpAddr> {
        self.links.get(&link)?.source_for(destination)
    }

    /// Returns the protocol of a rule to whose group and port a message was sent.
    pub fn protocol_of(&self, rule: usize, destination: SocketAddr) -> Option<DiscoveryProtocol> {
        let protocols = &self.rules.get(rule)?.protocols;
        let is_broadcast = |ip: IpAddr| {
            let mut links = self.links.values().flat_map(|link| &link.addresses);
            ip == Ipv4Addr::BROADCAST || links.any(|a| matches!((a.on_link, ip),
                (ipnet::IpNet::V4(net), IpAddr::V4(ip)) if net.prefix_len() < 31 && net.broadcast() == ip))
        };
        let is_sent_to = |protocol: &&DiscoveryProtocol| {
            protocol.port() == destination.port()
                && match protocol {
                    DiscoveryProtocol::Broadcast(_) => is_broadcast(destination.ip()),
                    _ => protocol.groups().contains(&destination.ip()),
                }
        };
        protocols.iter().find(is_sent_to).copied()
    }

    /// Returns the links on which a question is asked, or an announcement is made.
    pub fn ways(&self, rule: usize, link: InterfaceId, is_question: bool) -> Vec<InterfaceId> {
        let (Some(rule), Some(here)) = (self.rules.get(rule), self.links.get(&link)) else {
            return Vec::new();
        };
        let is_way = |other: &&DiscoveryLink| match is_question {
            true => rule.covers(&other.link, &here.link),
            false => rule.covers(&here.link, &other.link),
        };
        let ways = self.links.values().filter(is_way);
        ways.map(|other| other.link.index).collect()
    }

    /// Returns the widest limits of the rules that use a link.
    pub fn limits(&self, link: InterfaceId) -> DiscoveryLimits {
        let link = self.links.get(&link);
        let rules = self.rules.iter();
        let rules = rules.filter(|rule| link.is_some_and(|link| rule.uses(&link.link)));
        let widest = rules
            .map(|rule| rule.limits)
            .max_by_key(|l| l.messages_per_second);
        widest.unwrap_or_default()
    }

    /// Returns what decides about offers of a device on `from` for askers on `to`.
    ///
    /// # Errors
    /// The rule or a link is gone.
    pub fn gate(
        &self,
        rule: usize,
        (from, to): (InterfaceId, InterfaceId),
        device: IpAddr,
        station: Option<MacAddress>,
    ) -> Result<OfferGate<'_>, WithheldReason> {
        let no_link = WithheldReason::NoAddress;
        let rule = self.rules.get(rule).ok_or(no_link)?;
        Ok(OfferGate {
            policy: &rule.policy,
            translator: OfferTranslator {
                from: self.links.get(&from).ok_or(no_link)?,
                to: self.links.get(&to).ok_or(no_link)?,
                mode: rule.addresses,
                published: &self.published,
            },
            device,
            station,
        })
    }
}
