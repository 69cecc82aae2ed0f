//! Packet sockets: what they take in, and what becomes of what they cannot send.

use std::future::poll_fn;
use std::io;
use std::process::Command;
use std::time::Duration;

use mcastor::pipeline::OutPacket;
use mcastor::planes::Plane;
use mcastor::planes::packet::PacketPlane;

use super::bed::*;
use super::contract::what_is_sent_arrives_in_order_with_its_bytes_unchanged;
use super::{Alone, Named};

pub const TESTS: &[Named<Alone>] = tests![
    own_transmissions_are_not_taken_in_others_are,
    blocks_go_back_to_the_kernel_when_dropped,
    a_full_socket_becomes_writable_again,
    too_large_for_the_link_is_an_error_of_that_packet,
    a_stall_of_a_tenth_of_a_second_loses_nothing,
    without_a_carrier_the_kernel_takes_packets_and_loses_them,
    the_bypass_of_the_device_queue_sends_too,
];

async fn own_transmissions_are_not_taken_in_others_are() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    // On the interface that is sent on.
    let mut capture = bed.plane.capture(bed.near)?;
    let mut ours = bed.plane.transmit(bed.near)?;
    let stranger = PacketPlane {
        mark: MARK + 1,
        ..PacketPlane::usual()
    };
    let mut others = stranger.transmit(bed.near)?;
    send_all(ours.as_mut(), &[packet(1, 100), packet_v6(2, 100)]).await?;
    let sent = [packet(3, 100), packet_v6(4, 100)];
    send_all(others.as_mut(), &sent).await?;
    send_all(ours.as_mut(), &[packet(5, 100)]).await?;
    // A packet to a host is nobody's business.
    let mut unicast = packet(6, 100);
    unicast[16] = 10;
    send_all(others.as_mut(), &[unicast]).await?;
    let last = [packet(7, 100)];
    send_all(others.as_mut(), &last).await?;
    let got = take(capture.as_mut(), 3).await?;
    same(&got[..2], &sent)?;
    same(&got[2..], &last)?;
    // The far end takes in what bears our mark: it is a packet like any other there.
    let mut far = bed.plane.capture(bed.far)?;
    let again = [packet(8, 100)];
    send_all(ours.as_mut(), &again).await?;
    same(&take(far.as_mut(), 1).await?, &again)
}

async fn blocks_go_back_to_the_kernel_when_dropped() -> Outcome {
    let bed = Bed::veth(tiny_ring())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..5u32 {
        let mut held = Vec::new();
        // Both blocks, one after the other.
        for n in 0..2 {
            send_all(transmit.as_mut(), &[packet(round * 10 + n, 100)]).await?;
            held.push(next_batch(capture.as_mut()).await?);
        }
        assert_eq!(capture.take_dropped(), 0);
        let before: Vec<_> = held.iter().map(packets_of).collect();
        // Nowhere to go now: dropped, counted, and what is held stays as it is.
        let lost: Vec<_> = (0..20).map(|n| packet(900 + n, 100)).collect();
        send_all(transmit.as_mut(), &lost).await?;
        assert_eq!(capture.take_dropped(), 20);
        let polled = poll_fn(|cx| std::task::Poll::Ready(capture.poll_batch(cx))).await;
        assert!(polled.is_pending(), "a block that is held was lent again");
        for (batch, packets) in held.iter().zip(&before) {
            same(&packets_of(batch), packets)?;
        }
        drop(held);
        let after = [packet(round * 10 + 5, 100)];
        send_all(transmit.as_mut(), &after).await?;
        same(&take(capture.as_mut(), 1).await?, &after)?;
        assert_eq!(capture.take_dropped(), 0);
    }
    Ok(())
}

async fn a_full_socket_becomes_writable_again() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    // A queue slower than we are, and longer than our socket buffer: so the socket is full
    // before the queue is.
    let shape = format!("qdisc add dev {near} root tbf rate 100mbit burst 20k limit 100000000");
    let output = Command::new("tc").args(shape.split(' ')).output()?;
    assert!(output.status.success(), "tc: {output:?}");
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sent: Vec<_> = (0..6000).map(|n| packet(n, 1400)).collect();
    let (mut blocked, mut next) = (0, 0);
    while next < sent.len() {
        let left = &sent[next..];
        match transmit.send(&mut left.iter().map(|p| OutPacket::plain(p))) {
            Ok(n) => next += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                blocked += 1;
                let writable = poll_fn(|cx| transmit.poll_writable(cx));
                tokio::time::timeout(PATIENCE, writable)
                    .await
                    .map_err(|_| "it never became writable again")??;
            }
            Err(e) => return Err(e.into()),
        }
    }
    assert!(blocked > 0, "the socket was never full: nothing was tried");
    // The queue's own count: on a busy machine a veth may lose some behind it.
    let expected = format!(" {} pkt (dropped 0,", sent.len());
    let begun = std::time::Instant::now();
    loop {
        let show = format!("-s qdisc show dev {near}");
        let output = Command::new("tc").args(show.split(' ')).output()?;
        let shown = String::from_utf8_lossy(&output.stdout);
        if shown.contains(&expected) {
            return Ok(());
        }
        assert!(begun.elapsed() < PATIENCE, "{shown}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn too_large_for_the_link_is_an_error_of_that_packet() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    ip(&format!("link set {near} mtu 1000"))?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let three = [packet(1, 1000), packet(2, 1500), packet(3, 1000)];
    let slices = || three.iter().map(|p| OutPacket::plain(p));
    assert_eq!(transmit.send(&mut slices())?, 1);
    let refused = transmit.send(&mut slices().skip(1));
    assert_eq!(
        refused.err().and_then(|e| e.raw_os_error()),
        Some(libc::EMSGSIZE)
    );
    assert_eq!(transmit.send(&mut slices().skip(2))?, 1);
    let got = take(capture.as_mut(), 2).await?;
    same(&got, &[three[0].clone(), three[2].clone()])
}

async fn a_stall_of_a_tenth_of_a_second_loses_nothing() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // What comes in 100 ms at 10,000 a second, of full length; nobody takes it out meanwhile.
    let sent: Vec<_> = (0..1000).map(|n| packet(n, 1500)).collect();
    for _ in 0..5 {
        send_all(transmit.as_mut(), &sent).await?;
        same(&take(capture.as_mut(), sent.len()).await?, &sent)?;
    }
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

/// Why the table knows whether an egress runs.
async fn without_a_carrier_the_kernel_takes_packets_and_loses_them() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, far } = &bed.kind else {
        return Err("not a veth".into());
    };
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    ip(&format!("link set {far} down"))?;
    // A moment later the kernel has taken notice; before that, the packet is refused.
    wait_while_running(near)?;
    assert_eq!(
        transmit.send(&mut std::iter::once(OutPacket::plain(&packet(1, 100))))?,
        1
    );
    bed.set_up(true)?;
    let after = [packet(2, 100)];
    send_all(transmit.as_mut(), &after).await?;
    same(&take(capture.as_mut(), 1).await?, &after)
}

async fn the_bypass_of_the_device_queue_sends_too() -> Outcome {
    let plane = PacketPlane {
        qdisc_bypass: true,
        ..PacketPlane::usual()
    };
    what_is_sent_arrives_in_order_with_its_bytes_unchanged(Bed::veth(plane)?).await
}
