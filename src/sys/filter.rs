//! The socket filter of a capture: classic BPF, run by the kernel before anything is copied.
//!
//! It lets pass what a multicast router must see: IP frames whose destination is a group, or
//! which the link layer delivered as multicast, and VLAN-in-VLAN frames, which are looked
//! into later. Frames for other hosts never pass; neither do frames this instance sent
//! itself: outgoing *and* bearing our mark. Outgoing without our mark is what the host's own
//! programs send, and is routed like anything else; our mark on an incoming frame is a frame
//! that came back through a veth of this namespace, and is a packet like any other.

use std::io;
use std::os::fd::OwnedFd;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SKF_AD_MARK, SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_PROTOCOL, SKF_NET_OFF, sock_filter,
};

use super::packet::set_option;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN};

/// Where a jump leads: to the next instruction, or to one of the two ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Skip(u8),
    Accept,
    Drop,
}

enum Step {
    Load(u32, i32),
    And(u32),
    /// Compare: where to go when equal, where when not.
    Equal(u32, To, To),
}

/// The filter for an instance that marks what it sends with `mark`.
pub fn multicast(mark: u32) -> Vec<sock_filter> {
    let byte = BPF_B;
    let (outgoing, other_host, multicast) = (
        u32::from(libc::PACKET_OUTGOING),
        u32::from(libc::PACKET_OTHERHOST),
        u32::from(libc::PACKET_MULTICAST),
    );
    assemble(&[
        Step::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Step::Equal(other_host, To::Drop, To::Next),
        Step::Equal(outgoing, To::Next, To::Skip(2)),
        Step::Load(BPF_W, SKF_AD_OFF + SKF_AD_MARK),
        Step::Equal(mark, To::Drop, To::Next),
        // VLAN in VLAN: looked into later.
        Step::Load(BPF_H, SKF_AD_OFF + SKF_AD_PROTOCOL),
        Step::Equal(ETHERTYPE_VLAN.into(), To::Accept, To::Next),
        Step::Equal(ETHERTYPE_SERVICE_VLAN.into(), To::Accept, To::Next),
        Step::Equal(ETHERTYPE_IPV4.into(), To::Skip(5), To::Next),
        Step::Equal(ETHERTYPE_IPV6.into(), To::Next, To::Drop),
        // Delivered as multicast: even a packet too short to tell its group is counted.
        Step::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Step::Equal(multicast, To::Accept, To::Next),
        // IPv6 destination in ff00::/8.
        Step::Load(byte, SKF_NET_OFF + 24),
        Step::Equal(0xff, To::Accept, To::Drop),
        Step::Load(byte, SKF_AD_OFF + SKF_AD_PKTTYPE),
        Step::Equal(multicast, To::Accept, To::Next),
        // IPv4 destination in 224.0.0.0/4.
        Step::Load(byte, SKF_NET_OFF + 16),
        Step::And(0xf0),
        Step::Equal(0xe0, To::Accept, To::Drop),
    ])
}

/// The filter that lets nothing pass.
pub fn nothing() -> Vec<sock_filter> {
    constant(0)
}

/// A program whose answer is always `k`.
pub fn constant(k: u32) -> Vec<sock_filter> {
    vec![sock_filter {
        code: (BPF_RET | BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    }]
}

/// The form the kernel takes a program in; it points into `steps`.
pub(super) fn program(steps: &[sock_filter]) -> libc::sock_fprog {
    libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_ptr().cast_mut(),
    }
}

/// Makes `steps` the filter of a socket, in place of the one it had.
pub(super) fn attach(fd: &OwnedFd, steps: &[sock_filter]) -> io::Result<()> {
    set_option(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        &program(steps),
    )
}

fn assemble(steps: &[Step]) -> Vec<sock_filter> {
    let accept = steps.len();
    let op = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program: Vec<sock_filter> = steps
        .iter()
        .enumerate()
        .map(|(at, step)| {
            let offset = |to: To| match to {
                To::Next => 0,
                To::Skip(n) => n,
                To::Accept => (accept - at - 1) as u8,
                To::Drop => (accept - at) as u8,
            };
            match *step {
                Step::Load(size, from) => op(BPF_LD | size | BPF_ABS, 0, 0, from as u32),
                Step::And(mask) => op(BPF_ALU | BPF_AND | BPF_K, 0, 0, mask),
                Step::Equal(k, yes, no) => {
                    op(BPF_JMP | BPF_JEQ | BPF_K, offset(yes), offset(no), k)
                }
            }
        })
        .collect();
    program.push(op(BPF_RET | BPF_K, 0, 0, u32::MAX));
    program.push(op(BPF_RET | BPF_K, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small interpreter of the instructions used, to try the filter without a kernel.
    fn run(program: &[sock_filter], kind: u8, mark: u32, protocol: u16, packet: &[u8]) -> bool {
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
                } else if k == SKF_AD_OFF + SKF_AD_PROTOCOL {
                    protocol.into()
                } else {
                    match packet.get((k - SKF_NET_OFF) as usize) {
                        Some(b) => (*b).into(),
                        None => return false,
                    }
                };
            }
        }
    }

    #[test]
    fn it_tells_the_host_s_frames_from_ours_and_groups_from_hosts() {
        const MARK: u32 = 0x6d63_0001;
        let program = multicast(MARK);
        let mut v4 = [0u8; 20];
        v4[16] = 225;
        let mut v6 = [0u8; 40];
        v6[24] = 0xff;
        let (host, multicast, other, out) = (0, 2, 3, 4);
        let unicast = [0u8; 40];
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
            (multicast, 0, 0x0806, &unicast[..], false),
            (multicast, 0, 0x8100, &unicast[..], true),
        ] {
            assert_eq!(
                run(&program, kind, mark, protocol, packet),
                passes,
                "{kind} {mark:x} {protocol:x}"
            );
        }
    }
}
