//! Ethernet frames with membership messages, and floods of forged messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcastor::model::{Group, Source};
use mcastor::wire::membership;
use mcastor::wire::membership_message::{Generation, GroupRecord, MembershipMessage, RecordType};

use super::random::Random;
use super::{Injector, Ns};

/// Parses a group address.
pub fn group(addr: impl Into<IpAddr>) -> Group {
    Group::new(addr.into()).expect("a group")
}

/// Parses a source address.
pub fn source(addr: impl Into<IpAddr>) -> Source {
    Source::new(addr.into()).expect("a source")
}

/// Returns one record of a report.
pub fn record(kind: RecordType, group: Group, sources: Vec<Source>) -> GroupRecord {
    GroupRecord {
        kind,
        group,
        sources,
    }
}

/// Encodes a message as Ethernet frames.
pub fn frames(from: IpAddr, message: &MembershipMessage) -> Vec<Vec<u8>> {
    let packets = membership::build(message, from, 1500).expect("a message");
    let frame = |packet: &Vec<u8>| {
        let to = match packet[0] >> 4 {
            4 => IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).expect("IPv4")),
            _ => IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).expect("IPv6")),
        };
        super::frame::ethernet(to, packet)
    };
    packets.iter().map(frame).collect()
}

/// A thread that sends frames in turn at a constant rate. Dropping it stops the thread.
pub struct Flood {
    pub stop: Arc<AtomicBool>,
    pub sent: Arc<AtomicU64>,
    pub thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    /// Starts to send `frames` in turn, `per_second` in total.
    pub fn start(ns: &Ns, iface: &str, frames: Vec<Vec<u8>>, per_second: u32) -> Self {
        let inject = Injector::new(ns, iface);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            let mut next = frames.iter().cycle();
            let mut n = 0;
            while !stopped.load(Ordering::Acquire) {
                let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                // Limits the burst after the thread was delayed.
                n = n.max(due.saturating_sub(2000));
                while n < due {
                    if let Some(frame) = next.next() {
                        let _ = inject.try_send(frame);
                        count.fetch_add(1, Ordering::Release);
                    }
                    n += 1;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    /// Returns the number of frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns forged messages: reports of every type for random groups and sources, leaves of
/// `victim`, and corrupted messages.
pub fn forged_messages(v6: bool, victim: Group) -> Vec<Vec<u8>> {
    let mut random = Random::default();
    let mut all = Vec::new();
    while all.len() < 60_000 {
        let r = random.next();
        let (from, any, ssm): (IpAddr, Group, Group) = match v6 {
            false => (
                Ipv4Addr::from(0x0a40_0000 | (r as u32 & 0x003f_ffff)).into(),
                group(Ipv4Addr::from(0xef00_0000 | (r >> 32) as u32 >> 8)),
                group(Ipv4Addr::from(0xe801_0000 | (r >> 48) as u32)),
            ),
            true => {
                let low = u128::from(r);
                (
                    Ipv6Addr::from((0xfe80_u128 << 112) | low).into(),
                    group(Ipv6Addr::from((0xff0e_u128 << 112) | (low >> 8))),
                    group(Ipv6Addr::from(
                        (0xff3e_u128 << 112) | 0x8000_0000 | (low >> 48),
                    )),
                )
            }
        };
        let random_sources = |random: &mut Random, count: u32| -> Vec<Source> {
            let one = |_| {
                let n = random.next();
                match v6 {
                    false => source(Ipv4Addr::from(0x0b00_0000 | (n as u32 >> 8))),
                    true => source(Ipv6Addr::from((0x2001_u128 << 112) | u128::from(n))),
                }
            };
            (0..count).map(one).collect()
        };
        let single =
            |kind, group, sources| MembershipMessage::Records(vec![record(kind, group, sources)]);
        let message = match random.below(10) {
            0..4 => single(RecordType::ChangeToExclude, any, vec![]),
            4 => single(
                RecordType::AllowNewSources,
                ssm,
                random_sources(&mut random, 80),
            ),
            5 => single(
                RecordType::ModeIsExclude,
                any,
                random_sources(&mut random, 20),
            ),
            6 => MembershipMessage::Report {
                generation: Generation::Two,
                group: any,
            },
            7 => MembershipMessage::Leave { group: victim },
            8 => single(RecordType::ChangeToInclude, victim, vec![]),
            _ => single(RecordType::BlockOldSources, any, vec![]),
        };
        let mut encoded = frames(from, &message);
        if random.below(20) == 0
            && let Some(frame) = encoded.first_mut()
        {
            let offset = 14 + random.below(frame.len() - 14);
            frame[offset] = random.next() as u8;
        }
        all.extend(encoded);
    }
    all
}
