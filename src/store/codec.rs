//! The format of stored state: a line of text and a JSON document.
//!
//! The line holds the name and version of the format, the checksum (CRC-32) and the length of the
//! document: `mcastor-state 1 0123abcd 1234`. JSON, because the values are names, addresses and
//! numbers that an administrator may want to read, and the program needs it anyway. The checksum
//! detects damage. Against forgery, every value is validated, and the file is readable and writable
//! for its owner only.

use std::io;

use serde::{Deserialize, Serialize};

use super::records::Records;
use crate::model::BootTime;

/// The version of the format. Another version is refused.
pub const VERSION: u32 = 1;

/// Limit of the size. The largest proxies take about a tenth of it.
pub const MAX_BYTES: usize = 64 << 20;

const NAME: &str = "mcastor-state";

/// Longest first line.
const MAX_HEADER: usize = 64;

/// The longest file: a header and a body.
pub const MAX_FILE: usize = MAX_BYTES + MAX_HEADER;

/// The stored state, with the time at which it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredState {
    /// Identifies the boot of the machine.
    pub boot_id: String,
    /// When the state was written.
    pub written_at: BootTime,
    /// The state.
    pub records: Records,
}

/// Why stored state cannot be used, or state cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The first line is not that of this format.
    #[error("it is not a state file of mcastor")]
    NotState,
    /// Another version of this program wrote it.
    #[error("it has version {0} of the format, this program uses version {VERSION}")]
    OtherVersion(u32),
    /// The length or the checksum is wrong.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The checksum is right, but the values are not.
    #[error("its content is not valid: {0}")]
    Invalid(String),
    /// It exceeds [`MAX_BYTES`].
    #[error("it is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// The machine has been restarted since.
    #[error("it was written before the last boot of this machine")]
    OtherBoot,
    /// It was written at a time that has not come yet, so the boot clock is another one.
    #[error("it was written with another boot clock, such as that of another time namespace")]
    OtherClock,
}

/// Returns the bytes of a state.
///
/// # Errors
/// [`StateError::TooLarge`].
pub fn encode(state: &StoredState) -> Result<Vec<u8>, StateError> {
    let mut body = Limited(Vec::new());
    serde_json::to_writer(&mut body, state).map_err(|_| StateError::TooLarge)?;
    let body = body.0;
    let mut bytes = header(&body).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

/// Returns the state of these bytes, if it is of this boot and not from the future.
///
/// # Errors
/// The reason why it cannot be used.
pub fn decode(bytes: &[u8], boot_id: &str, now: BootTime) -> Result<StoredState, StateError> {
    if bytes.len() > MAX_FILE {
        return Err(StateError::TooLarge);
    }
    let line_end = bytes.iter().take(MAX_HEADER).position(|b| *b == b'\n');
    let line_end = line_end.ok_or(StateError::NotState)?;
    let (line, body) = bytes.split_at(line_end + 1);
    let text = std::str::from_utf8(line).map_err(|_| StateError::NotState)?;
    let rest = text.strip_prefix(NAME).and_then(|t| t.strip_prefix(' '));
    let version = rest.and_then(|rest| rest.split(' ').next());
    let version = version.and_then(|v| v.parse::<u32>().ok());
    let version = version.ok_or(StateError::NotState)?;
    if version != VERSION {
        return Err(StateError::OtherVersion(version));
    }
    let length = text.trim_end().rsplit(' ').next();
    if length.and_then(|l| l.parse::<usize>().ok()) != Some(body.len()) {
        return Err(StateError::Damaged("its length is wrong"));
    }
    if text != header(body) {
        return Err(StateError::Damaged("its checksum is wrong"));
    }
    let state: StoredState =
        serde_json::from_slice(body).map_err(|e| StateError::Invalid(e.to_string()))?;
    if state.boot_id != boot_id {
        return Err(StateError::OtherBoot);
    }
    if state.written_at > now {
        return Err(StateError::OtherClock);
    }
    Ok(state)
}

fn header(body: &[u8]) -> String {
    let checksum = crc32fast::hash(body);
    format!("{NAME} {VERSION} {checksum:08x} {}\n", body.len())
}

/// Bytes up to [`MAX_BYTES`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::membership::saved::{
        SavedDownstream, SavedGroup, SavedInterface, SavedQuerier, SavedQueries,
    };
    use crate::mnat::saved::{SavedMapping, SavedMnat, SavedTransition, SavedWatcher};

    const BOOT: &str = "b32f4a2c-0000-4000-8000-000000000001";

    fn time(ms: u64) -> BootTime {
        BootTime::from_ms(ms)
    }

    fn state() -> StoredState {
        let group = SavedGroup {
            group: "239.1.2.3".parse().unwrap(),
            group_timer: Some(time(70_000)),
            sources: vec![
                ("10.0.0.1".parse().unwrap(), None),
                ("10.0.0.2".parse().unwrap(), Some(time(61_000))),
            ],
            older_hosts_until: [None, Some(time(65_000))],
            last_reporter: [10, 0, 0, 9].into(),
            slot_of: None,
            queries: Some(SavedQueries {
                group: Some((2, time(51_000))),
                sources: vec![("10.0.0.2".parse().unwrap(), 1)],
                sources_due: Some(time(51_500)),
            }),
        };
        let igmp = SavedDownstream {
            generation: 3,
            querier: SavedQuerier::ThisRouter {
                address: [10, 0, 0, 254].into(),
                next_query: time(55_000),
                startup_queries_left: 1,
            },
            groups: vec![group],
        };
        let mld = SavedDownstream {
            generation: 3,
            querier: SavedQuerier::OtherRouter {
                address: "fe80::1".parse().unwrap(),
                expires: time(90_000),
                next_best: Some(("fe80::2".parse().unwrap(), time(91_000))),
                robustness: 2,
                query_interval_ms: 125_000,
            },
            groups: Vec::new(),
        };
        let interface = SavedInterface {
            igmp: Some(igmp),
            mld: Some(mld),
        };
        let channel = |s: &str, g: &str| crate::mnat::Channel::parse(Some(s), g).unwrap();
        let mnat = SavedMnat {
            role: "egress".into(),
            server: ("mnat.example.net".into(), 443),
            watcher: Some(SavedWatcher {
                id: "w-1".into(),
                refresh_interval_ms: 20_000,
            }),
            mappings: vec![SavedMapping {
                global: channel("10.0.0.1", "232.1.1.1"),
                local: channel("10.9.9.9", "232.2.2.2"),
                confirmed: time(48_000),
            }],
            joins: vec![channel("10.0.0.1", "232.1.1.1")],
            transitions: vec![SavedTransition {
                global: channel("10.0.0.1", "232.1.1.1"),
                current: channel("10.9.9.9", "232.2.2.2"),
                pending: vec![(channel("10.9.9.9", "232.2.2.1"), time(90_000))],
            }],
        };
        StoredState {
            boot_id: BOOT.into(),
            written_at: time(50_000),
            records: Records {
                interfaces: [("eth1".parse().unwrap(), Arc::new(interface))].into(),
                mnat: Some(Arc::new(mnat)),
                counters: Arc::default(),
                received: Arc::default(),
            },
        }
    }

    fn read(bytes: &[u8]) -> Result<StoredState, StateError> {
        decode(bytes, BOOT, time(50_001))
    }

    #[test]
    fn state_is_read_as_it_was_written() {
        let bytes = encode(&state()).unwrap();
        assert_eq!(read(&bytes), Ok(state()));
        assert!(bytes.starts_with(b"mcastor-state 1 "));
    }

    #[test]
    fn truncation_at_every_byte_is_refused() {
        let bytes = encode(&state()).unwrap();
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "{len} bytes");
        }
        let longer = [&bytes[..], b" "].concat();
        assert_eq!(
            read(&longer),
            Err(StateError::Damaged("its length is wrong"))
        );
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = encode(&state()).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn other_version_boot_and_clock_are_refused() {
        let bytes = encode(&state()).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let newer = text.replacen("mcastor-state 1 ", "mcastor-state 2 ", 1);
        assert_eq!(read(newer.as_bytes()), Err(StateError::OtherVersion(2)));
        let other_boot = decode(&bytes, "another", time(50_001));
        assert_eq!(other_boot, Err(StateError::OtherBoot));
        let earlier = decode(&bytes, BOOT, time(49_999));
        assert_eq!(earlier, Err(StateError::OtherClock));
        assert_eq!(read(b"#!/bin/sh\n"), Err(StateError::NotState));
    }

    /// Returns a file whose checksum is right, as a forger would write it.
    fn forged(body: &str) -> Vec<u8> {
        [header(body.as_bytes()).as_bytes(), body.as_bytes()].concat()
    }

    #[test]
    fn forged_values_with_a_right_checksum_are_refused() {
        let text = String::from_utf8(encode(&state()).unwrap()).unwrap();
        let body = text.split_once('\n').unwrap().1;
        assert_eq!(read(&forged(body)), Ok(state()));
        for (valid, forged_value) in [
            ("239.1.2.3", "10.1.2.3"),
            ("\"10.0.0.2\"", "\"224.0.0.2\""),
            ("\"eth1\"", "\"a name that is too long\""),
            ("\"eth1\"", "\"../x\""),
            ("70000", "-1"),
            ("{\"boot_id\"", "{\"more\":1,\"boot_id\""),
        ] {
            assert!(body.contains(valid), "{valid}");
            let read = read(&forged(&body.replacen(valid, forged_value, 1)));
            assert!(
                matches!(read, Err(StateError::Invalid(_))),
                "{forged_value}: {read:?}"
            );
        }
    }

    #[test]
    fn state_above_the_limit_is_not_written() {
        let mut large = state();
        let mut mnat = SavedMnat::clone(large.records.mnat.as_ref().unwrap());
        mnat.role = "x".repeat(MAX_BYTES);
        large.records.mnat = Some(Arc::new(mnat));
        assert_eq!(encode(&large), Err(StateError::TooLarge));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn damaged_state_is_refused(
            at in any::<prop::sample::Index>(),
            removed in 0usize..20,
            inserted in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = encode(&state()).unwrap();
            let at = at.index(bytes.len());
            let end = (at + removed).min(bytes.len());
            let damaged = [&bytes[..at], &inserted, &bytes[end..]].concat();
            prop_assume!(damaged != bytes);
            prop_assert!(read(&damaged).is_err());
        }

        /// A body with a right checksum and random changes does not panic.
        #[test]
        fn forged_bodies_never_panic(
            at in any::<prop::sample::Index>(),
            inserted in "[0-9a-f:.,\"\\[\\]{}]{0,6}",
        ) {
            let text = String::from_utf8(encode(&state()).unwrap()).unwrap();
            let body = text.split_once('\n').unwrap().1;
            let at = at.index(body.len());
            let body = format!("{}{inserted}{}", &body[..at], &body[at..]);
            let _ = read(&forged(&body));
        }
    }
}
