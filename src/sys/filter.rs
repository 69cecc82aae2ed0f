//! The socket filter of a capture: classic BPF, which the kernel runs before it copies a frame.
//!
//! The filter accepts the frames that a multicast router needs:
//! - IP frames with a multicast destination address, or that the link layer received as multicast;
//! - IGMP messages and MLD queries that are sent to an address of this host;
//! - VLAN-in-VLAN frames, which are parsed after the capture.
//!
//! It rejects frames for other hosts and frames that this instance sent itself. The latter are
//! outgoing *and* carry the mark of the instance. An outgoing frame without the mark comes from
//! another program of the host and is routed as usual. An incoming frame with the mark came back
//! through a veth of this network namespace and is also routed as usual.
//!
//! On the loopback interface each sent frame is captured a second time, as incoming. There the
//! filter rejects all outgoing frames, and incoming frames with the mark.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SKF_AD_HATYPE, SKF_AD_MARK, SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_PROTOCOL, SKF_NET_OFF,
    sock_filter,
};

use super::offload::CaptureProgram;
use super::packet::{set_option, set_option_int};
use crate::model::Group;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN};

/// The target of a jump.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Next,
    /// Skips this number of instructions.
    Skip(u8),
    Accept,
    Drop,
}

enum Op {
    /// Loads a value of this size from this offset.
    Load(u32, i32),
    And(u32),
    /// Compares with a constant: the target if equal, and the target if not.
    Equal(u32, Target, Target),
}

/// What a capture socket accepts.
#[derive(Debug, Clone)]
pub enum CaptureFilter {
    /// What a multicast router needs, except what the instance sent that sets this mark.
    Multicast {
        /// The mark.
        own_mark: u32,
    },
    /// The same, except packets that the kernel forwards by itself.
    Offload(CaptureProgram),
    /// UDP datagrams to some ports, except what the instance sent that sets this mark.
    Datagrams {
        /// The mark.
        own_mark: u32,
        /// The ports, at most [`MAX_FILTER_PORTS`].
        ports: Vec<u16>,
        /// Further ports: those that are equal to the first value after masking with the second.
        block: (u16, u16),
    },
    /// IP packets to a group, with all their fragments.
    Group(Group),
}

/// The largest number of ports of [`CaptureFilter::Datagrams`]: jumps skip at most 255 instructions.
pub const MAX_FILTER_PORTS: usize = 64;

impl CaptureFilter {
    /// Sets the filter of a socket. Replaces an existing filter atomically.
    pub(super) fn attach(&self, fd: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Multicast { own_mark } => attach(fd, &multicast(*own_mark)),
            Self::Datagrams {
                own_mark,
                ports,
                block,
            } => attach(fd, &datagrams(*own_mark, ports, *block)),
            Self::Group(group) => attach(fd, &to_group(*group)),
            Self::Offload(program) => {
                let program = program.descriptor().as_raw_fd();
                set_option_int(fd, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
            }
        }
    }
}

/// Returns the filter for an instance that sets `mark` on the packets it sends.
fn multicast(mark: u32) -> Vec<sock_filter> {
    let byte = BPF_B;
    let (host, outgoing, other_host, multicast, loopback) = (
        u32::from(libc::PACKET_HOST),
        u32::from(libc::PACKET_OUTGOING),
        u32::from(libc::PACKET_OTHERHOST),
        u32::from(libc::PACKET_MULTICAST),
        u32::from(libc::ARPHRD_LOOPBACK),
    );
    assemble(&[
        Op::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Op::Equal(other_host, Target::Drop, Target::Next),
        Op::Equal(outgoing, Target::Next, Target::Skip(2)),
        Op::Load(BPF_W, SKF_AD_OFF + SKF_AD_HATYPE),
        Op::Equal(loopback, Target::Drop, Target::Skip(2)),
        Op::Load(BPF_W, SKF_AD_OFF + SKF_AD_HATYPE),
        Op::Equal(loopback, Target::Next, Target::Skip(2)),
        Op::Load(BPF_W, SKF_AD_OFF + SKF_AD_MARK),
        Op::Equal(mark, Target::Drop, Target::Next),
        // The inner tag of VLAN-in-VLAN.
        Op::Load(BPF_H, SKF_AD_OFF + SKF_AD_PROTOCOL),
        Op::Equal(ETHERTYPE_VLAN.into(), Target::Accept, Target::Next),
        Op::Equal(ETHERTYPE_SERVICE_VLAN.into(), Target::Accept, Target::Next),
        Op::Equal(ETHERTYPE_IPV4.into(), Target::Skip(13), Target::Next),
        Op::Equal(ETHERTYPE_IPV6.into(), Target::Next, Target::Drop),
        // Link-layer multicast passes even if the packet is too short for a destination address, so
        // that it is counted.
        Op::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Op::Equal(multicast, Target::Accept, Target::Next),
        // IPv6 destination in ff00::/8.
        Op::Load(byte, SKF_NET_OFF + 24),
        Op::Equal(0xff, Target::Accept, Target::Next),
        // A hop-by-hop options header of eight bytes, then an MLD query.
        Op::Load(byte, SKF_NET_OFF + 6),
        Op::Equal(0, Target::Next, Target::Drop),
        Op::Load(byte, SKF_NET_OFF + 40),
        Op::Equal(58, Target::Next, Target::Drop),
        Op::Load(byte, SKF_NET_OFF + 41),
        Op::Equal(0, Target::Next, Target::Drop),
        Op::Load(byte, SKF_NET_OFF + 48),
        Op::Equal(130, Target::Skip(7), Target::Drop),
        Op::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Op::Equal(multicast, Target::Accept, Target::Next),
        // IPv4 destination in 224.0.0.0/4.
        Op::Load(byte, SKF_NET_OFF + 16),
        Op::And(0xf0),
        Op::Equal(0xe0, Target::Accept, Target::Next),
        // IGMP.
        Op::Load(byte, SKF_NET_OFF + 9),
        Op::Equal(2, Target::Next, Target::Drop),
        // To this host.
        Op::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Op::Equal(host, Target::Accept, Target::Drop),
    ])
}

/// Returns the filter for UDP datagrams to some ports, without IPv4 options and IPv6 extension
/// headers. It accepts a first fragment, but no further ones, which hold no ports.
fn datagrams(mark: u32, ports: &[u16], block: (u16, u16)) -> Vec<sock_filter> {
    let byte = BPF_B;
    let other_host = u32::from(libc::PACKET_OTHERHOST);
    let outgoing = u32::from(libc::PACKET_OUTGOING);
    let ports = ports.iter().take(MAX_FILTER_PORTS);
    let compare = |at: i32| {
        let equal = |port: &u16| Op::Equal((*port).into(), Target::Accept, Target::Next);
        let mut ops = vec![Op::Load(BPF_H, SKF_NET_OFF + at)];
        ops.extend(ports.clone().map(equal));
        ops.push(Op::And(block.1.into()));
        ops.push(Op::Equal(block.0.into(), Target::Accept, Target::Drop));
        ops
    };
    let mut v4 = vec![
        Op::Load(byte, SKF_NET_OFF),
        Op::Equal(0x45, Target::Next, Target::Drop),
        Op::Load(byte, SKF_NET_OFF + 9),
        Op::Equal(17, Target::Next, Target::Drop),
        Op::Load(BPF_H, SKF_NET_OFF + 6),
        Op::And(0x1fff),
        Op::Equal(0, Target::Next, Target::Drop),
    ];
    v4.extend(compare(22));
    let mut ops = vec![
        Op::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Op::Equal(other_host, Target::Drop, Target::Next),
        Op::Equal(outgoing, Target::Next, Target::Skip(2)),
        Op::Load(BPF_W, SKF_AD_OFF + SKF_AD_MARK),
        Op::Equal(mark, Target::Drop, Target::Next),
        Op::Load(BPF_H, SKF_AD_OFF + SKF_AD_PROTOCOL),
        Op::Equal(
            ETHERTYPE_IPV4.into(),
            Target::Next,
            Target::Skip(v4.len() as u8),
        ),
    ];
    ops.extend(v4);
    ops.extend([
        // IPv4 has been decided.
        Op::Load(BPF_H, SKF_AD_OFF + SKF_AD_PROTOCOL),
        Op::Equal(ETHERTYPE_IPV6.into(), Target::Next, Target::Drop),
        Op::Load(byte, SKF_NET_OFF + 6),
        Op::Equal(17, Target::Next, Target::Drop),
    ]);
    ops.extend(compare(42));
    assemble(&ops)
}

/// Returns the filter for IP packets to `group`.
fn to_group(group: Group) -> Vec<sock_filter> {
    let (ethertype, offset, words): (u16, i32, Vec<u32>) = match group.addr() {
        IpAddr::V4(address) => (ETHERTYPE_IPV4, 16, vec![address.to_bits()]),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let words = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
            (ETHERTYPE_IPV6, 24, words.to_vec())
        }
    };
    let mut ops = vec![
        Op::Load(BPF_H, SKF_AD_OFF + SKF_AD_PROTOCOL),
        Op::Equal(ethertype.into(), Target::Next, Target::Drop),
    ];
    for (n, word) in words.iter().enumerate() {
        ops.push(Op::Load(BPF_W, SKF_NET_OFF + offset + 4 * n as i32));
        ops.push(match n + 1 == words.len() {
            true => Op::Equal(*word, Target::Accept, Target::Drop),
            false => Op::Equal(*word, Target::Next, Target::Drop),
        });
    }
    assemble(&ops)
}

/// Returns the filter that rejects all frames.
pub fn drop_all() -> Vec<sock_filter> {
    constant(0)
}

/// Returns a program that always returns `k`.
pub fn constant(k: u32) -> Vec<sock_filter> {
    vec![sock_filter {
        code: (BPF_RET | BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    }]
}

/// Returns the program as the kernel expects it. The result points into `instructions`.
pub(super) fn program(instructions: &[sock_filter]) -> libc::sock_fprog {
    libc::sock_fprog {
        len: instructions.len() as u16,
        filter: instructions.as_ptr().cast_mut(),
    }
}

/// Sets the filter of a socket. Replaces an existing filter atomically.
pub(super) fn attach(fd: &OwnedFd, instructions: &[sock_filter]) -> io::Result<()> {
    set_option(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        &program(instructions),
    )
}

/// Resolves jump targets. Appends the two return instructions: accept, then drop.
fn assemble(ops: &[Op]) -> Vec<sock_filter> {
    let accept = ops.len();
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program: Vec<sock_filter> = ops
        .iter()
        .enumerate()
        .map(|(at, op)| {
            let offset = |target: Target| match target {
                Target::Next => 0,
                Target::Skip(n) => n,
                Target::Accept => (accept - at - 1) as u8,
                Target::Drop => (accept - at) as u8,
            };
            match *op {
                Op::Load(size, from) => instruction(BPF_LD | size | BPF_ABS, 0, 0, from as u32),
                Op::And(mask) => instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, mask),
                Op::Equal(k, equal, unequal) => {
                    let code = BPF_JMP | BPF_JEQ | BPF_K;
                    instruction(code, offset(equal), offset(unequal), k)
                }
            }
        })
        .collect();
    program.push(instruction(BPF_RET | BPF_K, 0, 0, u32::MAX));
    program.push(instruction(BPF_RET | BPF_K, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as the program sees it.
    struct CapturedFrame<'a> {
        link: u16,
        kind: u8,
        mark: u32,
        protocol: u16,
        packet: &'a [u8],
    }

    /// Interprets the program, so that the test does not need the kernel.
    fn run(program: &[sock_filter], frame: &CapturedFrame<'_>) -> bool {
        let CapturedFrame {
            link,
            kind,
            mark,
            protocol,
            packet,
        } = *frame;
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let code = u32::from(i.code);
            if code == BPF_RET | BPF_K {
                return i.k != 0;
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                a &= i.k;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += usize::from(if a == i.k { i.jt } else { i.jf });
            } else {
                let k = i.k as i32;
                a = if k == SKF_AD_OFF + SKF_AD_PKTTYPE {
                    kind.into()
                } else if k == SKF_AD_OFF + SKF_AD_MARK {
                    mark
                } else if k == SKF_AD_OFF + SKF_AD_HATYPE {
                    link.into()
                } else if k == SKF_AD_OFF + SKF_AD_PROTOCOL {
                    protocol.into()
                } else {
                    let at = (k - SKF_NET_OFF) as usize;
                    let len = match code {
                        c if c == BPF_LD | BPF_W | BPF_ABS => 4,
                        c if c == BPF_LD | BPF_H | BPF_ABS => 2,
                        _ => 1,
                    };
                    let Some(bytes) = packet.get(at..at + len) else {
                        return false;
                    };
                    bytes.iter().fold(0, |a, b| a << 8 | u32::from(*b))
                };
            }
        }
    }

    #[test]
    fn own_outgoing_frames_and_unicast_data_are_rejected() {
        const MARK: u32 = 0x6d63_0001;
        let program = multicast(MARK);
        let mut v4 = [0u8; 20];
        v4[16] = 225;
        let mut v6 = [0u8; 40];
        v6[24] = 0xff;
        let (host, multicast, other, out) = (0, 2, 3, 4);
        let unicast = [0u8; 40];
        let mut igmp = [0u8; 24];
        igmp[9] = 2;
        let mut mld = [0u8; 72];
        (mld[40], mld[48]) = (58, 130);
        let mut report = mld;
        report[48] = 143;
        for (kind, mark, protocol, packet, passes) in [
            (multicast, 0, 0x0800, &v4[..], true),
            (host, 0, 0x0800, &v4[..], true),
            (other, 0, 0x0800, &v4[..], false),
            (out, 0, 0x0800, &v4[..], true),
            (out, 7, 0x0800, &v4[..], true),
            (out, MARK, 0x0800, &v4[..], false),
            (multicast, MARK, 0x0800, &v4[..], true),
            (multicast, 0, 0x86dd, &v6[..], true),
            (out, 0, 0x86dd, &v6[..], true),
            (out, MARK, 0x86dd, &v6[..], false),
            (host, 0, 0x0800, &unicast[..], false),
            (host, 0, 0x86dd, &unicast[..], false),
            (multicast, 0, 0x0800, &[0x45][..], true),
            (host, 0, 0x0800, &[0x45][..], false),
            (host, 0, 0x0800, &igmp[..], true),
            (out, 0, 0x0800, &igmp[..], false),
            (host, 0, 0x86dd, &mld[..], true),
            (out, 0, 0x86dd, &mld[..], false),
            (host, 0, 0x86dd, &report[..], false),
            (multicast, 0, 0x0806, &unicast[..], false),
            (multicast, 0, 0x8100, &unicast[..], true),
        ] {
            let frame = CapturedFrame {
                link: libc::ARPHRD_ETHER,
                kind,
                mark,
                protocol,
                packet,
            };
            let passed = run(&program, &frame);
            assert_eq!(passed, passes, "{kind} {mark:x} {protocol:x}");
        }
    }

    #[test]
    fn only_packets_to_the_group_pass() {
        let v4 = |last: u8| {
            let mut packet = vec![0x45; 20];
            packet[16..20].copy_from_slice(&[225, 1, 2, last]);
            packet
        };
        let v6 = |first: u8, last: u8| {
            let mut packet = vec![0x60; 40];
            packet[24..40].copy_from_slice(&[0; 16]);
            (packet[24], packet[25], packet[39]) = (first, 0x3e, last);
            packet
        };
        for (group, protocol, packet, passes) in [
            ("225.1.2.3", 0x0800, v4(3), true),
            ("225.1.2.3", 0x0800, v4(4), false),
            ("225.1.2.3", 0x0800, v4(3)[..19].to_vec(), false),
            ("225.1.2.3", 0x86dd, v4(3), false),
            ("ff3e::7", 0x86dd, v6(0xff, 7), true),
            ("ff3e::7", 0x86dd, v6(0xff, 8), false),
            ("ff3e::7", 0x86dd, v6(0xfe, 7), false),
            ("ff3e::7", 0x0800, v6(0xff, 7), false),
        ] {
            let frame = CapturedFrame {
                link: libc::ARPHRD_ETHER,
                kind: libc::PACKET_MULTICAST,
                mark: 0,
                protocol,
                packet: &packet,
            };
            let program = to_group(group.parse().unwrap());
            assert_eq!(run(&program, &frame), passes, "{group} {packet:x?}");
        }
    }

    #[test]
    fn datagrams_to_the_ports_pass() {
        const MARK: u32 = 0x6d63_0001;
        let program = datagrams(MARK, &[1900, 5353], (61_440, 0xfe00));
        let v4 = |port: u16, flags: u16| {
            let mut packet = vec![0u8; 28];
            (packet[0], packet[9]) = (0x45, 17);
            packet[6..8].copy_from_slice(&flags.to_be_bytes());
            packet[22..24].copy_from_slice(&port.to_be_bytes());
            packet
        };
        let v6 = |port: u16, next: u8| {
            let mut packet = vec![0u8; 48];
            (packet[0], packet[6]) = (0x60, next);
            packet[42..44].copy_from_slice(&port.to_be_bytes());
            packet
        };
        let (host, multicast, other, out) = (0, 2, 3, 4);
        for (kind, mark, protocol, packet, passes) in [
            (multicast, 0, 0x0800, v4(1900, 0), true),
            (multicast, 0, 0x0800, v4(1901, 0), false),
            (multicast, 0, 0x0800, v4(1900, 0x2000), true),
            (multicast, 0, 0x0800, v4(1900, 0x2001), false),
            (host, 0, 0x0800, v4(61_440, 0), true),
            (host, 0, 0x0800, v4(61_951, 0x4000), true),
            (host, 0, 0x0800, v4(61_952, 0), false),
            (host, 0, 0x0800, v4(61_439, 0), false),
            (other, 0, 0x0800, v4(1900, 0), false),
            (out, 0, 0x0800, v4(5353, 0), true),
            (out, MARK, 0x0800, v4(5353, 0), false),
            (multicast, MARK, 0x0800, v4(5353, 0), true),
            (multicast, 0, 0x86dd, v6(5353, 17), true),
            (multicast, 0, 0x86dd, v6(5353, 6), false),
            (host, 0, 0x86dd, v6(61_500, 17), true),
            (multicast, 0, 0x0806, v4(1900, 0), false),
        ] {
            let frame = CapturedFrame {
                link: libc::ARPHRD_ETHER,
                kind,
                mark,
                protocol,
                packet: &packet,
            };
            assert_eq!(run(&program, &frame), passes, "{kind} {mark:x} {packet:?}");
        }
    }

    #[test]
    fn loopback_frames_pass_once_and_without_the_mark() {
        const MARK: u32 = 0x6d63_0001;
        let program = multicast(MARK);
        let mut packet = [0u8; 20];
        packet[16] = 225;
        let (host, out) = (0, 4);
        for (kind, mark, passes) in [
            (host, 0, true),
            (host, 7, true),
            (host, MARK, false),
            (out, 0, false),
            (out, MARK, false),
        ] {
            let frame = CapturedFrame {
                link: libc::ARPHRD_LOOPBACK,
                kind,
                mark,
                protocol: ETHERTYPE_IPV4,
                packet: &packet,
            };
            assert_eq!(run(&program, &frame), passes, "{kind} {mark:x}");
        }
    }
}
