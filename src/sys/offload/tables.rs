//! The tables of the offload program, in memory that this process shares with the kernel. The
//! layouts are those of `forward.c`.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::shared_mapping::SharedMapping;
use crate::model::{IfIndex, MacAddress};

/// Number of interfaces that may have the program.
pub const MAX_PORTS: usize = 256;
/// Largest number of egresses of a flow.
pub const MAX_EGRESSES: usize = 64;

/// The position of a flow in its table.
pub type FlowSlot = u32;
/// The position of an action in its table.
pub type ActionSlot = u16;
/// The position of an interface in its table.
pub type PortSlot = u16;

/// The key of a flow: `struct flow_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFlowKey {
    ifindex: u32,
    version: u32,
    source: [u8; 16],
    group: [u8; 16],
}

// SAFETY: integers without padding, so every byte is initialised and every value is valid.
unsafe impl aya::Pod for KernelFlowKey {}

impl KernelFlowKey {
    /// Returns the key of an (S,G) on an ingress. Source and group have the same IP version.
    pub fn new(ingress: IfIndex, source: IpAddr, group: IpAddr) -> Self {
        let bytes = |address: IpAddr| {
            let mut bytes = [0; 16];
            match address {
                IpAddr::V4(a) => bytes[..4].copy_from_slice(&a.octets()),
                IpAddr::V6(a) => bytes = a.octets(),
            }
            bytes
        };
        Self {
            ifindex: ingress.get(),
            version: if group.is_ipv4() { 4 } else { 6 },
            source: bytes(source),
            group: bytes(group),
        }
    }
}

/// Who forwards the packets of a flow: `enum state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HandOverState {
    /// This process.
    Captured = 0,
    /// This process, until it has sent all packets that it captured; then the kernel.
    Armed = 1,
    /// The kernel.
    Offloaded = 2,
}

/// How the kernel treats the packets of a flow: `control` of `struct flow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowControl {
    /// Who forwards them.
    pub state: HandOverState,
    /// Packets with a TTL or hop limit of at most this are left to this process.
    pub min_ttl: u8,
    /// Longer IP packets are left to this process.
    pub max_len: u16,
    /// The ingress.
    pub port: PortSlot,
    /// What is done with them.
    pub action: ActionSlot,
}

impl FlowControl {
    fn word(self) -> u64 {
        self.state as u64
            | u64::from(self.min_ttl) << 8
            | u64::from(self.max_len) << 16
            | u64::from(self.port) << 32
            | u64::from(self.action) << 48
    }

    fn from_word(word: u64) -> Self {
        Self {
            state: match word as u8 {
                0 => HandOverState::Captured,
                1 => HandOverState::Armed,
                _ => HandOverState::Offloaded,
            },
            min_ttl: (word >> 8) as u8,
            max_len: (word >> 16) as u16,
            port: (word >> 32) as u16,
            action: (word >> 48) as u16,
        }
    }
}

/// A flow: `struct flow`. The kernel changes it at any time.
#[repr(C, align(64))]
pub struct KernelFlowRecord {
    control: AtomicU64,
    seen: AtomicU64,
    queued: AtomicU64,
    sent: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    unused: AtomicU64,
}

impl KernelFlowRecord {
    /// Returns how its packets are treated.
    pub fn control(&self) -> FlowControl {
        FlowControl::from_word(self.control.load(Ordering::Acquire))
    }

    /// Prepares an unused record. Its action must be written before.
    pub fn start(&self, control: FlowControl) {
        let counts = [&self.seen, &self.queued, &self.sent];
        for count in counts
            .into_iter()
            .chain([&self.packets, &self.bytes, &self.failed])
        {
            count.store(0, Ordering::Relaxed);
        }
        self.control.store(control.word(), Ordering::Release);
    }

    /// Changes how its packets are treated. `None` changes nothing.
    pub fn update(&self, change: impl Fn(FlowControl) -> Option<FlowControl>) -> FlowControl {
        let word = |word| change(FlowControl::from_word(word)).map(FlowControl::word);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let (Ok(before) | Err(before)) = self.control.fetch_update(order.0, order.1, word);
        FlowControl::from_word(before)
    }

    /// Leaves the next packets to this process.
    pub fn withdraw(&self) -> FlowControl {
        self.update(|control| {
            Some(FlowControl {
                state: HandOverState::Captured,
                ..control
            })
        })
    }

    /// Returns the packets that were captured. Each is counted before it is in the queue of the
    /// capture socket.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Returns the packets of [`KernelFlowRecord::seen`] that are in the queue of the socket, or were.
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Acquire)
    }

    /// Returns the number that was last set by [`KernelFlowRecord::set_sent`].
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sets how many of the packets of [`KernelFlowRecord::seen`] this process has sent.
    pub fn set_sent(&self, sent: u64) {
        self.sent.store(sent, Ordering::Release);
    }

    /// Returns packets and IP bytes that the kernel forwarded, and how many of the packets could not
    /// be rewritten, and were sent on no path.
    pub fn forwarded(&self) -> (u64, u64, u64) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        // In this order, so that no packet has more failed copies than it has copies.
        let failed = load(&self.failed);
        (load(&self.packets), load(&self.bytes), failed)
    }
}

/// An egress of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelEgress {
    /// The interface.
    pub index: IfIndex,
    /// Its link-layer address.
    pub address: MacAddress,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EgressRecord {
    ifindex: u32,
    mac: [u8; 6],
    unused: [u8; 6],
    down: u64,
    failed: u64,
}

/// What is done with the packets of a flow: `struct action`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ActionRecord {
    egresses: u32,
    keep_original: u8,
    decrement: u8,
    set_ttl: u8,
    unused: [u8; 9],
    egress: [EgressRecord; MAX_EGRESSES],
}

/// What is done with the packets of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelAction {
    /// Where they leave, at most [`MAX_EGRESSES`].
    pub egresses: Vec<KernelEgress>,
    /// Whether they also continue to the host.
    pub keep_original: bool,
    /// Whether the TTL is decremented.
    pub decrement: bool,
    /// The TTL that they leave with; `None` if it depends on the one with which they arrived.
    pub set_ttl: Option<u8>,
}

/// An array map in the memory of this process. A [`KernelFlowRecord`] consists of atomics; action
/// records are written by [`KernelTables::write_action`] only, which says when.
struct MappedArray<T> {
    memory: SharedMapping,
    len: usize,
    kind: PhantomData<fn() -> T>,
}

impl<T> MappedArray<T> {
    /// Maps an array map with `len` elements of the size of `T`.
    fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Ok(Self {
            memory: SharedMapping::new(map, len * size_of::<T>())?,
            len,
            kind: PhantomData,
        })
    }

    fn element(&self, at: usize) -> Option<*mut T> {
        (at < self.len).then(|| self.memory.base().cast::<T>().wrapping_add(at))
    }
}

/// The flows and actions of the offload program.
pub struct KernelTables {
    flows: MappedArray<KernelFlowRecord>,
    actions: MappedArray<ActionRecord>,
}

impl KernelTables {
    /// Maps the two array maps, which have these numbers of elements.
    pub(super) fn new(
        (flows, flow_count): (BorrowedFd<'_>, usize),
        (actions, action_count): (BorrowedFd<'_>, usize),
    ) -> io::Result<Self> {
        Ok(Self {
            flows: MappedArray::new(flows, flow_count)?,
            actions: MappedArray::new(actions, action_count)?,
        })
    }

    /// Returns a flow; `None` for a position outside the table.
    pub fn flow(&self, slot: FlowSlot) -> Option<&KernelFlowRecord> {
        let record = self.flows.element(slot as usize)?;
        // SAFETY: the element is inside the mapping, which lives as long as `self`, and aligned:
        // the mapping starts at a page, and the size is a multiple of the alignment. All fields are
        // atomics, for which zeros and all other values are valid.
        Some(unsafe { &*record })
    }

    /// Returns the number of flows that the table holds.
    pub fn flow_capacity(&self) -> usize {
        self.flows.len
    }

    /// Returns the number of actions that the table holds.
    pub fn action_capacity(&self) -> usize {
        self.actions.len
    }

    /// Returns how many copies egress number `at` of an action refused since the action was written:
    /// because it was down or gone, and for another reason. The last copies of packets are not
    /// among them.
    pub fn refused(&self, slot: ActionSlot, at: usize) -> (u64, u64) {
        let Some(record) = self.actions.element(slot.into()) else {
            return (0, 0);
        };
        if at >= MAX_EGRESSES {
            return (0, 0);
        }
        // SAFETY: the element and its egress are inside the mapping. The two words are aligned, and
        // only the kernel changes them while the action is in use, so they are read as atomics.
        unsafe {
            let egress = &raw mut (*record).egress[at];
            let load = |word| AtomicU64::from_ptr(word).load(Ordering::Relaxed);
            (
                load(&raw mut (*egress).down),
                load(&raw mut (*egress).failed),
            )
        }
    }

    /// Writes an action that no flow refers to. One thread at a time may call this for a position.
    /// A flow with the action must be written afterwards.
    pub fn write_action(&self, slot: ActionSlot, action: &KernelAction) {
        let Some(record) = self.actions.element(slot.into()) else {
            return;
        };
        let none = EgressRecord {
            ifindex: 0,
            mac: [0; 6],
            unused: [0; 6],
            down: 0,
            failed: 0,
        };
        let mut egress = [none; MAX_EGRESSES];
        for (record, egress) in egress.iter_mut().zip(&action.egresses) {
            record.ifindex = egress.index.get();
            record.mac = egress.address.0;
        }
        let new = ActionRecord {
            egresses: action.egresses.len().min(MAX_EGRESSES) as u32,
            keep_original: action.keep_original.into(),
            decrement: action.decrement.into(),
            set_ttl: action.set_ttl.unwrap_or(0),
            unused: [0; 9],
            egress,
        };
        // SAFETY: the element is inside the mapping and aligned. No reference to it exists, and the
        // kernel does not read it, because no flow refers to it.
        unsafe { record.write_volatile(new) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_program() {
        assert_eq!(size_of::<KernelFlowKey>(), 40);
        assert_eq!(size_of::<KernelFlowRecord>(), 64);
        assert_eq!(size_of::<EgressRecord>(), 32);
        assert_eq!(size_of::<ActionRecord>(), 16 + 32 * MAX_EGRESSES);
    }

    #[test]
    fn control_word_keeps_all_fields() {
        for state in [
            HandOverState::Captured,
            HandOverState::Armed,
            HandOverState::Offloaded,
        ] {
            let control = FlowControl {
                state,
                min_ttl: 0xfe,
                max_len: 1500,
                port: 255,
                action: 4095,
            };
            assert_eq!(FlowControl::from_word(control.word()), control);
        }
        let control = FlowControl::from_word(0x0102_0003_05dc_0a02);
        assert_eq!((control.action, control.port), (0x0102, 3));
        assert_eq!((control.max_len, control.min_ttl), (1500, 10));
        assert_eq!(control.state, HandOverState::Offloaded);
    }
}
