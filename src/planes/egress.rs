//! Sending decided packets out of one egress: fragmenting, retrying, counting.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{Load, Slot, Transmit};
use crate::forward::DropReason;
use crate::forward::fragment::fragment;
use crate::table::PathId;

/// How far a queue got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All is sent or counted as dropped.
    Done,
    /// The egress takes no more for now; go on when it is writable.
    Blocked,
}

/// What became of the packets of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Packets and bytes per path, in the order they were sent. Fragments count as packets:
    /// these are the packets on the wire.
    pub paths: Vec<(PathId, u64, u64)>,
    /// When the packets sent were received, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: Vec<u64>,
    /// Packets dropped, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// The last error the kernel gave for a packet that was dropped.
    pub error: Option<(DropReason, i32)>,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            received_ns: Vec::new(),
            dropped: [0; DropReason::COUNT],
            error: None,
        }
    }
}

impl Sent {
    fn count(&mut self, slot: &Slot, bytes: u64) {
        match self.paths.last_mut() {
            Some((path, packets, sum)) if *path == slot.path => {
                *packets += 1;
                *sum += bytes;
            }
            _ => self.paths.push((slot.path, 1, bytes)),
        }
        self.received_ns.push(slot.received_ns);
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.paths.clear();
        self.received_ns.clear();
        self.dropped.fill(0);
        self.error = None;
    }
}

/// Packets of one load that leave on one egress, some of them perhaps as fragments.
#[derive(Default)]
pub struct EgressQueue {
    load: Option<Arc<Load>>,
    slots: Vec<Slot>,
    /// What goes to the kernel: the slot, and for a fragment its range in `fragments`.
    packets: Vec<(u32, Option<Range<u32>>)>,
    fragments: Vec<u8>,
    next: usize,
}

impl EgressQueue {
    /// Takes the packets of a load. The queue must be empty.
    pub fn fill(&mut self, load: Arc<Load>, slots: Vec<Slot>, mtu: usize, sent: &mut Sent) {
        debug_assert!(self.is_empty());
        self.packets.clear();
        self.fragments.clear();
        self.next = 0;
        for (i, slot) in slots.iter().enumerate() {
            let i = i as u32;
            if slot.len as usize <= mtu {
                self.packets.push((i, None));
                continue;
            }
            let packets = &mut self.packets;
            let cut = fragment(load.packet(slot), mtu, &mut self.fragments, |r| {
                packets.push((i, Some(r.start as u32..r.end as u32)));
            });
            if let Err(reason) = cut {
                sent.dropped[reason as usize] += 1;
            }
        }
        self.slots = slots;
        self.load = Some(load);
    }

    /// True where nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.next >= self.packets.len()
    }

    /// Sends what can be sent now.
    pub fn drive(&mut self, transmit: &mut dyn Transmit, sent: &mut Sent) -> Progress {
        let Some(load) = &self.load else {
            return Progress::Done;
        };
        while self.next < self.packets.len() {
            let (slots, fragments) = (&self.slots, &self.fragments);
            let bytes = |(slot, range): &(u32, Option<Range<u32>>)| match range {
                Some(r) => &fragments[r.start as usize..r.end as usize],
                None => load.packet(&slots[*slot as usize]),
            };
            let left = &self.packets[self.next..];
            let took = match transmit.send(&mut left.iter().map(bytes)) {
                Ok(took) => took.min(left.len()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let reason = reason_of(&e);
                    sent.dropped[reason as usize] += 1;
                    sent.error = Some((reason, e.raw_os_error().unwrap_or_default()));
                    self.next += 1;
                    continue;
                }
            };
            for packet in &left[..took] {
                sent.count(&slots[packet.0 as usize], bytes(packet).len() as u64);
            }
            self.next += took;
        }
        // Lets go of the batch: its memory goes back to where packets come in.
        self.load = None;
        Progress::Done
    }

    /// Counts everything left as dropped.
    pub fn abandon(&mut self, reason: DropReason, sent: &mut Sent) {
        sent.dropped[reason as usize] += (self.packets.len() - self.next) as u64;
        self.next = self.packets.len();
        self.load = None;
    }
}

fn reason_of(e: &io::Error) -> DropReason {
    match e.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => DropReason::EgressDown,
        Some(libc::ENOBUFS) => DropReason::EgressBusy,
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        _ => DropReason::SendFailed,
    }
}
