//! Tests of sending GSO packets.

use std::future::poll_fn;
use std::io;
use std::process::Command;

use caps::{CapSet, Capability};
use mcastor::forward::segment::prepare_for_kernel_gso;
use mcastor::pipeline::{OutPacket, PacketSink};
use mcastor::planes::Plane;
use mcastor::planes::packet::PacketPlane;
use mcastor::sys::transmit::Transmitter;
use mcastor::wire::ip::refresh_ipv4_checksum;
use mcastor::wire::offload::{GsoLayout, Offload};

use super::bed::*;
use super::{NamedTest, StandaloneTest};

pub const TESTS: &[NamedTest<StandaloneTest>] = tests![
    bursts_and_gso_packets_keep_their_order,
    own_gso_packets_are_not_captured,
    full_gso_socket_becomes_writable_again,
    gso_requires_ethernet_and_device_queue,
    gso_is_unavailable_without_cap_net_raw,
];

/// Returns whether packet sockets send and describe GSO packets of UDP: since Linux 6.2.
pub fn is_supported() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

const PAYLOAD: u16 = 500;

type Packets = Vec<(Vec<u8>, Option<GsoLayout>)>;

fn plain(n: u32) -> (Vec<u8>, Option<GsoLayout>) {
    (packet(n, 100 + n as usize % 900), None)
}

/// Returns a GSO packet with `count` segments.
fn gso(n: u32, count: usize) -> (Vec<u8>, Option<GsoLayout>) {
    let segments = GsoLayout::new(PAYLOAD, 28).expect("headers of UDP");
    let mut p = packet(n, 28 + count * usize::from(PAYLOAD));
    // Clears the fragment fields.
    p[4..8].fill(0);
    p[10..12].fill(0);
    refresh_ipv4_checksum(&mut p);
    prepare_for_kernel_gso(&mut p, segments);
    (p, Some(segments))
}

/// Sends all packets and returns how often it waited for a writable socket.
async fn send_mixed(transmit: &mut dyn PacketSink, all: &Packets) -> io::Result<usize> {
    let (mut next, mut waits) = (0, 0);
    while next < all.len() {
        let rest = all[next..].iter();
        let rest = rest.map(|(bytes, segments)| OutPacket {
            bytes,
            segments: *segments,
        });
        match transmit.send(&mut { rest }) {
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

async fn bursts_and_gso_packets_keep_their_order() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    let mut n = 0;
    for round in 0..60u32 {
        let mut all = Packets::new();
        for i in 0..round % 45 {
            n += 1;
            all.push(plain(n));
            // GSO packets in the middle of a burst and after it.
            if i % 20 == 19 {
                all.push(gso(n, 2));
            }
        }
        all.extend((0..round % 4).map(|i| gso(n + i, 2 + round as usize % 9)));
        send_mixed(transmit.as_mut(), &all).await?;
        let mut got = Vec::new();
        while got.len() < all.len() {
            let batch = next_batch(capture.as_mut()).await?;
            let segment_payload = |o: &Offload| match o {
                Offload::UdpSegments { payload } => Some(*payload),
                _ => None,
            };
            let offloads = batch.packets.iter().map(|p| segment_payload(&p.offload));
            got.extend(packets_of(&batch).into_iter().zip(offloads));
        }
        let sent = all.into_iter().map(|(p, s)| (p, s.map(|s| s.payload())));
        assert!(
            got == sent.collect::<Vec<_>>(),
            "the packets or their order differ"
        );
    }
    Ok(())
}

async fn own_gso_packets_are_not_captured() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let mut near = bed.plane.capture(bed.near)?;
    let mut far = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    send_mixed(transmit.as_mut(), &vec![gso(1, 3), gso(2, 3)]).await?;
    receive(far.as_mut(), 2).await?;
    // The packet of another instance is the first that this capture receives.
    let other_instance = PacketPlane::new(MARK + 1);
    let mut transmit = other_instance.transmit(bed.near)?;
    assert!(transmit.accepts_gso());
    let other = gso(3, 3);
    send_mixed(transmit.as_mut(), &vec![other.clone()]).await?;
    check_equal(&receive(near.as_mut(), 1).await?, &[other.0])
}

async fn full_gso_socket_becomes_writable_again() -> Outcome {
    let bed = Bed::veth(default_plane())?;
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
    let all: Packets = (0..600).map(|n| gso(n, 80)).collect();
    let receiving = async {
        let mut got = Vec::new();
        while got.len() < all.len() {
            match receive(capture.as_mut(), 1).await {
                Ok(packets) => got.extend(packets),
                // The capture may be too slow for the packets.
                Err(_) => break,
            }
        }
        // Drops of a ring are returned one call late.
        let dropped = capture.take_dropped() + capture.take_dropped();
        if got.len() < all.len() {
            let counts = format!(
                "{} of {} packets arrived, {dropped} dropped by the capture",
                got.len(),
                all.len()
            );
            return Err(counts.into());
        }
        Ok::<_, libtest_mimic::Failed>(got)
    };
    let (waits, got) = tokio::join!(send_mixed(transmit.as_mut(), &all), receiving);
    let waits = waits?;
    assert!(waits > 0, "the socket was never full");
    assert!(waits < 50, "waited {waits} times, mostly without need");
    let sent: Vec<_> = all.iter().map(|(p, _)| p.clone()).collect();
    check_equal(&got?, &sent)
}

async fn gso_requires_ethernet_and_device_queue() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    assert!(Transmitter::open(ifindex(bed.near), MARK, false)?.accepts_gso());
    assert!(!Transmitter::open(ifindex(bed.near), MARK, true)?.accepts_gso());
    // The loopback uses Ethernet headers, but is not Ethernet.
    assert!(!Transmitter::open(ifindex(index(1)), MARK, false)?.accepts_gso());
    Ok(())
}

async fn gso_is_unavailable_without_cap_net_raw() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut unopened = Transmitter::open(ifindex(bed.near), MARK, false)?;
    let mut opened = Transmitter::open(ifindex(bed.near), MARK, false)?;
    assert!(opened.accepts_gso());
    // Capabilities belong to a thread, so other tests are not affected.
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_RAW)?;
    let accepted = (unopened.accepts_gso(), opened.accepts_gso());
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW)?;
    assert_eq!(accepted, (false, true));
    // `accepts_gso` keeps its first result: the egress queue relies on it when it decides whether
    // to segment.
    assert!(!unopened.accepts_gso());
    let (bytes, segments) = gso(1, 3);
    let packet_with_segments = OutPacket {
        bytes: &bytes,
        segments,
    };
    assert_eq!(opened.send(std::iter::once(packet_with_segments))?, 1);
    let refused = unopened.send(std::iter::once(packet_with_segments));
    assert_eq!(
        refused.err().and_then(|e| e.raw_os_error()),
        Some(libc::EINVAL)
    );
    let small = packet(2, 100);
    assert_eq!(unopened.send(std::iter::once(OutPacket::plain(&small)))?, 1);
    check_equal(&receive(capture.as_mut(), 2).await?, &[bytes, small])
}
