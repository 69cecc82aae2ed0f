//! Packet sockets that send packets which stand for several datagrams.

use std::future::poll_fn;
use std::io;
use std::process::Command;

use caps::{CapSet, Capability};
use mcastor::forward::segment::leave_unfinished;
use mcastor::pipeline::{OutPacket, PacketSink};
use mcastor::planes::Plane;
use mcastor::planes::packet::PacketPlane;
use mcastor::sys::transmit::Transmitter;
use mcastor::wire::ip::refresh_ipv4_checksum;
use mcastor::wire::offload::{GsoLayout, Offload};

use super::bed::*;
use super::{Alone, Named};

pub const TESTS: &[Named<Alone>] = tests![
    bursts_and_what_goes_whole_keep_their_order,
    what_went_whole_is_known_as_our_own,
    a_full_socket_for_what_goes_whole_becomes_writable_again,
    only_ethernet_with_its_queue_takes_packets_whole,
    without_the_right_to_open_a_socket_packets_are_not_taken_whole,
];

const PAYLOAD: u16 = 500;

type Packets = Vec<(Vec<u8>, Option<GsoLayout>)>;

fn plain(n: u32) -> (Vec<u8>, Option<GsoLayout>) {
    (packet(n, 100 + n as usize % 900), None)
}

/// Stands for `count` datagrams.
fn several(n: u32, count: usize) -> (Vec<u8>, Option<GsoLayout>) {
    let segments = GsoLayout::new(PAYLOAD, 28).expect("headers of UDP");
    let mut p = packet(n, 28 + count * usize::from(PAYLOAD));
    // No fragment.
    p[4..8].fill(0);
    p[10..12].fill(0);
    refresh_ipv4_checksum(&mut p);
    leave_unfinished(&mut p, segments);
    (p, Some(segments))
}

/// Sends all, and returns how often it had to wait.
async fn send_mixed(transmit: &mut dyn PacketSink, all: &Packets) -> io::Result<usize> {
    let (mut next, mut waits) = (0, 0);
    while next < all.len() {
        let left = all[next..].iter();
        let left = left.map(|(bytes, segments)| OutPacket {
            bytes,
            segments: *segments,
        });
        match transmit.send(&mut { left }) {
            Ok(n) => next += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                waits += 1;
                poll_fn(|cx| transmit.poll_writable(cx)).await?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(waits)
}

async fn bursts_and_what_goes_whole_keep_their_order() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    let mut n = 0;
    for round in 0..60u32 {
        let mut all = Packets::new();
        for i in 0..round % 45 {
            n += 1;
            all.push(plain(n));
            // Among those that would be a burst, and behind it.
            if i % 20 == 19 {
                all.push(several(n, 2));
            }
        }
        all.extend((0..round % 4).map(|i| several(n + i, 2 + round as usize % 9)));
        send_mixed(transmit.as_mut(), &all).await?;
        let mut got = Vec::new();
        while got.len() < all.len() {
            let batch = next_batch(capture.as_mut()).await?;
            let whole = |o: &Offload| match o {
                Offload::UdpSegments { payload } => Some(*payload),
                _ => None,
            };
            let offloads = batch.packets.iter().map(|p| whole(&p.offload));
            got.extend(packets_of(&batch).into_iter().zip(offloads));
        }
        let sent = all.into_iter().map(|(p, s)| (p, s.map(|s| s.payload())));
        assert!(
            got == sent.collect::<Vec<_>>(),
            "other packets, or another order"
        );
    }
    Ok(())
}

async fn what_went_whole_is_known_as_our_own() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut near = bed.plane.capture(bed.near)?;
    let mut far = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    send_mixed(transmit.as_mut(), &vec![several(1, 3), several(2, 3)]).await?;
    take(far.as_mut(), 2).await?;
    // Another instance is a stranger: its packet is the first that is seen here.
    let stranger = PacketPlane::new(MARK + 1);
    let mut transmit = stranger.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    let other = several(3, 3);
    send_mixed(transmit.as_mut(), &vec![other.clone()]).await?;
    same(&take(near.as_mut(), 1).await?, &[other.0])
}

async fn a_full_socket_for_what_goes_whole_becomes_writable_again() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    let queue = "qdisc add dev NEAR root tbf rate 800mbit burst 100kb limit 40mb";
    let queue = queue.replace("NEAR", near);
    let done = Command::new("tc").args(queue.split(' ')).status()?;
    assert!(done.success());
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    let all: Packets = (0..600).map(|n| several(n, 80)).collect();
    let taken = async {
        let mut got = Vec::new();
        while got.len() < all.len() {
            got.extend(take(capture.as_mut(), 1).await?);
        }
        Ok::<_, libtest_mimic::Failed>(got)
    };
    let (waits, got) = tokio::join!(send_mixed(transmit.as_mut(), &all), taken);
    let waits = waits?;
    assert!(waits > 0, "the socket was never full");
    assert!(waits < 50, "{waits} times for nothing");
    let sent: Vec<_> = all.iter().map(|(p, _)| p.clone()).collect();
    same(&got?, &sent)
}

async fn only_ethernet_with_its_queue_takes_packets_whole() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    assert!(Transmitter::open(bed.near, MARK, false)?.accepts_gso());
    assert!(!Transmitter::open(bed.near, MARK, true)?.accepts_gso());
    // The loopback has the header of Ethernet, but is none.
    assert!(!Transmitter::open(index(1), MARK, false)?.accepts_gso());
    Ok(())
}

async fn without_the_right_to_open_a_socket_packets_are_not_taken_whole() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut before = Transmitter::open(bed.near, MARK, false)?;
    let mut asked = Transmitter::open(bed.near, MARK, false)?;
    assert!(asked.accepts_gso());
    // Of this thread alone.
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_RAW)?;
    let takes = (before.accepts_gso(), asked.accepts_gso());
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW)?;
    assert_eq!(takes, (false, true));
    // It stays so: the queue has cut what it had by now.
    assert!(!before.accepts_gso());
    let (bytes, segments) = several(1, 3);
    let whole = OutPacket {
        bytes: &bytes,
        segments,
    };
    assert_eq!(asked.send(std::iter::once(whole))?, 1);
    let refused = before.send(std::iter::once(whole));
    assert_eq!(
        refused.err().and_then(|e| e.raw_os_error()),
        Some(libc::EINVAL)
    );
    let small = packet(2, 100);
    assert_eq!(before.send(std::iter::once(OutPacket::plain(&small)))?, 1);
    same(&take(capture.as_mut(), 2).await?, &[bytes, small])
}
