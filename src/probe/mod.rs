//! Test streams: packet format and pacing of `mcastor send`, and statistics of `mcastor recv`.
//!
//! This module opens no socket and reads no clock. The subcommands pass in packets and times.

pub mod captured;
pub mod error;
pub mod pace;
pub mod packet_ring;
pub mod payload;
pub mod record_events;
mod sequence_window;
pub mod stats;

pub use error::StreamError;
pub use pace::{PaceAction, Pacer};
pub use payload::{Payload, PayloadError};
pub use stats::{DatagramStats, Latency, ProbeDatagram, ReceiverStats, StreamReport, StreamStats};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Group;

/// Returns `count` consecutive groups that start with `first`; `None` if they would pass the end of
/// the multicast range.
pub fn consecutive_groups(first: Group, count: u16) -> Option<Vec<Group>> {
    (0..count)
        .map(|i| {
            let addr: IpAddr = match first.addr() {
                IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits().checked_add(i.into())?).into(),
                IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits().checked_add(i.into())?).into(),
            };
            Group::new(addr).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_groups_stay_multicast() {
        let groups = consecutive_groups("225.1.2.255".parse().unwrap(), 2).unwrap();
        assert_eq!(groups[1].to_string(), "225.1.3.0");
        assert!(consecutive_groups("239.255.255.255".parse().unwrap(), 2).is_none());
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert!(consecutive_groups(last, 1).is_some());
        assert!(consecutive_groups(last, 2).is_none());
    }
}
