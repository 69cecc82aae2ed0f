//! The tables of the offload program, in memory that this process shares with the kernel. The
//! layouts are those of `forward.c`.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::super::shared_mapping::SharedMapping;
use crate::model::{IfIndex, MacAddress};

/// Number of interfaces that may have the program.
pub const MAX_PORTS: usize = 256;
/// Largest number of egresses of a flow.
pub const MAX_EGRESSES: usize = 64;

/// The version of the layouts of the tables. It changes with them.
pub const LAYOUT: u32 = 1;

/// The position of a flow in its table.
pub type FlowSlot = u32;
/// The position of an action in its table.
pub type ActionSlot = u16;
/// The position of an interface in its table.
pub type PortSlot = u16;

/// Which of the two counters and rewrites of a flow its action has. It changes with the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Epoch {
    /// The first.
    #[default]
    Even,
    /// The second.
    Odd,
}

impl Epoch {
    /// Returns the other one.
    pub fn other(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }
}

/// How many flows and actions the tables hold.
#[derive(Debug, Clone, Copy)]
pub struct TableSizes {
    /// Flows.
    pub flows: u32,
    /// Actions, at most 65,536.
    pub actions: u32,
}

impl TableSizes {
    /// Returns the number of rewrites: two for each flow, one for each [`Epoch`].
    pub(super) fn rewrites(self) -> u32 {
        self.flows.saturating_mul(2)
    }

    /// Returns the memory of full tables in the kernel, in bytes. Without flows they take two
    /// thirds of it or more.
    pub fn bytes(self) -> u64 {
        // The kernel needs this much for an entry of a hash table besides key and value, and for
        // each of its buckets.
        const HASH_ENTRY: usize = 48;
        const BUCKET: u64 = 16;
        const VALUE: usize = size_of::<FlowSlot>().next_multiple_of(8);
        let flows = u64::from(self.flows);
        let entry = HASH_ENTRY
            + size_of::<KernelFlowKey>()
            + VALUE
            + size_of::<KernelFlowRecord>()
            + size_of::<CountedRecord>()
            + 2 * size_of::<RewriteRecord>();
        flows * entry as u64
            + flows.next_power_of_two() * BUCKET
            + u64::from(self.actions) * size_of::<ActionRecord>() as u64
    }
}

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
        Self {
            ifindex: ingress.get(),
            version: if group.is_ipv4() { 4 } else { 6 },
            source: address_bytes(source),
            group: address_bytes(group),
        }
    }

    /// Returns the ingress; `None` in a damaged table.
    pub fn ingress(&self) -> Option<IfIndex> {
        IfIndex::new(self.ifindex)
    }

    /// Returns source and group.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        let address = |bytes: [u8; 16]| match (self.version, bytes) {
            (4, [a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
            _ => bytes.into(),
        };
        (address(self.source), address(self.group))
    }
}

/// What a process says about itself in the tables: `struct instance`. In each layout it begins with
/// the layout and the mark.
#[repr(C)]
pub(super) struct InstanceRecord {
    layout: AtomicU32,
    mark: AtomicU32,
    alive: AtomicU64,
    orphan_after: AtomicU64,
}

/// The table with the only [`InstanceRecord`].
pub(super) struct InstanceTable(MappedArray<InstanceRecord>);

impl InstanceTable {
    /// Maps the table.
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(MappedArray::new(map, 1)?))
    }

    fn record(&self) -> &InstanceRecord {
        // SAFETY: the mapping has one element, lives as long as `self`, and starts at a page. All
        // fields are atomics, for which all values are valid. A map is as long as its pages, so this
        // holds also if another version of this program has made it with a shorter record.
        unsafe { &*self.0.memory.base().cast::<InstanceRecord>() }
    }

    /// Writes who this process is, and how long the kernel forwards without it.
    pub(super) fn write(&self, mark: u32, orphan_after: Duration) {
        let record = self.record();
        record.mark.store(mark, Ordering::Relaxed);
        let orphan_after = u64::try_from(orphan_after.as_nanos()).unwrap_or(u64::MAX);
        record.orphan_after.store(orphan_after, Ordering::Relaxed);
        record.layout.store(LAYOUT, Ordering::Release);
    }

    /// Returns the layout of the tables beside it.
    pub(super) fn layout(&self) -> u32 {
        self.record().layout.load(Ordering::Acquire)
    }

    /// Returns the mark of the process that wrote it.
    pub(super) fn mark(&self) -> u32 {
        self.record().mark.load(Ordering::Relaxed)
    }

    /// Returns when the process was last alive, by the boot clock.
    pub(super) fn alive(&self) -> Duration {
        Duration::from_nanos(self.record().alive.load(Ordering::Relaxed))
    }

    /// Writes when this process was last alive, by the boot clock.
    pub(super) fn set_alive(&self, at: Duration) {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.record().alive.store(at, Ordering::Relaxed);
    }
}

/// Who forwards the packets of a flow: `enum state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HandOverState {
    /// This process.
    Captured = 0,
    /// The kernel, if this process has sent all packets that it captured; otherwise this process.
    Offloaded = 1,
    /// This process, which must not hand it over: its action is not the right one.
    Kept = 2,
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
    /// The counter and the rewrite of the action.
    pub epoch: Epoch,
    /// The ingress.
    pub port: PortSlot,
    /// What is done with them.
    pub action: ActionSlot,
}

impl FlowControl {
    fn word(self) -> u64 {
        self.state as u64
            | (self.epoch as u64) << 2
            | u64::from(self.min_ttl) << 8
            | u64::from(self.max_len) << 16
            | u64::from(self.port) << 32
            | u64::from(self.action) << 48
    }

    fn from_word(word: u64) -> Self {
        Self {
            state: match word as u8 & 3 {
                0 => HandOverState::Captured,
                1 => HandOverState::Offloaded,
                _ => HandOverState::Kept,
            },
            epoch: match word >> 2 & 1 {
                0 => Epoch::Even,
                _ => Epoch::Odd,
            },
            min_ttl: (word >> 8) as u8,
            max_len: (word >> 16) as u16,
            port: (word >> 32) as u16 & 0x3fff,
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
    forwarded: [ForwardedRecord; 2],
}

#[repr(C)]
struct ForwardedRecord {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// What the kernel forwarded of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForwardedByKernel {
    /// Packets; a GSO packet counts as its segments.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

impl ForwardedByKernel {
    /// Returns what was forwarded beyond `earlier`.
    pub fn less(self, earlier: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

impl KernelFlowRecord {
    /// Returns how its packets are treated.
    pub fn control(&self) -> FlowControl {
        FlowControl::from_word(self.control.load(Ordering::Acquire))
    }

    /// Prepares an unused record. Its action must be written before.
    pub fn start(&self, control: FlowControl) {
        let forwarded = self.forwarded.iter().flat_map(|f| [&f.packets, &f.bytes]);
        let counts = [&self.seen, &self.queued, &self.sent];
        for count in counts.into_iter().chain(forwarded) {
            count.store(0, Ordering::Relaxed);
        }
        self.control.store(control.word(), Ordering::Release);
    }

    /// Adds what the kernel forwarded of the flow with other tables, to the present epoch.
    pub fn begin_with(&self, forwarded: ForwardedByKernel) {
        let counted = &self.forwarded[self.control().epoch as usize];
        counted
            .packets
            .fetch_add(forwarded.packets, Ordering::Relaxed);
        counted.bytes.fetch_add(forwarded.bytes, Ordering::Relaxed);
    }

    /// Changes how its packets are treated. Returns how they were treated before.
    pub fn update(&self, change: impl Fn(FlowControl) -> FlowControl) -> FlowControl {
        let word = |word| Some(change(FlowControl::from_word(word)).word());
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let (Ok(before) | Err(before)) = self.control.fetch_update(order.0, order.1, word);
        FlowControl::from_word(before)
    }

    /// Leaves the next packets to this process.
    pub fn withdraw(&self) {
        self.change_state(|state| match state {
            HandOverState::Kept => HandOverState::Kept,
            _ => HandOverState::Captured,
        });
    }

    /// Leaves the next packets to this process, which must not hand the flow over.
    pub fn keep(&self) {
        self.change_state(|_| HandOverState::Kept);
    }

    /// Lets this process hand the flow over. Returns whether it was not allowed before.
    pub fn allow(&self) -> bool {
        let before = self.change_state(|state| match state {
            HandOverState::Kept => HandOverState::Captured,
            other => other,
        });
        before == HandOverState::Kept
    }

    /// Hands the flow over: the kernel forwards its packets while [`KernelFlowRecord::sent`] is
    /// [`KernelFlowRecord::seen`].
    pub fn hand_over(&self) {
        self.change_state(|state| match state {
            HandOverState::Captured => HandOverState::Offloaded,
            other => other,
        });
    }

    /// Changes the state. Returns the one before.
    fn change_state(&self, change: impl Fn(HandOverState) -> HandOverState) -> HandOverState {
        self.update(|control| FlowControl {
            state: change(control.state),
            ..control
        })
        .state
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

    /// Returns what the kernel forwarded in an epoch.
    pub fn forwarded_in(&self, epoch: Epoch) -> ForwardedByKernel {
        let counted = &self.forwarded[epoch as usize];
        ForwardedByKernel {
            packets: counted.packets.load(Ordering::Relaxed),
            bytes: counted.bytes.load(Ordering::Relaxed),
        }
    }

    /// Returns what the kernel forwarded.
    pub fn forwarded(&self) -> ForwardedByKernel {
        let (even, odd) = (
            self.forwarded_in(Epoch::Even),
            self.forwarded_in(Epoch::Odd),
        );
        ForwardedByKernel {
            packets: even.packets + odd.packets,
            bytes: even.bytes + odd.bytes,
        }
    }
}

/// An egress of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelEgress {
    /// The interface.
    pub index: IfIndex,
    /// Its link-layer address.
    pub address: MacAddress,
    /// Whether the last copy of a packet goes directly to the other end of a veth, which must be in
    /// another network namespace.
    pub to_peer: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EgressRecord {
    ifindex: u32,
    mac: [u8; 6],
    to_peer: u8,
    unused: [u8; 5],
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
    rewrites: u8,
    failed: u64,
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
    /// Whether they get the addresses of the [`KernelRewrite`] of their flow.
    pub rewrites: bool,
}

/// The addresses and the port that the packets of a flow get, within their IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelRewrite {
    /// Source and group with which they arrive.
    pub from: (IpAddr, IpAddr),
    /// Source and group with which they leave.
    pub to: (IpAddr, IpAddr),
    /// The UDP destination port with which they leave; `None`: as they arrived.
    pub port: Option<NonZeroU16>,
}

/// `struct rewrite`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RewriteRecord {
    source: [u8; 16],
    group: [u8; 16],
    /// In the byte order of this machine, of words as they are in memory.
    change: u32,
    port: [u8; 2],
    unused: u16,
}

impl RewriteRecord {
    fn new(rewrite: &KernelRewrite) -> Self {
        let (source, group) = (address_bytes(rewrite.to.0), address_bytes(rewrite.to.1));
        let sum = |addresses: [[u8; 16]; 2]| {
            let words = addresses.as_flattened().chunks_exact(2);
            words
                .map(|w| u32::from(u16::from_ne_bytes([w[0], w[1]])))
                .sum::<u32>()
        };
        let fold = |sum: u32| {
            let sum = (sum & 0xffff) + (sum >> 16);
            (sum & 0xffff) + (sum >> 16)
        };
        let before = [address_bytes(rewrite.from.0), address_bytes(rewrite.from.1)];
        let less = !(fold(sum(before)) as u16);
        Self {
            source,
            group,
            change: fold(sum([source, group]) + u32::from(less)),
            port: rewrite.port.map_or([0; 2], |port| port.get().to_be_bytes()),
            unused: 0,
        }
    }
}

/// Returns the bytes of an address in the tables: those of IPv4 are followed by zeros.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(a) => bytes[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => bytes = a.octets(),
    }
    bytes
}

/// An array map in the memory of this process. A [`KernelFlowRecord`] consists of atomics; action
/// records are written by [`KernelTables::write_action`] only, which says when.
pub(super) struct MappedArray<T> {
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

/// What of a flow is in the stored counters of a process, by epoch: `struct counted`.
#[repr(C)]
struct CountedRecord {
    packets: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
}

/// The array maps of [`KernelTables`].
#[derive(Debug, Clone, Copy)]
pub(super) struct TableMaps<'fd> {
    pub(super) flows: BorrowedFd<'fd>,
    pub(super) counted: BorrowedFd<'fd>,
    pub(super) rewrites: BorrowedFd<'fd>,
    pub(super) actions: BorrowedFd<'fd>,
}

/// The flows and actions of the offload program.
pub struct KernelTables {
    flows: MappedArray<KernelFlowRecord>,
    counted: MappedArray<CountedRecord>,
    rewrites: MappedArray<RewriteRecord>,
    actions: MappedArray<ActionRecord>,
}

impl KernelTables {
    /// Maps the array maps, which have the numbers of elements for these sizes.
    pub(super) fn new(maps: TableMaps<'_>, sizes: TableSizes) -> io::Result<Self> {
        Ok(Self {
            flows: MappedArray::new(maps.flows, sizes.flows as usize)?,
            counted: MappedArray::new(maps.counted, sizes.flows as usize)?,
            rewrites: MappedArray::new(maps.rewrites, sizes.rewrites() as usize)?,
            actions: MappedArray::new(maps.actions, sizes.actions as usize)?,
        })
    }

    fn counted_record(&self, slot: FlowSlot) -> Option<&CountedRecord> {
        let record = self.counted.element(slot as usize)?;
        // SAFETY: the element is inside the mapping, which lives as long as `self`, and aligned. All
        // fields are atomics, for which all values are valid.
        Some(unsafe { &*record })
    }

    /// Returns what of a flow is in the stored counters of the process, of what was forwarded in an
    /// epoch.
    pub fn counted(&self, slot: FlowSlot, epoch: Epoch) -> ForwardedByKernel {
        let Some(record) = self.counted_record(slot) else {
            return ForwardedByKernel::default();
        };
        ForwardedByKernel {
            packets: record.packets[epoch as usize].load(Ordering::Relaxed),
            bytes: record.bytes[epoch as usize].load(Ordering::Relaxed),
        }
    }

    /// Sets what [`KernelTables::counted`] returns.
    pub fn set_counted(&self, slot: FlowSlot, epoch: Epoch, counted: ForwardedByKernel) {
        if let Some(record) = self.counted_record(slot) {
            record.packets[epoch as usize].store(counted.packets, Ordering::Relaxed);
            record.bytes[epoch as usize].store(counted.bytes, Ordering::Relaxed);
        }
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

    /// Returns how many packets with an action could not be changed, and were sent on no path, since
    /// the action was written.
    pub fn failed(&self, slot: ActionSlot) -> u64 {
        let Some(record) = self.actions.element(slot.into()) else {
            return 0;
        };
        // SAFETY: the element is inside the mapping. The word is aligned, and only the kernel
        // changes it while the action is in use, so it is read as an atomic.
        unsafe { AtomicU64::from_ptr(&raw mut (*record).failed).load(Ordering::Relaxed) }
    }

    /// Writes the rewrite of a flow for an epoch in which the kernel does not use it. One thread at
    /// a time may call this for a flow. The flow must be written afterwards.
    pub fn write_rewrite(&self, slot: FlowSlot, epoch: Epoch, rewrite: &KernelRewrite) {
        let Some(record) = self.rewrites.element(2 * slot as usize + epoch as usize) else {
            return;
        };
        let new = RewriteRecord::new(rewrite);
        // SAFETY: the element is inside the mapping and aligned. No reference to it exists, and the
        // kernel does not read it, because no flow refers to it.
        unsafe { record.write_volatile(new) };
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
            to_peer: 0,
            unused: [0; 5],
            down: 0,
            failed: 0,
        };
        let mut egress = [none; MAX_EGRESSES];
        for (record, egress) in egress.iter_mut().zip(&action.egresses) {
            record.ifindex = egress.index.get();
            record.mac = egress.address.0;
            record.to_peer = egress.to_peer.into();
        }
        let new = ActionRecord {
            egresses: action.egresses.len().min(MAX_EGRESSES) as u32,
            keep_original: action.keep_original.into(),
            decrement: action.decrement.into(),
            set_ttl: action.set_ttl.unwrap_or(0),
            rewrites: action.rewrites.into(),
            failed: 0,
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
        assert_eq!(size_of::<CountedRecord>(), 32);
        assert_eq!(size_of::<RewriteRecord>(), 40);
        assert_eq!(size_of::<EgressRecord>(), 32);
        assert_eq!(size_of::<ActionRecord>(), 16 + 32 * MAX_EGRESSES);
        assert_eq!(size_of::<InstanceRecord>(), 24);
        assert_eq!(std::mem::offset_of!(InstanceRecord, alive), 8);
    }

    #[test]
    fn key_of_a_flow_has_its_addresses() {
        let ingress = IfIndex::new(7).unwrap();
        for (source, group) in [("10.1.2.3", "225.1.2.3"), ("2001:db8::1", "ff3e::1")] {
            let addresses = (source.parse().unwrap(), group.parse().unwrap());
            let key = KernelFlowKey::new(ingress, addresses.0, addresses.1);
            assert_eq!(key.ingress(), Some(ingress));
            assert_eq!(key.addresses(), addresses);
        }
    }

    #[test]
    fn control_word_keeps_all_fields() {
        for state in [
            HandOverState::Captured,
            HandOverState::Offloaded,
            HandOverState::Kept,
        ] {
            let control = FlowControl {
                state,
                epoch: Epoch::Odd,
                min_ttl: 0xfe,
                max_len: 1500,
                port: 255,
                action: 4095,
            };
            assert_eq!(FlowControl::from_word(control.word()), control);
        }
        let control = FlowControl::from_word(0x0102_0003_05dc_0a01);
        assert_eq!((control.action, control.port), (0x0102, 3));
        assert_eq!((control.max_len, control.min_ttl), (1500, 10));
        assert_eq!(control.state, HandOverState::Offloaded);
    }

    #[test]
    fn change_of_a_checksum_is_that_of_the_addresses() {
        let rewrite = KernelRewrite {
            from: ([10, 0, 0, 1].into(), [225, 1, 2, 3].into()),
            to: ([10, 0, 0, 2].into(), [226, 1, 2, 3].into()),
            port: NonZeroU16::new(0x1234),
        };
        let record = RewriteRecord::new(&rewrite);
        // 1 more in the fourth octet of the source, 1 more in the first octet of the group.
        assert_eq!(record.change, u32::from(0x0101_u16.to_be()));
        assert_eq!(record.port, [0x12, 0x34]);
        let back = KernelRewrite {
            from: rewrite.to,
            to: rewrite.from,
            ..rewrite
        };
        assert_eq!(
            RewriteRecord::new(&back).change,
            u32::from(!0x0101_u16.to_be())
        );
    }
}
