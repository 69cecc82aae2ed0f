//! Response MACs of a relay (RFC 7450 section 5.3.5).
//!
//! A MAC proves that a gateway receives what is sent to its address. The relay stores nothing for
//! it: it computes the MAC anew from the address and the nonce of each update.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ring::hmac;

use super::random::AmtRandom;
use super::saved::SavedSecrets;
use crate::model::ClockReading;
use crate::wire::amt::ResponseMac;

/// A secret.
struct Secret {
    bytes: [u8; 32],
    key: hmac::Key,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    fn new(bytes: [u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Self { bytes, key }
    }
}

/// The secrets of a relay. The present one changes regularly, and the former one is accepted until
/// the next change.
#[derive(Debug)]
pub(super) struct MacSecrets {
    present: Secret,
    former: Secret,
    lifetime: Duration,
    changes_at: Instant,
}

impl MacSecrets {
    /// Creates secrets that change after each `lifetime`.
    pub(super) fn new(now: Instant, lifetime: Duration, random: &mut AmtRandom) -> Self {
        Self {
            present: Secret::new(random.bytes()),
            former: Secret::new(random.bytes()),
            lifetime,
            changes_at: now + lifetime,
        }
    }

    /// Continues the secrets of another process.
    pub(super) fn restore(&mut self, clock: &ClockReading, saved: &SavedSecrets) {
        self.present = Secret::new(saved.present);
        self.former = Secret::new(saved.former);
        let latest = clock.now + self.lifetime;
        self.changes_at = clock.to_instant(saved.changes_at).min(latest);
    }

    /// Returns the secrets as data.
    pub(super) fn saved(&self, clock: &ClockReading) -> SavedSecrets {
        SavedSecrets {
            present: self.present.bytes,
            former: self.former.bytes,
            changes_at: clock.to_boot(self.changes_at),
        }
    }

    /// Returns when the secret changes.
    pub(super) fn changes_at(&self) -> Instant {
        self.changes_at
    }

    /// Changes the secret if that is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, random: &mut AmtRandom) {
        if now < self.changes_at {
            return;
        }
        let is_late = now >= self.changes_at + self.lifetime;
        let next = Secret::new(random.bytes());
        self.former = std::mem::replace(&mut self.present, next);
        if is_late {
            self.former = Secret::new(random.bytes());
        }
        self.changes_at = now + self.lifetime;
    }

    /// Returns the MAC of a gateway. The protocol is not part of it: the Linux driver sends one
    /// nonce for both and keeps the last MAC.
    pub(super) fn mac(&self, gateway: SocketAddr, nonce: u32) -> ResponseMac {
        mac(&self.present, gateway, nonce)
    }

    /// Returns whether a MAC is that of the gateway, by the present or the former secret.
    pub(super) fn is_valid(&self, gateway: SocketAddr, nonce: u32, received: ResponseMac) -> bool {
        [&self.present, &self.former].into_iter().any(|secret| {
            let expected = mac(secret, gateway, nonce);
            // Looks at all bytes, so that the time does not tell how many are right.
            let pairs = expected.0.iter().zip(received.0);
            pairs.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
        })
    }
}

fn mac(secret: &Secret, gateway: SocketAddr, nonce: u32) -> ResponseMac {
    let mut context = hmac::Context::with_key(&secret.key);
    match gateway.ip() {
        IpAddr::V4(addr) => context.update(&addr.octets()),
        IpAddr::V6(addr) => context.update(&addr.octets()),
    }
    context.update(&gateway.port().to_be_bytes());
    context.update(&nonce.to_be_bytes());
    let mut mac = ResponseMac::default();
    mac.0.copy_from_slice(&context.sign().as_ref()[..6]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_is_valid_for_one_address_and_nonce_until_the_second_change() {
        let t0 = Instant::now();
        let lifetime = Duration::from_secs(600);
        let mut random = AmtRandom::new([5; 32]);
        let mut secrets = MacSecrets::new(t0, lifetime, &mut random);
        let gateway: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let mac = secrets.mac(gateway, 7);
        let port: SocketAddr = "192.0.2.1:1001".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:1000".parse().unwrap();
        assert!(secrets.is_valid(gateway, 7, mac));
        assert!(!secrets.is_valid(gateway, 8, mac));
        assert!(!secrets.is_valid(port, 7, mac));
        assert!(!secrets.is_valid(other, 7, mac));
        let mut wrong = mac;
        wrong.0[5] ^= 1;
        assert!(!secrets.is_valid(gateway, 7, wrong));
        secrets.handle_timeout(t0 + lifetime, &mut random);
        assert!(secrets.is_valid(gateway, 7, mac));
        assert_ne!(secrets.mac(gateway, 7), mac);
        secrets.handle_timeout(t0 + 2 * lifetime, &mut random);
        assert!(!secrets.is_valid(gateway, 7, mac));
    }

    #[test]
    fn mac_is_invalid_if_both_changes_were_missed() {
        let t0 = Instant::now();
        let lifetime = Duration::from_secs(600);
        let mut random = AmtRandom::new([5; 32]);
        let mut secrets = MacSecrets::new(t0, lifetime, &mut random);
        let gateway: SocketAddr = "[2001:db8::1]:1000".parse().unwrap();
        let mac = secrets.mac(gateway, 7);
        secrets.handle_timeout(t0 + 3 * lifetime, &mut random);
        assert!(!secrets.is_valid(gateway, 7, mac));
    }
}
