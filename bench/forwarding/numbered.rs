//! A sender of numbered streams, on one path or the same packets on two.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcastor::pipeline::OutPacket;
use mcastor::probe::{PaceAction, Pacer};
use mcastor::sys::ifaddr::interfaces;
use mcastor::sys::netns::NetNs;
use mcastor::sys::transmit::Transmitter;

use crate::Outcome;
use crate::lab::{END, Lab};
use crate::sender::{SENDER_CORE, SendResult, SenderKind, packet, pin};

/// Most packets of one system call.
const BATCH: usize = 64;
const HEADERS: usize = 28;

/// Writes the number of a packet into its UDP payload.
pub type Numbering = fn(&mut [u8], u32);

/// A number of four bytes.
pub fn plain_number(payload: &mut [u8], number: u32) {
    payload[..4].copy_from_slice(&number.to_be_bytes());
}

/// The header of RTP (RFC 3550), with a clock of 90 kHz and 1,000 packets a second.
pub fn rtp(payload: &mut [u8], number: u32) {
    payload[..2].copy_from_slice(&[0x80, 33]);
    payload[2..4].copy_from_slice(&(number as u16).to_be_bytes());
    payload[4..8].copy_from_slice(&number.wrapping_mul(90).to_be_bytes());
}

/// RTP with MPEG-TS packets of one PID, whose continuity counters grow.
pub fn rtp_with_ts(payload: &mut [u8], number: u32) {
    rtp(payload, number);
    for (n, packet) in payload[12..].chunks_exact_mut(188).enumerate() {
        let counter = number.wrapping_mul(7).wrapping_add(n as u32) as u8 & 0xf;
        packet[..4].copy_from_slice(&[0x47, 1, 0, 0x10 | counter]);
    }
}

/// The sender. The numbers of its streams grow from one call to the next.
pub struct NumberedSender {
    paths: Vec<Transmitter>,
    /// The packets of some turns of all streams.
    packets: Vec<Vec<u8>>,
    streams: usize,
    numbering: Numbering,
    /// The number of the first packet of each stream in `packets`.
    number: u32,
    /// The position in `packets`.
    next: usize,
}

impl NumberedSender {
    /// Returns a sender out of [`END`] of each of `paths`. `size` is that of the UDP payload.
    pub fn new(
        paths: &[&NetNs],
        streams: usize,
        size: usize,
        numbering: Numbering,
    ) -> Outcome<Self> {
        let open = |netns: &&NetNs| -> Outcome<Transmitter> {
            let open = || -> io::Result<Transmitter> {
                let all = interfaces()?;
                let found = all.iter().find(|i| i.name.as_str() == END);
                let found = found.ok_or_else(|| io::Error::other("no interface to send on"))?;
                Transmitter::open(found.index, 1, true)
            };
            Ok(netns.run(open)??)
        };
        let count = streams * BATCH.div_ceil(streams);
        let packets = (0..count).map(|n| packet(size, SenderKind::Raw.flow(n % streams)));
        Ok(Self {
            paths: paths.iter().map(open).collect::<Outcome<_>>()?,
            packets: packets.collect(),
            streams,
            numbering,
            number: 0,
            next: 0,
        })
    }

    /// Sends `rate` packets per second in total, on each path.
    pub fn send(
        &mut self,
        lab: &Lab,
        rate: f64,
        seconds: f64,
        stop: &AtomicBool,
    ) -> Outcome<SendResult> {
        let work = || -> Result<SendResult, String> {
            pin(SENDER_CORE).map_err(|e| e.to_string())?;
            let before = crate::meter::own_ns();
            let started = Instant::now();
            let packets = self.send_paced(rate, seconds, stop);
            Ok(SendResult {
                packets: packets.map_err(|e| e.to_string())?,
                seconds: started.elapsed().as_secs_f64(),
                thread_ns: crate::meter::own_ns().saturating_sub(before),
            })
        };
        Ok(lab.source.run(work)??)
    }

    fn send_paced(&mut self, rate: f64, seconds: f64, stop: &AtomicBool) -> io::Result<u64> {
        let max = (rate * seconds) as u64;
        let limit = Duration::from_secs_f64(seconds * 2.0);
        let mut pacer = Pacer::new(Some(rate));
        let (mut sent, started) = (0, Instant::now());
        while sent < max && started.elapsed() < limit && !stop.load(Ordering::Relaxed) {
            let due = match pacer.poll(started.elapsed()) {
                PaceAction::Sleep(pause) => {
                    std::thread::sleep(pause);
                    continue;
                }
                PaceAction::Send(due) => due.min(max - sent) as usize,
            };
            let batch = due.min(BATCH).min(self.packets.len() - self.next);
            self.send_batch(batch)?;
            sent += batch as u64;
            pacer.sent(batch as u64);
        }
        Ok(sent)
    }

    /// Sends the next `count` packets, on each path.
    fn send_batch(&mut self, count: usize) -> io::Result<()> {
        let batch = &mut self.packets[self.next..self.next + count];
        for (at, packet) in (self.next..).zip(batch.iter_mut()) {
            let number = self.number.wrapping_add((at / self.streams) as u32);
            (self.numbering)(&mut packet[HEADERS..], number);
        }
        for path in &mut self.paths {
            let mut done = 0;
            while done < count {
                match path.send(batch[done..].iter().map(|p| OutPacket::plain(p))) {
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                    Err(e) => return Err(e),
                }
            }
        }
        self.next += count;
        if self.next == self.packets.len() {
            self.next = 0;
            let turns = (self.packets.len() / self.streams) as u32;
            self.number = self.number.wrapping_add(turns);
        }
        Ok(())
    }
}
