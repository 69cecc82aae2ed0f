//! Limits of the answers of a relay, because the sender of a request may be forged.

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Instant;

use ahash::RandomState;

/// Number of buckets of each kind. Prefixes or gateways with the same hash share a bucket, so the
/// memory is constant.
const BUCKETS: usize = 4096;

/// Time in which an empty bucket fills up, in seconds.
const BURST_SECONDS: f32 = 2.0;

/// A token bucket.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f32,
    /// Milliseconds since the start.
    filled_at: u64,
}

impl Bucket {
    fn take(&mut self, now_ms: u64, per_second: f32) -> bool {
        let elapsed = now_ms.saturating_sub(self.filled_at) as f32 / 1000.0;
        self.tokens = (self.tokens + elapsed * per_second).min(per_second * BURST_SECONDS);
        self.filled_at = now_ms;
        let is_permitted = self.tokens >= 1.0;
        if is_permitted {
            self.tokens -= 1.0;
        }
        is_permitted
    }
}

/// Limits the answers to senders whose address is not verified: for each of their prefixes, /24 or
/// /48, and for all of them. Each gateway with a tunnel has a limit of its own, so that requests with
/// its address that others send are not all answered to it.
#[derive(Debug)]
pub(super) struct PrefixLimit {
    start: Instant,
    hasher: RandomState,
    per_prefix: f32,
    total: f32,
    prefixes: Vec<Bucket>,
    gateways: Vec<Bucket>,
    all: Bucket,
}

impl PrefixLimit {
    /// Creates limits in answers per second. Senders must not know `seed`.
    pub(super) fn new(now: Instant, per_prefix: u32, total: u32, seed: u32) -> Self {
        let bucket = |per_second: u32| Bucket {
            tokens: per_second as f32 * BURST_SECONDS,
            filled_at: 0,
        };
        Self {
            start: now,
            hasher: RandomState::with_seed(seed as usize),
            per_prefix: per_prefix as f32,
            total: total as f32,
            prefixes: vec![bucket(per_prefix); BUCKETS],
            gateways: vec![bucket(per_prefix); BUCKETS],
            all: bucket(total),
        }
    }

    /// Returns whether an answer to `sender` without a tunnel is permitted, and counts it.
    pub(super) fn permits(&mut self, now: Instant, sender: IpAddr) -> bool {
        let now_ms = self.ms(now);
        let position = self.hash(prefix(sender)) as usize % BUCKETS;
        let prefix = &mut self.prefixes[position];
        prefix.take(now_ms, self.per_prefix) && self.all.take(now_ms, self.total)
    }

    /// Returns whether an answer to a gateway with a tunnel is permitted, and counts it.
    pub(super) fn permits_gateway(&mut self, now: Instant, gateway: SocketAddr) -> bool {
        let now_ms = self.ms(now);
        let position = self.hash(gateway) as usize % BUCKETS;
        self.gateways[position].take(now_ms, self.per_prefix)
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }
}

/// Returns all socket addresses in the prefix of an address.
pub(super) fn prefix_range(address: IpAddr) -> RangeInclusive<SocketAddr> {
    let [first, last]: [IpAddr; 2] = match address {
        IpAddr::V4(addr) => {
            let host = 0xff;
            [addr.to_bits() & !host, addr.to_bits() | host].map(|bits| Ipv4Addr::from(bits).into())
        }
        IpAddr::V6(addr) => {
            let host = u128::MAX >> 48;
            [addr.to_bits() & !host, addr.to_bits() | host].map(|bits| Ipv6Addr::from(bits).into())
        }
    };
    SocketAddr::new(first, 0)..=SocketAddr::new(last, u16::MAX)
}

/// Returns the prefix of an address, as bits, and its IP version.
fn prefix(sender: IpAddr) -> (bool, u64) {
    match sender {
        IpAddr::V4(addr) => (false, u64::from(addr.to_bits() >> 8)),
        IpAddr::V6(addr) => (true, (addr.to_bits() >> 80) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_prefix_cannot_use_up_the_answers_of_others() {
        let t0 = Instant::now();
        let mut limit = PrefixLimit::new(t0, 10, 1000, 1);
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        let permitted = (0..1000).filter(|_| limit.permits(t0, flood)).count();
        assert_eq!(permitted, 20);
        assert!(!limit.permits(t0, "192.0.2.200".parse().unwrap()));
        assert!(limit.permits(t0, "198.51.100.1".parse().unwrap()));
        assert!(limit.permits(t0, "2001:db8::1".parse().unwrap()));
        let later = t0 + Duration::from_secs(1);
        let permitted = (0..1000).filter(|_| limit.permits(later, flood)).count();
        assert_eq!(permitted, 10);
    }

    #[test]
    fn prefix_range_has_the_addresses_of_the_prefix() {
        for (address, inside, outside) in [
            ("192.0.2.7", "192.0.2.255:65535", "192.0.3.0:1"),
            (
                "2001:db8:1:2::",
                "[2001:db8:1:ffff::9]:9",
                "[2001:db8:2::]:1",
            ),
        ] {
            let range = prefix_range(address.parse().unwrap());
            assert!(range.contains(&inside.parse().unwrap()), "{inside}");
            assert!(!range.contains(&outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn gateway_with_a_tunnel_has_its_own_limit() {
        let t0 = Instant::now();
        let mut limit = PrefixLimit::new(t0, 10, 20, 1);
        let gateway = |port: u16| SocketAddr::new([192, 0, 2, 1].into(), port);
        let permitted = (0..1000).filter(|_| limit.permits_gateway(t0, gateway(1)));
        assert_eq!(permitted.count(), 20);
        assert!(limit.permits_gateway(t0, gateway(2)));
        assert!(limit.permits(t0, gateway(1).ip()));
    }

    #[test]
    fn all_prefixes_share_a_limit() {
        let t0 = Instant::now();
        let mut limit = PrefixLimit::new(t0, 10, 1000, 1);
        let permitted = (0..100_000u32).filter(|n| {
            let sender = std::net::Ipv4Addr::from_bits(0x0a00_0000 + (n << 8));
            limit.permits(t0, sender.into())
        });
        assert_eq!(permitted.count(), 2000);
    }
}
