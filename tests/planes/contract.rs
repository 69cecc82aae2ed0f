//! The contract tests: behaviour that every plane must have.

use std::future::poll_fn;
use std::time::Duration;

use mcastor::pipeline::{Batch, OutPacket};

use super::bed::*;
use super::{BedTest, NamedTest};

pub const TESTS: &[NamedTest<BedTest>] = tests![bed:
    packets_arrive_unchanged_and_in_order,
    empty_send_does_nothing,
    packets_of_every_size_arrive,
    capture_wakes_after_idle_polls,
    unread_packets_are_counted_as_dropped,
    missing_interface_cannot_be_opened,
    link_flap_does_not_end_capture,
    held_batch_is_not_overwritten,
    closed_capture_returns_only_earlier_packets,
];

/// The largest packet size of the tests, just below the largest MTU of a veth.
const LARGEST: usize = 65_000;

pub async fn packets_arrive_unchanged_and_in_order(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // More packets than one system call takes, of both IP versions, but fewer than the 1000 packets
    // that the kernel queues between the ends of a veth.
    let sent: Vec<_> = (0..700)
        .map(|n| match n % 3 {
            0 => packet_v6(n, 100),
            _ => packet(n, 100 + n as usize % 7),
        })
        .collect();
    send_all(transmit.as_mut(), &sent).await?;
    check_equal(&receive(capture.as_mut(), sent.len()).await?, &sent)?;
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

async fn empty_send_does_nothing(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert_eq!(transmit.send(&mut std::iter::empty())?, 0);
    let sent = [packet(7, 60)];
    send_all(transmit.as_mut(), &sent).await?;
    check_equal(&receive(capture.as_mut(), 1).await?, &sent)
}

async fn packets_of_every_size_arrive(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sizes = [
        20, 21, 28, 45, 46, 47, 60, 576, 1499, 1500, 1501, 4096, 9000, 32_768, 65_000,
    ];
    assert_eq!(sizes[sizes.len() - 1], LARGEST);
    for (n, size) in sizes.into_iter().enumerate() {
        let sent = [packet(n as u32, size)];
        send_all(transmit.as_mut(), &sent).await?;
        let got = receive(capture.as_mut(), 1).await?;
        check_equal(&got, &sent)
            .map_err(|_| format!("received {} of {size} bytes", got[0].len()))?;
    }
    // All sizes together, so that packets share blocks and start new ones.
    let sent: Vec<_> = (0..3)
        .flat_map(|round| sizes.map(|size| packet(round, size)))
        .collect();
    send_all(transmit.as_mut(), &sent).await?;
    check_equal(&receive(capture.as_mut(), sent.len()).await?, &sent)
}

async fn capture_wakes_after_idle_polls(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..20 {
        // The first poll finds no packet and must register the waker.
        let sent = [packet(round, 100)];
        let (sending, got) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                send_all(transmit.as_mut(), &sent).await
            },
            receive(capture.as_mut(), 1)
        );
        sending?;
        check_equal(&got?, &sent)?;
    }
    // These packets arrive while the capture is not polled.
    let sent: Vec<_> = (0..50).map(|n| packet(n, 100)).collect();
    send_all(transmit.as_mut(), &sent).await?;
    check_equal(&receive(capture.as_mut(), 50).await?, &sent)
}

async fn unread_packets_are_counted_as_dropped(bed: Bed) -> Outcome {
    let bed = bed.with_small_buffers()?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sent: Vec<_> = (0..200).map(|n| packet(n, 200)).collect();
    send_all(transmit.as_mut(), &sent).await?;
    // They may be returned one call late.
    let dropped = capture.take_dropped() + capture.take_dropped();
    assert!(dropped > 0, "nothing was dropped");
    let kept = sent.len() - dropped as usize;
    // The first packets were kept, complete and in order.
    check_equal(&receive(capture.as_mut(), kept).await?, &sent[..kept])?;
    assert_eq!(capture.take_dropped(), 0, "counted twice");
    Ok(())
}

async fn missing_interface_cannot_be_opened(bed: Bed) -> Outcome {
    let capture = bed.plane.capture(bed.missing).err();
    let transmit = bed.plane.transmit(bed.missing).err();
    for error in [capture, transmit] {
        let error = error
            .ok_or("a missing interface was opened")?
            .raw_os_error();
        assert!(
            matches!(error, Some(libc::ENODEV | libc::ENXIO)),
            "{error:?}"
        );
    }
    Ok(())
}

pub async fn link_flap_does_not_end_capture(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..3 {
        let before = [packet(round, 100)];
        send_all(transmit.as_mut(), &before).await?;
        check_equal(&receive(capture.as_mut(), 1).await?, &before)?;
        bed.set_up(false)?;
        // The pending error of the socket must neither end the capture nor hide later packets.
        let polled = poll_fn(|cx| std::task::Poll::Ready(capture.poll_batch(cx))).await;
        assert!(
            polled.is_pending(),
            "a batch arrived from a link that is down"
        );
        let refused = transmit.send(&mut std::iter::once(OutPacket::plain(&before[0])));
        assert_eq!(
            refused.err().and_then(|e| e.raw_os_error()),
            Some(libc::ENETDOWN)
        );
        bed.set_up(true)?;
        let after = [packet(round + 100, 100), packet(round + 200, 100)];
        send_all(transmit.as_mut(), &after).await?;
        check_equal(&receive(capture.as_mut(), 2).await?, &after)?;
    }
    Ok(())
}

async fn held_batch_is_not_overwritten(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let mut held: Vec<(Batch, Vec<Vec<u8>>)> = Vec::new();
    // Fewer bytes than the ring holds, but more than one block holds.
    for n in 0..10u32 {
        let sent = [packet(n, 3000), packet(n + 100, 3000)];
        send_all(transmit.as_mut(), &sent).await?;
        let mut got = 0;
        while got < sent.len() {
            let batch = next_batch(capture.as_mut()).await?;
            let packets = packets_of(&batch);
            got += packets.len();
            held.push((batch, packets));
        }
    }
    for (batch, packets) in &held {
        check_equal(&packets_of(batch), packets)?;
    }
    Ok(())
}

async fn closed_capture_returns_only_earlier_packets(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let before: Vec<_> = (0..100).map(|n| packet(n, 100)).collect();
    send_all(transmit.as_mut(), &before).await?;
    capture.stop_capture();
    let after: Vec<_> = (0..100).map(|n| packet(1000 + n, 100)).collect();
    send_all(transmit.as_mut(), &after).await?;
    check_equal(&receive(capture.as_mut(), before.len()).await?, &before)?;
    // Much longer than the block timeout.
    let more = poll_fn(|cx| capture.poll_batch(cx));
    let more = tokio::time::timeout(Duration::from_millis(20), more).await;
    assert!(more.is_err(), "a batch arrived after shut");
    Ok(())
}
