//! Tests of packet sockets: which packets they capture, and how they report send errors.

use std::future::poll_fn;
use std::io;
use std::process::Command;
use std::time::Duration;

use mcastor::pipeline::OutPacket;
use mcastor::planes::Plane;
use mcastor::planes::packet::PacketPlane;

use super::bed::*;
use super::contract::packets_arrive_unchanged_and_in_order;
use super::{NamedTest, StandaloneTest};

pub const TESTS: &[NamedTest<StandaloneTest>] = tests![
    own_packets_are_not_captured_others_are,
    dropped_blocks_return_to_the_kernel,
    full_socket_becomes_writable_again,
    oversized_packet_fails_alone,
    receiver_pause_of_100_ms_loses_nothing,
    missing_carrier_loses_packets_without_error,
    qdisc_bypass_sends_packets,
];

async fn own_packets_are_not_captured_others_are() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    // The capture is on the interface that sends.
    let mut capture = bed.plane.capture(bed.near)?;
    let mut own = bed.plane.transmit(bed.near)?;
    let other_plane = PacketPlane {
        mark: MARK + 1,
        ..default_plane()
    };
    let mut other = other_plane.transmit(bed.near)?;
    send_all(own.as_mut(), &[packet(1, 100), packet_v6(2, 100)]).await?;
    let sent = [packet(3, 100), packet_v6(4, 100)];
    send_all(other.as_mut(), &sent).await?;
    send_all(own.as_mut(), &[packet(5, 100)]).await?;
    // Unicast packets are not captured.
    let mut unicast = packet(6, 100);
    unicast[16] = 10;
    send_all(other.as_mut(), &[unicast]).await?;
    let last = [packet(7, 100)];
    send_all(other.as_mut(), &last).await?;
    let got = receive(capture.as_mut(), 3).await?;
    check_equal(&got[..2], &sent)?;
    check_equal(&got[2..], &last)?;
    // The far end captures packets with the mark, because they are incoming there.
    let mut far = bed.plane.capture(bed.far)?;
    let again = [packet(8, 100)];
    send_all(own.as_mut(), &again).await?;
    check_equal(&receive(far.as_mut(), 1).await?, &again)
}

async fn dropped_blocks_return_to_the_kernel() -> Outcome {
    let bed = Bed::veth(tiny_ring())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..5u32 {
        let mut held = Vec::new();
        // Fills both blocks, one after the other.
        for n in 0..2 {
            send_all(transmit.as_mut(), &[packet(round * 10 + n, 100)]).await?;
            held.push(next_batch(capture.as_mut()).await?);
        }
        assert_eq!(capture.take_dropped(), 0);
        let before: Vec<_> = held.iter().map(packets_of).collect();
        // No block is free: the kernel drops and counts the packets, and held blocks do not change.
        let lost: Vec<_> = (0..20).map(|n| packet(900 + n, 100)).collect();
        send_all(transmit.as_mut(), &lost).await?;
        // The first call may return them one call late.
        let dropped = capture.take_dropped() + capture.take_dropped();
        assert_eq!(dropped, 20);
        let polled = poll_fn(|cx| std::task::Poll::Ready(capture.poll_batch(cx))).await;
        assert!(polled.is_pending(), "a held block was returned again");
        for (batch, packets) in held.iter().zip(&before) {
            check_equal(&packets_of(batch), packets)?;
        }
        drop(held);
        let after = [packet(round * 10 + 5, 100)];
        send_all(transmit.as_mut(), &after).await?;
        check_equal(&receive(capture.as_mut(), 1).await?, &after)?;
        assert_eq!(capture.take_dropped(), 0);
    }
    Ok(())
}

async fn full_socket_becomes_writable_again() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    // The queue is slower than the sender and larger than the socket buffer, so the socket is full
    // before the queue is.
    let shape = format!("qdisc add dev {near} root tbf rate 100mbit burst 20k limit 100000000");
    let output = Command::new("tc").args(shape.split(' ')).output()?;
    assert!(output.status.success(), "tc: {output:?}");
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sent: Vec<_> = (0..6000).map(|n| packet(n, 1400)).collect();
    let (mut blocked, mut next) = (0, 0);
    while next < sent.len() {
        let rest = &sent[next..];
        match transmit.send(&mut rest.iter().map(|p| OutPacket::plain(p))) {
            Ok(n) => next += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                blocked += 1;
                let writable = poll_fn(|cx| transmit.poll_writable(cx));
                tokio::time::timeout(PATIENCE, writable)
                    .await
                    .map_err(|_| "the socket did not become writable again")??;
            }
            Err(e) => return Err(e.into()),
        }
    }
    assert!(
        blocked > 0,
        "the socket was never full, so the test proves nothing"
    );
    // Checks the counter of the queue, because a veth may lose packets behind the queue on a busy
    // machine.
    let expected = format!(" {} pkt (dropped 0,", sent.len());
    let started = std::time::Instant::now();
    loop {
        let show = format!("-s qdisc show dev {near}");
        let output = Command::new("tc").args(show.split(' ')).output()?;
        let shown = String::from_utf8_lossy(&output.stdout);
        if shown.contains(&expected) {
            return Ok(());
        }
        assert!(started.elapsed() < PATIENCE, "{shown}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn oversized_packet_fails_alone() -> Outcome {
    let bed = Bed::veth(default_plane())?;
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
    let got = receive(capture.as_mut(), 2).await?;
    check_equal(&got, &[three[0].clone(), three[2].clone()])
}

async fn receiver_pause_of_100_ms_loses_nothing() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // The full-size packets of 100 ms at 10,000 packets per second. They arrive before the capture
    // is polled.
    let sent: Vec<_> = (0..1000).map(|n| packet(n, 1500)).collect();
    for _ in 0..5 {
        send_all(transmit.as_mut(), &sent).await?;
        check_equal(&receive(capture.as_mut(), sent.len()).await?, &sent)?;
    }
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

/// This is the reason why the table records whether an egress is running.
async fn missing_carrier_loses_packets_without_error() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { near, far } = &bed.kind else {
        return Err("not a veth".into());
    };
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    ip(&format!("link set {far} down"))?;
    // Until the kernel has deactivated the queue, it refuses the packet with an error.
    wait_while_running(near)?;
    assert_eq!(
        transmit.send(&mut std::iter::once(OutPacket::plain(&packet(1, 100))))?,
        1
    );
    bed.set_up(true)?;
    let after = [packet(2, 100)];
    send_all(transmit.as_mut(), &after).await?;
    check_equal(&receive(capture.as_mut(), 1).await?, &after)
}

async fn qdisc_bypass_sends_packets() -> Outcome {
    let plane = PacketPlane {
        qdisc_bypass: true,
        ..default_plane()
    };
    packets_arrive_unchanged_and_in_order(Bed::veth(plane)?).await
}
