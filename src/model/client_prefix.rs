//! Which addresses count as one client.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The length of the prefix that an IPv6 client has, and in which it may choose any address.
const IPV6_PREFIX_LEN: u32 = 64;

/// An IPv4 address, or an IPv6 prefix of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientPrefix(IpAddr);

impl ClientPrefix {
    /// Returns the prefix of an address. An IPv4-mapped address counts as IPv4.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => {
                let mask = u128::MAX << (128 - IPV6_PREFIX_LEN);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        })
    }
}

impl fmt::Display for ClientPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(prefix) => write!(f, "{prefix}/{IPV6_PREFIX_LEN}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_clients_are_their_prefix_and_mapped_ones_ipv4() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:a:b:c:d", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ] {
            let prefix = ClientPrefix::of(address.parse().unwrap());
            assert_eq!(prefix.to_string(), expected);
        }
    }
}
