//! Interfaces of one route that have the same subnet.

use std::fmt;

use ipnet::IpNet;

use crate::model::{IfName, LinkAddress};

/// An ingress and an egress interface of a route with a common subnet. A receiver may drop the
/// packets, because their source is its own address or belongs to another interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubnetConflict {
    /// The egress interface.
    pub egress: IfName,
    /// The ingress interface.
    pub ingress: IfName,
    /// The narrower one of the two subnets.
    pub subnet: IpNet,
}

impl fmt::Display for SubnetConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is also a subnet of {}", self.subnet, self.ingress)
    }
}

/// Returns the subnets among the addresses of an interface. Link-local addresses, the peers of
/// point-to-point links and the loopback network are none.
pub(super) fn subnets(addresses: &[LinkAddress]) -> impl Iterator<Item = IpNet> {
    let nets = addresses.iter().map(|address| address.on_link.trunc());
    nets.filter(|net| {
        let is_link_local = match net {
            IpNet::V4(net) => net.network().is_link_local(),
            IpNet::V6(net) => net.network().is_unicast_link_local(),
        };
        let has_hosts = net.prefix_len() > 0 && net.prefix_len() < net.max_prefix_len();
        has_hosts && !is_link_local && !net.network().is_loopback()
    })
}

/// Returns a subnet that both interfaces have: the narrower one of two that overlap.
pub(super) fn common_subnet(a: &[LinkAddress], b: &[LinkAddress]) -> Option<IpNet> {
    subnets(a).find_map(|a| {
        subnets(b).find_map(|b| match (a.contains(&b), b.contains(&a)) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(nets: &[&str]) -> Vec<LinkAddress> {
        let address = |net: &&str| {
            let on_link: IpNet = net.parse().unwrap();
            let address = on_link.addr();
            LinkAddress { address, on_link }
        };
        nets.iter().map(address).collect()
    }

    #[test]
    fn only_subnets_with_hosts_conflict() {
        let common = |a: &[&str], b: &[&str]| {
            let net = common_subnet(&addresses(a), &addresses(b));
            net.map(|net| net.to_string())
        };
        let docker = Some("172.17.0.0/16".to_string());
        assert_eq!(common(&["172.17.0.1/16"], &["172.17.0.1/16"]), docker);
        assert_eq!(common(&["172.16.0.1/12"], &["172.17.0.1/16"]), docker);
        assert_eq!(common(&["172.17.0.1/16"], &["172.18.0.1/16"]), None);
        assert_eq!(common(&["fe80::1/64"], &["fe80::1/64"]), None);
        assert_eq!(common(&["169.254.1.1/16"], &["169.254.2.1/16"]), None);
        assert_eq!(common(&["10.64.0.2/32"], &["10.64.0.2/32"]), None);
        assert_eq!(common(&["127.0.0.1/8"], &["127.0.0.1/8"]), None);
        let lan = Some("fd00:1::/64".to_string());
        assert_eq!(
            common(&["10.0.0.1/8", "fd00:1::1/64"], &["fd00:1::2/64"]),
            lan
        );
    }
}
