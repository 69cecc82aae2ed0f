//! A group with or without a UDP port, as an argument of commands.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A group with or without a port: `239.1.2.3`, `239.1.2.3:5000`, `ff3e::1`, `[ff3e::1]:5000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupAndPort {
    /// The group.
    pub group: IpAddr,
    /// The port, if there is one.
    pub port: Option<u16>,
}

impl FromStr for GroupAndPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alone = text.parse().map(|group| Self { group, port: None });
        let both = || {
            text.parse().map(|address: SocketAddr| Self {
                group: address.ip(),
                port: Some(address.port()),
            })
        };
        alone.or_else(|_| both()).map_err(|_| {
            "not a group; write 239.1.2.3, 239.1.2.3:5000, ff3e::1 or [ff3e::1]:5000".into()
        })
    }
}
