//! Tests of sending in bursts.

use std::io;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Failed;
use mcastor::pipeline::{OutPacket, PacketSource};
use mcastor::sys::transmit::Transmitter;

use super::bed::*;
use super::{NamedTest, StandaloneTest};

pub const TESTS: &[NamedTest<StandaloneTest>] = tests![
    burst_frames_equal_single_frames,
    burst_errors_refer_to_the_refused_packet,
    new_link_gets_bursts_once_it_is_up,
    bridge_with_many_ports_limits_bursts,
    later_queue_reports_every_lost_packet,
];

async fn burst_frames_equal_single_frames() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    let transmitter = Transmitter::open(ifindex(bed.near), MARK, false)?;
    assert_eq!(transmitter.sends_bursts(), can_load_programs()?);
    assert!(!Transmitter::open(ifindex(bed.near), MARK, true)?.sends_bursts());
    assert!(!Transmitter::open(ifindex(index(1)), MARK, false)?.sends_bursts());

    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // Growing and shrinking sizes, below and above the limit of a burst.
    let mut sent: Vec<_> = [28, 1500, 20, 700, 2026, 2027, 64, 3000, 100, 101]
        .iter()
        .cycle()
        .zip(0..200)
        .map(|(len, n)| packet(n, *len))
        .collect();
    sent.extend((0..40).map(|n| packet_v6(n, 60 + 37 * n as usize)));
    for address in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        // The address may change while the transmitter is open.
        ip(&format!("link set {near} address {address}"))?;
        let mut single = Vec::new();
        for packet in &sent {
            send_all(transmit.as_mut(), std::slice::from_ref(packet)).await?;
            single.extend(receive_frames(capture.as_mut(), 1).await?);
        }
        send_all(transmit.as_mut(), &sent).await?;
        check_equal(
            &receive_frames(capture.as_mut(), sent.len()).await?,
            &single,
        )?;
        assert_eq!(
            single[0][6..12],
            [2, 0, 0, 0, 0, address.as_bytes()[16] - b'0']
        );
    }
    Ok(())
}

async fn burst_errors_refer_to_the_refused_packet() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    ip(&format!("link set {near} mtu 1000"))?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let all: Vec<_> = (0..30)
        .map(|n| packet(n, if n == 10 { 1001 } else { 1000 }))
        .collect();
    let from = |n: usize| all[n..].iter().map(|p| OutPacket::plain(p));
    let error = |done: io::Result<usize>| done.err().and_then(|e| e.raw_os_error());
    assert_eq!(transmit.send(&mut from(0))?, 10);
    assert_eq!(error(transmit.send(&mut from(10))), Some(libc::EMSGSIZE));
    send_all(transmit.as_mut(), &all[11..]).await?;
    let got = receive(capture.as_mut(), 29).await?;
    check_equal(&got, &[&all[..10], &all[11..]].concat())?;

    bed.set_up(false)?;
    for _ in 0..2 {
        assert_eq!(error(transmit.send(&mut from(11))), Some(libc::ENETDOWN));
    }
    bed.set_up(true)?;
    send_all(transmit.as_mut(), &all[11..]).await?;
    check_equal(&receive(capture.as_mut(), 19).await?, &all[11..])
}

async fn new_link_gets_bursts_once_it_is_up() -> Outcome {
    ip("link add early type veth peer name late")?;
    let found = mcastor::sys::ifaddr::interfaces()?;
    let near = found.iter().find(|i| i.name.as_str() == "early");
    let mut transmitter = Transmitter::open(near.ok_or("no veth")?.index, MARK, false)?;
    assert!(!transmitter.sends_bursts());
    ip("link set early up")?;
    ip("link set late up")?;
    wait_until_running("early")?;
    let all: Vec<_> = (0..20).map(|n| packet(n, 100)).collect();
    let started = std::time::Instant::now();
    while !transmitter.sends_bursts() && can_load_programs()? {
        assert!(started.elapsed() < PATIENCE, "no bursts after link up");
        assert!(transmitter.send(all.iter().map(|p| OutPacket::plain(p)))? > 0);
    }
    Ok(())
}

/// The bridge copies each packet to all ports, and all copies wait in one kernel queue. That queue
/// is shorter than 32 packets on all ports.
async fn bridge_with_many_ports_limits_bursts() -> Outcome {
    const PORTS: u32 = 40;
    const PACKETS: u32 = 3_000;
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { far, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    // Without IPv6 the kernel sends no packets of its own, which would be counted.
    let disable_ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    if std::path::Path::new(disable_ipv6).exists() {
        std::fs::write(disable_ipv6, "1")?;
    }
    let mut script = format!(
        "link add wide type bridge mcast_snooping 0 stp_state 0\nlink set wide up\n\
         link set {far} master wide\n"
    );
    for n in 0..PORTS {
        script += &format!(
            "link add port{n} type veth peer name end{n}\nlink set port{n} master wide up\n\
             link set end{n} up\n"
        );
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), script)?;
    ip(&format!("-batch {}", file.path().display()))?;
    for n in 0..PORTS {
        wait_until_running(&format!("port{n}"))?;
    }
    let received = |n: u32| -> Result<u64, Failed> {
        let text = std::fs::read_to_string("/proc/self/net/dev")?;
        let name = format!("end{n}:");
        let line = text.lines().find_map(|l| l.trim().strip_prefix(&name));
        let packets = line.and_then(|l| l.split_whitespace().nth(1));
        Ok(packets.ok_or("no such port")?.parse()?)
    };
    let before = (0..PORTS).map(received).collect::<Result<Vec<_>, _>>()?;
    let mut transmitter = Transmitter::open(ifindex(bed.near), MARK, false)?;
    // Bridges drop packets with a bad IPv4 checksum if netfilter is enabled for them.
    let with_checksum = |n| {
        let mut packet = packet(n, 100);
        mcastor::wire::ip::refresh_ipv4_checksum(&mut packet);
        packet
    };
    let all: Vec<_> = (0..PACKETS).map(with_checksum).collect();
    let mut next = 0;
    while next < all.len() {
        let rest = &all[next..];
        match transmitter.send(rest.iter().map(|p| OutPacket::plain(p))) {
            Ok(n) => next += n,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut lost = 0;
    for n in 0..PORTS {
        let started = std::time::Instant::now();
        let arrived = || Ok::<_, Failed>(received(n)? - before[n as usize]);
        // The bursts that overflow the queue before the limit is found may lose packets.
        while arrived()? < u64::from(PACKETS) - 200 {
            let arrived = arrived()?;
            assert!(
                started.elapsed() < PATIENCE,
                "{arrived} packets at port {n}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lost += u64::from(PACKETS).saturating_sub(arrived()?);
    }
    ip("link del wide")?;
    println!(
        "{lost} of {} lost before the limit was found",
        PACKETS * PORTS
    );
    assert_eq!(transmitter.burst_limit() < 32, can_load_programs()?);
    Ok(())
}

async fn later_queue_reports_every_lost_packet() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let all: Vec<_> = (0..100).map(|n| packet(n, 1000)).collect();
    send_all(transmit.as_mut(), &all).await?;
    check_equal(&receive(capture.as_mut(), all.len()).await?, &all)?;
    // The queue holds about 40 packets.
    let shape = format!("qdisc add dev {near} root tbf rate 800kbit burst 2k limit 40000");
    let output = Command::new("tc").args(shape.split(' ')).output()?;
    assert!(output.status.success(), "tc: {output:?}");
    let (mut accepted, mut refused) = (Vec::new(), 0);
    let mut next = 0;
    while next < all.len() {
        match transmit.send(&mut all[next..].iter().map(|p| OutPacket::plain(p))) {
            Ok(n) => {
                accepted.extend_from_slice(&all[next..next + n]);
                next += n;
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                refused += 1;
                next += 1;
            }
            Err(e) => return Err(e.into()),
        }
    }
    assert!(
        refused > 0,
        "the queue was never full, so the test proves nothing"
    );
    check_equal(&receive(capture.as_mut(), accepted.len()).await?, &accepted)
}

/// Receives `count` frames, each with its link header and packet.
async fn receive_frames(
    capture: &mut dyn PacketSource,
    count: usize,
) -> Result<Vec<Vec<u8>>, Failed> {
    const ETHERNET: usize = 14;
    let mut frames = Vec::new();
    while frames.len() < count {
        let batch = next_batch(capture).await?;
        frames.extend(batch.packets.iter().map(|p| {
            let start = p.start as usize;
            batch.bytes()[start - ETHERNET..start + p.len as usize].to_vec()
        }));
    }
    Ok(frames)
}

/// Returns true if the kernel lets this process load BPF programs: it refuses them in a user
/// namespace, and the transmitter then sends single packets.
fn can_load_programs() -> io::Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/uid_map")?.contains("4294967295"))
}
