//! The links of discovery, with the addresses of this host, and which addresses of one link mean
//! anything on another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::config::AddressMode;
use super::reason::WithheldReason;
use crate::model::addr::is_link_local_source;
use crate::model::{InterfaceId, Link, LinkAddress, Links, PublishedPorts};

/// A link, with the addresses of this host on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryLink {
    /// The link.
    pub link: Link,
    /// The addresses of this host.
    pub addresses: Vec<LinkAddress>,
}

impl DiscoveryLink {
    /// Returns the address from which messages to a group or host leave.
    pub fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        let own = self.addresses.iter().map(|a| a.address);
        let mut own = own.filter(|a| a.is_ipv4() == destination.is_ipv4());
        let needs_link_local = match destination {
            IpAddr::V4(_) => return own.next(),
            IpAddr::V6(group) => group.segments()[0] & 0xff0f == 0xff02,
        };
        let own: Vec<IpAddr> = own.collect();
        let fits = |a: &&IpAddr| is_link_local_source(**a) == needs_link_local;
        own.iter().find(fits).or(own.first()).copied()
    }

    /// Returns an address of this host that hosts beyond the link can use.
    fn usable_address(&self, is_ipv4: bool) -> Option<IpAddr> {
        let mut own = self.addresses.iter().map(|a| a.address);
        own.find(|a| a.is_ipv4() == is_ipv4 && !is_link_local_source(*a))
    }

    /// Returns whether this is the bridge of a network of the container engine, which translates
    /// the addresses of its containers.
    pub fn is_container_network(&self) -> bool {
        let mut names = self.link.known_as.iter();
        names.any(|name| name.as_str().starts_with("network:"))
    }

    /// Returns whether an address is in a subnet of the link.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.on_link.contains(&address))
    }

    /// Returns whether an address is one of this host.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }
}

/// The links that discovery uses.
pub type LinkTable = BTreeMap<InterfaceId, DiscoveryLink>;

/// Returns the links that are up and for which a function returns true.
pub fn link_table(links: &Links, is_used: impl Fn(&Link) -> bool) -> LinkTable {
    let used = links.iter();
    let used = used.filter(|link| link.up && link.index.ifindex().is_some() && is_used(link));
    let entry = |link: &Link| {
        let addresses = links.addresses(link.index).to_vec();
        let link = link.clone();
        (link.index, DiscoveryLink { link, addresses })
    };
    used.map(entry).collect()
}

/// Translates what a device offers on one link for another one.
#[derive(Debug, Clone, Copy)]
pub struct OfferTranslator<'a> {
    /// The link of the device.
    pub from: &'a DiscoveryLink,
    /// The link of the asker.
    pub to: &'a DiscoveryLink,
    /// The setting.
    pub mode: AddressMode,
    /// The ports that the container engine publishes.
    pub published: &'a PublishedPorts,
}

impl OfferTranslator<'_> {
    /// Returns the address under which an offered address is reached from the other link.
    ///
    /// # Errors
    /// There is none.
    pub fn address(&self, address: IpAddr) -> Result<IpAddr, WithheldReason> {
        if self.mode == AddressMode::Keep {
            return Ok(address);
        }
        if is_link_local_source(address) || address.is_loopback() || address.is_unspecified() {
            return Err(WithheldReason::UnusableAddress);
        }
        match self.is_translated(address) {
            true => {
                let own = self.to.usable_address(address.is_ipv4());
                own.ok_or(WithheldReason::UnusableAddress)
            }
            false => Ok(address),
        }
    }

    /// Returns the port under which a port of a device is reached from the other link.
    ///
    /// # Errors
    /// The engine does not publish it.
    pub fn port(&self, device: IpAddr, port: u16, is_tcp: bool) -> Result<u16, WithheldReason> {
        if self.mode == AddressMode::Keep || !self.is_translated(device) {
            return Ok(port);
        }
        let published = self.published.get(&(device, port, is_tcp)).copied();
        published.ok_or(WithheldReason::NotPublished)
    }

    /// Returns whether an address belongs to a container behind an address of this host.
    pub fn is_translated(&self, address: IpAddr) -> bool {
        self.from.is_container_network() && self.from.contains(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(n: u32, name: &str, addresses: &[&str]) -> DiscoveryLink {
        let link = Link::new(InterfaceId::new(n).unwrap(), name.parse().unwrap());
        let address = |text: &&str| {
            let on_link: ipnet::IpNet = text.parse().unwrap();
            LinkAddress {
                address: on_link.addr(),
                on_link: on_link.trunc(),
            }
        };
        DiscoveryLink {
            link,
            addresses: addresses.iter().map(address).collect(),
        }
    }

    #[test]
    fn source_has_the_scope_of_the_destination() {
        let link = link(1, "eth0", &["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"]);
        let source = |to: &str| link.source_for(to.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(source("239.255.255.250").as_deref(), Some("192.0.2.1"));
        assert_eq!(source("ff02::c").as_deref(), Some("fe80::1"));
        assert_eq!(source("ff05::c").as_deref(), Some("2001:db8::1"));
    }

    #[test]
    fn container_is_offered_at_its_published_port() {
        let mut bridge = link(1, "br-1", &["172.20.0.1/16", "fd00::1/64"]);
        bridge.link.known_as.insert("network:home".parse().unwrap());
        let lan = link(2, "eth0", &["192.0.2.1/24", "fe80::1/64"]);
        let container: IpAddr = "172.20.0.5".parse().unwrap();
        let published = PublishedPorts::from([((container, 80, true), 8080)]);
        let out = OfferTranslator {
            from: &bridge,
            to: &lan,
            mode: AddressMode::Rewrite,
            published: &published,
        };
        let address = |text: &str| out.address(text.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(address("172.20.0.5").as_deref(), Ok("192.0.2.1"));
        assert_eq!(address("198.51.100.1").as_deref(), Ok("198.51.100.1"));
        for unusable in ["fd00::5", "fe80::5", "169.254.1.1", "127.0.0.1"] {
            assert_eq!(
                address(unusable),
                Err(WithheldReason::UnusableAddress),
                "{unusable}"
            );
        }
        assert_eq!(out.port(container, 80, true), Ok(8080));
        assert_eq!(
            out.port(container, 81, true),
            Err(WithheldReason::NotPublished)
        );
        let inwards = OfferTranslator {
            from: &lan,
            to: &bridge,
            ..out
        };
        let device = "192.0.2.9".parse().unwrap();
        assert_eq!(
            (inwards.address(device), inwards.port(device, 80, true)),
            (Ok(device), Ok(80))
        );
        let keep = OfferTranslator {
            mode: AddressMode::Keep,
            ..out
        };
        assert_eq!(
            (keep.address(container), keep.port(container, 81, true)),
            (Ok(container), Ok(81))
        );
    }
}
