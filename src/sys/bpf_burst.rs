//! Sends a burst of packets on a veth with one system call and one soft interrupt.
//!
//! With `sendmmsg`, the other end of a veth receives each packet in a separate soft interrupt.
//! These interrupts, the message headers and the socket accounting are half of the cost of sending.
//! A burst avoids them. The packets are in memory shared with the kernel (an array map), and one
//! `BPF_PROG_TEST_RUN` (kernel Documentation/bpf/bpf_prog_run.rst) runs a small program that passes
//! each packet to the device. Soft interrupts are disabled during the run, so the other end then
//! receives all packets in one.
//!
//! The program stops at the first packet that the kernel refuses, so each packet has its own
//! result.
//!
//! Differences from a socket:
//! - Interface indexes refer to the network namespace of the calling thread.
//! - Queued packets are not charged to a socket, so a burst never blocks.
//! - The kernel marks the packets as redirected. A *generic* XDP program at the other end does not
//!   see such packets (since Linux 6.4). A native one does, and so do tc, netfilter and taps on
//!   both ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::shared_mapping::SharedMapping;
use crate::model::IfIndex;

/// Largest number of packets per burst. `super::burst_limit` reduces it if kernel queues overflow.
pub const MAX_PACKETS: usize = 32;

/// Bytes per slot: the frame length, the result, and the frame.
const SLOT_LEN: usize = 2048;
const FRAME_OFFSET: usize = 8;
/// The longest frame.
pub const MAX_FRAME_LEN: usize = SLOT_LEN - FRAME_OFFSET;
/// The shortest frame: an Ethernet and an IPv4 header.
const MIN_FRAME_LEN: usize = ETHERNET_HEADER_LEN + 20;
/// Length of an Ethernet header in bytes.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// The result of a slot that the program did not reach. The kernel never returns this value.
const NOT_REACHED: u32 = 1 << 31;

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const PROG_TEST_RUN: u32 = 10;

/// The variant of `union bpf_attr` (`linux/bpf.h`) for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The variant of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// The variant of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Size of `struct __sk_buff` up to and including `cb`, in 32-bit words. The constants below are
/// offsets in it.
const CONTEXT_WORDS: usize = 17;
const CONTEXT_LEN: i16 = 0;
const CONTEXT_MARK: usize = 2;
const CONTEXT_IFINDEX: usize = 10;
const CONTEXT_CB: usize = 12;

/// The result of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BurstOutcome {
    /// The kernel took all packets.
    AllSent,
    /// The kernel took the first `sent` packets and refused the next one.
    Refused {
        /// Number of packets before the refused one.
        sent: usize,
        /// The reason for the refusal.
        errno: i32,
    },
    /// The kernel took the first `sent` packets. For the next one, the device queue returned a code
    /// other than success.
    QueueVerdict {
        /// Number of packets before the one with the code.
        sent: usize,
        /// `NET_XMIT_DROP` or a similar code (`linux/netdevice.h`).
        code: u32,
    },
}

/// The loaded program and its memory. It keeps no state between bursts, so one per thread is
/// enough.
pub struct BurstProgram {
    program: OwnedFd,
    /// Never read; the program keeps the map alive, too.
    _map: OwnedFd,
    memory: SharedMapping,
}

impl BurstProgram {
    /// Loads the program. Requires CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, and Linux 5.12 for
    /// `bpf_check_mtu`.
    pub fn open() -> io::Result<Self> {
        const ARRAY: u32 = 2;
        const MMAPABLE: u32 = 1 << 10;
        let map = descriptor(
            MAP_CREATE,
            MapCreate {
                map_type: ARRAY,
                key_size: 4,
                value_size: SLOT_LEN as u32,
                max_entries: MAX_PACKETS as u32,
                map_flags: MMAPABLE,
            },
        )?;
        let instructions = program(map.as_raw_fd());
        const SCHED_CLS: u32 = 3;
        // This licence applies only to the BPF program; the licence of the crate is in its
        // manifest. The kernel helpers require a GPL-compatible licence string, and "MIT" alone is
        // not one of the strings that the kernel accepts.
        let program = descriptor(
            PROG_LOAD,
            ProgLoad {
                prog_type: SCHED_CLS,
                insn_cnt: instructions.len() as u32,
                insns: instructions.as_ptr() as u64,
                license: c"Dual MIT/GPL".as_ptr() as u64,
                log_level: 0,
                log_size: 0,
                log_buf: 0,
            },
        )?;
        let memory = SharedMapping::new(map.as_fd(), MAX_PACKETS * SLOT_LEN)?;
        Ok(Self {
            program,
            _map: map,
            memory,
        })
    }

    /// Writes a frame to slot `n`. Returns false if `n` is not below [`MAX_PACKETS`], or if the
    /// frame is too short or longer than [`MAX_FRAME_LEN`].
    pub fn put(&mut self, n: usize, header: &[u8; ETHERNET_HEADER_LEN], packet: &[u8]) -> bool {
        let len = ETHERNET_HEADER_LEN + packet.len();
        if n >= MAX_PACKETS || !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
            return false;
        }
        // SAFETY: slot `n` lies inside the mapping, and `&mut self` excludes a concurrent run.
        let slot = unsafe {
            std::slice::from_raw_parts_mut(self.memory.base().add(n * SLOT_LEN), SLOT_LEN)
        };
        slot[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        slot[4..FRAME_OFFSET].copy_from_slice(&NOT_REACHED.to_ne_bytes());
        slot[FRAME_OFFSET..FRAME_OFFSET + ETHERNET_HEADER_LEN].copy_from_slice(header);
        slot[FRAME_OFFSET + ETHERNET_HEADER_LEN..FRAME_OFFSET + len].copy_from_slice(packet);
        true
    }

    /// Returns the result of slot `n`.
    fn result(&self, n: usize) -> u32 {
        // SAFETY: the word lies inside the mapping and is aligned. The kernel writes it, so it is
        // read as an atomic.
        unsafe { AtomicU32::from_ptr(self.memory.base().add(n * SLOT_LEN + 4).cast()) }
            .load(Ordering::Acquire)
    }

    /// Sends the first `count` slots on an interface. All frames must have the same EtherType. An
    /// error means that no frame was sent.
    pub fn run(&mut self, index: IfIndex, mark: u32, count: usize) -> io::Result<BurstOutcome> {
        let count = count.min(MAX_PACKETS);
        let mut context = [0u32; CONTEXT_WORDS];
        context[CONTEXT_MARK] = mark;
        context[CONTEXT_IFINDEX] = index.get();
        context[CONTEXT_CB] = count as u32;
        // SAFETY: this is the first word of the mapping, and `put` wrote it.
        let first_len = unsafe { self.memory.base().cast::<u32>().read() };
        let mut run = TestRun {
            prog_fd: self.program.as_raw_fd() as u32,
            data_size_in: first_len.clamp(MIN_FRAME_LEN as u32, MAX_FRAME_LEN as u32),
            data_in: self.memory.base().wrapping_add(FRAME_OFFSET) as u64,
            repeat: 1,
            ctx_size_in: size_of_val(&context) as u32,
            ctx_in: context.as_ptr() as u64,
            ..TestRun::default()
        };
        let done = bpf(PROG_TEST_RUN, &mut run);
        // The results in the slots take precedence over the result of the call, so that no packet
        // is sent twice.
        let stopped = (0..count)
            .map(|n| (n, self.result(n)))
            .find(|(_, result)| *result != 0);
        match (stopped, done) {
            (None, _) => Ok(BurstOutcome::AllSent),
            (Some((0, NOT_REACHED)), Err(e)) => Err(e),
            (Some((0, NOT_REACHED)), Ok(_)) => Err(io::ErrorKind::Unsupported.into()),
            (Some((sent, NOT_REACHED)), _) => Ok(BurstOutcome::Refused {
                sent,
                errno: libc::EIO,
            }),
            (Some((sent, code)), _) => Ok(match code as i32 {
                error @ ..0 => BurstOutcome::Refused {
                    sent,
                    errno: -error,
                },
                _ => BurstOutcome::QueueVerdict { sent, code },
            }),
        }
    }
}

fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is the variant of `union bpf_attr` for the command and valid for reads
    // and writes of its size. Every pointer in it points to memory that the caller keeps during the
    // call and that is as long as the length field next to the pointer.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(done as i32)
}

fn descriptor<T>(command: u32, mut attributes: T) -> io::Result<OwnedFd> {
    let fd = bpf(command, &mut attributes)?;
    // SAFETY: the kernel created this descriptor above, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A BPF instruction (kernel Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Assembles the program. It loops over the slots: it resizes the packet of the test run to the
/// frame length, overwrites it with the frame, checks the MTU, and sends a clone. It stores the
/// result in the slot.
fn program(map: i32) -> Vec<Instruction> {
    // Registers: 0 holds results, 1 to 5 arguments, 6 the packet, 7 the slot number, 8 the slot,
    // 9 the frame length, 10 the stack pointer.
    const MOV: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const IF_EQUAL_TO: u8 = 0x1d;
    const IF_AT_LEAST_THAT: u8 = 0x3d;
    const IF_IS: u8 = 0x15;
    const IF_IS_NOT: u8 = 0x55;
    const IF_ABOVE: u8 = 0x25;
    const IF_BELOW: u8 = 0xa5;
    const IF_SIGNED_AT_MOST: u8 = 0xd5;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const SKB_STORE_BYTES: i32 = 9;
    const CLONE_REDIRECT: i32 = 13;
    const SKB_CHANGE_TAIL: i32 = 38;
    const CHECK_MTU: i32 = 163;
    const KEY: i16 = -4;
    const LAYER3_LEN: i16 = -8;
    let word = |at: usize| (at * 4) as i16;
    let i = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    };
    // Jump targets. The loop at the end replaces them with distances.
    const NEXT_SLOT: i16 = 1001;
    const RESULT: i16 = 1002;
    const END: i16 = 1003;
    let mut code = vec![i(MOV, 6, 1, 0, 0), i(SET, 7, 0, 0, 0)];
    let next_slot = code.len();
    code.extend([
        i(LOAD, 1, 6, word(CONTEXT_CB), 0),
        i(IF_AT_LEAST_THAT, 7, 1, END, 0),
        i(STORE, 10, 7, KEY, 0),
        // Loads the map by its descriptor. A 64-bit load takes two instructions.
        i(0x18, 1, 1, 0, map),
        i(0, 0, 0, 0, 0),
        i(MOV, 2, 10, 0, 0),
        i(ADD, 2, 0, 0, KEY.into()),
        i(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        i(IF_IS, 0, 0, END, 0),
        i(MOV, 8, 0, 0, 0),
        i(LOAD, 9, 8, 0, 0),
        i(SET, 0, 0, 0, -libc::EINVAL),
        i(IF_ABOVE, 9, 0, RESULT, MAX_FRAME_LEN as i32),
        i(IF_BELOW, 9, 0, RESULT, MIN_FRAME_LEN as i32),
        // Resizes the packet: five instructions, skipped if it has the frame length already.
        i(LOAD, 1, 6, CONTEXT_LEN, 0),
        i(IF_EQUAL_TO, 1, 9, 5, 0),
        i(MOV, 1, 6, 0, 0),
        i(MOV, 2, 9, 0, 0),
        i(SET, 3, 0, 0, 0),
        i(CALL, 0, 0, 0, SKB_CHANGE_TAIL),
        i(IF_IS_NOT, 0, 0, RESULT, 0),
        i(MOV, 1, 6, 0, 0),
        i(SET, 2, 0, 0, 0),
        i(MOV, 3, 8, 0, 0),
        i(ADD, 3, 0, 0, FRAME_OFFSET as i32),
        i(MOV, 4, 9, 0, 0),
        i(SET, 5, 0, 0, 0),
        i(CALL, 0, 0, 0, SKB_STORE_BYTES),
        i(IF_IS_NOT, 0, 0, RESULT, 0),
        i(MOV, 3, 9, 0, 0),
        i(ADD, 3, 0, 0, -(ETHERNET_HEADER_LEN as i32)),
        i(STORE, 10, 3, LAYER3_LEN, 0),
        i(MOV, 1, 6, 0, 0),
        i(LOAD, 2, 6, word(CONTEXT_IFINDEX), 0),
        i(MOV, 3, 10, 0, 0),
        i(ADD, 3, 0, 0, LAYER3_LEN.into()),
        i(SET, 4, 0, 0, 0),
        i(SET, 5, 0, 0, 0),
        i(CALL, 0, 0, 0, CHECK_MTU),
        // Zero: the frame fits. Negative: an error. Positive: too long, replaced with -EMSGSIZE,
        // because the slot gives positive numbers another meaning.
        i(IF_IS, 0, 0, 3, 0),
        i(IF_SIGNED_AT_MOST, 0, 0, RESULT, 0),
        i(SET, 0, 0, 0, -libc::EMSGSIZE),
        i(0x05, 0, 0, RESULT, 0),
        i(MOV, 1, 6, 0, 0),
        i(LOAD, 2, 6, word(CONTEXT_IFINDEX), 0),
        i(SET, 3, 0, 0, 0),
        i(CALL, 0, 0, 0, CLONE_REDIRECT),
    ]);
    let result = code.len();
    code.extend([
        i(STORE, 8, 0, 4, 0),
        i(IF_IS_NOT, 0, 0, END, 0),
        i(ADD, 7, 0, 0, 1),
        i(IF_BELOW, 7, 0, NEXT_SLOT, MAX_PACKETS as i32),
    ]);
    let end = code.len();
    code.extend([i(SET, 0, 0, 0, 0), i(EXIT, 0, 0, 0, 0)]);
    for (at, instruction) in code.iter_mut().enumerate() {
        let jumps = instruction.code & 7 == 5 && !matches!(instruction.code, CALL | EXIT);
        let to = match instruction.offset {
            NEXT_SLOT => next_slot,
            RESULT => result,
            END => end,
            _ => continue,
        };
        if jumps {
            instruction.offset = (to as i64 - at as i64 - 1) as i16;
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns `None` if this process may not load programs, so that the test is skipped.
    fn try_open() -> Option<BurstProgram> {
        match BurstProgram::open() {
            Ok(burst) => Some(burst),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => None,
            Err(e) => panic!("the kernel refuses the program: {e}"),
        }
    }

    #[test]
    fn frames_of_invalid_length_are_rejected() {
        let Some(mut burst) = try_open() else {
            return;
        };
        let header = [0; ETHERNET_HEADER_LEN];
        assert!(burst.put(0, &header, &[0; 20]));
        assert!(burst.put(
            MAX_PACKETS - 1,
            &header,
            &[0; MAX_FRAME_LEN - ETHERNET_HEADER_LEN]
        ));
        assert!(!burst.put(0, &header, &[0; 19]));
        assert!(!burst.put(0, &header, &[0; MAX_FRAME_LEN - ETHERNET_HEADER_LEN + 1]));
        assert!(!burst.put(MAX_PACKETS, &header, &[0; 20]));
    }

    #[test]
    fn missing_interface_returns_enodev() {
        let Some(mut burst) = try_open() else {
            return;
        };
        let header = [1, 0, 0x5e, 0, 0, 1, 2, 0, 0, 0, 0, 1, 8, 0];
        let mut packet = [0; 20];
        packet[0] = 0x45;
        assert!(burst.put(0, &header, &packet));
        let missing = IfIndex::new(i32::MAX as u32).unwrap();
        let done = burst.run(missing, 1, 1);
        assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
