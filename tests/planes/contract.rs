//! What every plane promises.

use std::future::poll_fn;
use std::time::Duration;

use mcastor::pipeline::{Batch, OutPacket};

use super::bed::*;
use super::{Named, OnBed};

pub const TESTS: &[Named<OnBed>] = tests![bed:
    what_is_sent_arrives_in_order_with_its_bytes_unchanged,
    an_empty_send_does_nothing,
    packets_of_every_size_up_to_the_largest_arrive,
    a_capture_polled_again_after_a_pause_goes_on,
    packets_nobody_takes_out_are_counted_as_dropped,
    what_does_not_exist_cannot_be_opened,
    a_link_that_goes_down_and_up_again_goes_on,
    a_batch_held_is_not_written_to,
    a_capture_that_is_shut_hands_out_what_came_and_no_more,
];

/// Above this on a veth, below what its largest MTU allows.
const LARGEST: usize = 65_000;

pub async fn what_is_sent_arrives_in_order_with_its_bytes_unchanged(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // More than one system call takes, of both IP versions; fewer than the 1000 that the kernel
    // lets wait between the ends of a veth when the machine is busy.
    let sent: Vec<_> = (0..700)
        .map(|n| match n % 3 {
            0 => packet_v6(n, 100),
            _ => packet(n, 100 + n as usize % 7),
        })
        .collect();
    send_all(transmit.as_mut(), &sent).await?;
    same(&take(capture.as_mut(), sent.len()).await?, &sent)?;
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

async fn an_empty_send_does_nothing(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    assert_eq!(transmit.send(&mut std::iter::empty())?, 0);
    let sent = [packet(7, 60)];
    send_all(transmit.as_mut(), &sent).await?;
    same(&take(capture.as_mut(), 1).await?, &sent)
}

async fn packets_of_every_size_up_to_the_largest_arrive(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sizes = [
        20, 21, 28, 45, 46, 47, 60, 576, 1499, 1500, 1501, 4096, 9000, 32_768, 65_000,
    ];
    assert_eq!(sizes[sizes.len() - 1], LARGEST);
    for (n, size) in sizes.into_iter().enumerate() {
        let sent = [packet(n as u32, size)];
        send_all(transmit.as_mut(), &sent).await?;
        let got = take(capture.as_mut(), 1).await?;
        same(&got, &sent).map_err(|_| format!("of {size} bytes came {}", got[0].len()))?;
    }
    // And all of them at once, so that they share and cross blocks.
    let sent: Vec<_> = (0..3)
        .flat_map(|round| sizes.map(|size| packet(round, size)))
        .collect();
    send_all(transmit.as_mut(), &sent).await?;
    same(&take(capture.as_mut(), sent.len()).await?, &sent)
}

async fn a_capture_polled_again_after_a_pause_goes_on(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..20 {
        // Nothing there: the poll must leave a waker that the packet then wakes.
        let sent = [packet(round, 100)];
        let (sending, got) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                send_all(transmit.as_mut(), &sent).await
            },
            take(capture.as_mut(), 1)
        );
        sending?;
        same(&got?, &sent)?;
    }
    // Arrived while nobody polled.
    let sent: Vec<_> = (0..50).map(|n| packet(n, 100)).collect();
    send_all(transmit.as_mut(), &sent).await?;
    same(&take(capture.as_mut(), 50).await?, &sent)
}

async fn packets_nobody_takes_out_are_counted_as_dropped(bed: Bed) -> Outcome {
    let bed = bed.with_little_room()?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let sent: Vec<_> = (0..200).map(|n| packet(n, 200)).collect();
    send_all(transmit.as_mut(), &sent).await?;
    let dropped = capture.take_dropped();
    assert!(dropped > 0, "nothing was dropped");
    let there = sent.len() - dropped as usize;
    // What was taken in is the beginning, whole and in order.
    same(&take(capture.as_mut(), there).await?, &sent[..there])?;
    assert_eq!(capture.take_dropped(), 0, "counted twice");
    Ok(())
}

async fn what_does_not_exist_cannot_be_opened(bed: Bed) -> Outcome {
    let capture = bed.plane.capture(bed.missing).err();
    let transmit = bed.plane.transmit(bed.missing).err();
    for error in [capture, transmit] {
        let error = error.ok_or("it could be opened")?.raw_os_error();
        assert!(
            matches!(error, Some(libc::ENODEV | libc::ENXIO)),
            "{error:?}"
        );
    }
    Ok(())
}

pub async fn a_link_that_goes_down_and_up_again_goes_on(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    for round in 0..3 {
        let before = [packet(round, 100)];
        send_all(transmit.as_mut(), &before).await?;
        same(&take(capture.as_mut(), 1).await?, &before)?;
        bed.set_up(false)?;
        // The error of the link must neither end the capture nor stay in the way.
        let polled = poll_fn(|cx| std::task::Poll::Ready(capture.poll_batch(cx))).await;
        assert!(
            polled.is_pending(),
            "something came from a link that is down"
        );
        let refused = transmit.send(&mut std::iter::once(OutPacket::plain(&before[0])));
        assert_eq!(
            refused.err().and_then(|e| e.raw_os_error()),
            Some(libc::ENETDOWN)
        );
        bed.set_up(true)?;
        let after = [packet(round + 100, 100), packet(round + 200, 100)];
        send_all(transmit.as_mut(), &after).await?;
        same(&take(capture.as_mut(), 2).await?, &after)?;
    }
    Ok(())
}

async fn a_batch_held_is_not_written_to(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let mut held: Vec<(Batch, Vec<Vec<u8>>)> = Vec::new();
    // Less than the ring, in more rounds than a block has room for.
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
        same(&packets_of(batch), packets)?;
    }
    Ok(())
}

async fn a_capture_that_is_shut_hands_out_what_came_and_no_more(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let before: Vec<_> = (0..100).map(|n| packet(n, 100)).collect();
    send_all(transmit.as_mut(), &before).await?;
    capture.shut();
    let after: Vec<_> = (0..100).map(|n| packet(1000 + n, 100)).collect();
    send_all(transmit.as_mut(), &after).await?;
    same(&take(capture.as_mut(), before.len()).await?, &before)?;
    // Far longer than a block is kept open; there is nothing to wait for.
    let more = poll_fn(|cx| capture.poll_batch(cx));
    let more = tokio::time::timeout(Duration::from_millis(20), more).await;
    assert!(more.is_err(), "something came after it was shut");
    Ok(())
}
