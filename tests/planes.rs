//! What every plane promises, tried on each: the simulated one, and packet sockets on a veth
//! pair. The packet plane needs a network namespace of its own: the test makes one and runs
//! itself again inside it; where it may not, it says so and skips.

use std::future::poll_fn;
use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use mcastor::model::IfIndex;
use mcastor::planes::packet::{Modes, PacketPlane};
use mcastor::planes::rate::{Mode, Thresholds};
use mcastor::planes::sim::SimPlane;
use mcastor::planes::{Batch, Capture, Plane, Transmit};
use mcastor::sys::ring::RingSize;
use mcastor::sys::transmit::Transmitter;

/// Set for the run inside the namespace.
const INSIDE: &str = "MCASTOR_PLANES_INSIDE";
/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Above this on a veth, below what its largest MTU allows.
const LARGEST: usize = 65_000;
const MARK: u32 = 0x6d63_7473;
const MODES: [Mode; 2] = [Mode::Latency, Mode::Throughput];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside && let Some(code) = run_inside_a_namespace() {
        return code;
    }
    if !inside {
        println!(
            "packet plane: {} tests skipped: no network namespace can be made here (needs root, \
             or unprivileged user namespaces)",
            PACKET.len() + MODES.len() * CONTRACT.len()
        );
    }
    let mut trials = Vec::new();
    for (name, test) in CONTRACT {
        trials.push(Trial::test(format!("sim::{name}"), move || {
            run(test(Bed::sim()))
        }));
        for mode in MODES {
            let packet = move || run(test(Bed::veth(fixed(mode))?));
            let name = format!("packet::{}::{name}", mode.label());
            trials.push(Trial::test(name, packet).with_ignored_flag(!inside));
        }
    }
    for (name, test) in PACKET {
        let packet = move || run(test());
        trials.push(Trial::test(format!("packet::{name}"), packet).with_ignored_flag(!inside));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs this program again in a fresh network namespace, which ends with it.
fn run_inside_a_namespace() -> Option<ExitCode> {
    let ways: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
    let works = |way: &&[&str]| {
        let mut probe = Command::new("unshare");
        probe.args(*way).args(["ip", "link", "add", "type", "veth"]);
        let silent = probe.stdout(Stdio::null()).stderr(Stdio::null());
        silent.status().is_ok_and(|s| s.success())
    };
    let way = ways.into_iter().find(works)?;
    let status = Command::new("unshare")
        .args(way)
        .arg(std::env::current_exe().ok()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .ok()?;
    Some(ExitCode::from(status.code().map_or(1, |c| c as u8)))
}

type Outcome = Result<(), Failed>;
type Test = std::pin::Pin<Box<dyn Future<Output = Outcome>>>;

fn run(test: Test) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(test)
}

/// `(name, test)` of a function.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => { &[$((stringify!($name), |bed| Box::pin($name(bed)))),+] };
}

type OnBed = fn(Bed) -> Test;
type Named<F> = (&'static str, F);

const CONTRACT: &[Named<OnBed>] = tests![
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

const PACKET: &[Named<fn() -> Test>] = &[
    ("own_transmissions_are_not_taken_in_others_are", || {
        Box::pin(own_transmissions_are_not_taken_in_others_are())
    }),
    ("blocks_go_back_to_the_kernel_when_dropped", || {
        Box::pin(blocks_go_back_to_the_kernel_when_dropped())
    }),
    ("a_full_socket_becomes_writable_again", || {
        Box::pin(a_full_socket_becomes_writable_again())
    }),
    ("too_large_for_the_link_is_an_error_of_that_packet", || {
        Box::pin(too_large_for_the_link_is_an_error_of_that_packet())
    }),
    (
        "nothing_is_lost_doubled_or_reordered_as_modes_change",
        || Box::pin(nothing_is_lost_doubled_or_reordered_as_modes_change()),
    ),
    ("a_block_that_is_late_comes_before_what_came_later", || {
        Box::pin(a_block_that_is_late_comes_before_what_came_later())
    }),
    ("a_ring_given_back_and_opened_anew_loses_nothing", || {
        Box::pin(a_ring_given_back_and_opened_anew_loses_nothing())
    }),
    ("the_mode_follows_the_rate", || {
        Box::pin(the_mode_follows_the_rate())
    }),
    ("a_link_that_flaps_in_an_adaptive_capture_goes_on", || {
        Box::pin(async {
            for plane in [PacketPlane::usual(), restless(Duration::from_secs(60))] {
                a_link_that_goes_down_and_up_again_goes_on(Bed::veth(plane)?).await?;
            }
            Ok(())
        })
    }),
    ("a_stall_of_a_tenth_of_a_second_loses_nothing", || {
        Box::pin(a_stall_of_a_tenth_of_a_second_loses_nothing())
    }),
    (
        "without_a_carrier_the_kernel_takes_packets_and_loses_them",
        || Box::pin(without_a_carrier_the_kernel_takes_packets_and_loses_them()),
    ),
    ("a_packet_in_a_burst_is_the_frame_it_is_alone", || {
        Box::pin(a_packet_in_a_burst_is_the_frame_it_is_alone())
    }),
    (
        "what_a_burst_cannot_send_is_an_error_of_that_packet",
        || Box::pin(what_a_burst_cannot_send_is_an_error_of_that_packet()),
    ),
    ("a_link_that_was_never_up_gets_bursts_when_it_is", || {
        Box::pin(a_link_that_was_never_up_gets_bursts_when_it_is())
    }),
    ("a_queue_given_to_a_link_later_loses_nothing_unsaid", || {
        Box::pin(a_queue_given_to_a_link_later_loses_nothing_unsaid())
    }),
    ("a_bridge_of_many_ports_gets_bursts_it_can_take", || {
        Box::pin(a_bridge_of_many_ports_gets_bursts_it_can_take())
    }),
    ("the_bypass_of_the_device_queue_sends_too", || {
        Box::pin(async {
            let plane = PacketPlane {
                qdisc_bypass: true,
                ..PacketPlane::usual()
            };
            what_is_sent_arrives_in_order_with_its_bytes_unchanged(Bed::veth(plane)?).await
        })
    }),
];

/// Two interfaces with a cable between them.
struct Bed {
    plane: Box<dyn Plane>,
    /// The options of the packet plane, where it is that.
    packet: PacketPlane,
    near: IfIndex,
    far: IfIndex,
    missing: IfIndex,
    kind: Kind,
}

enum Kind {
    Sim(SimPlane),
    Veth { near: String, far: String },
}

trait Usual {
    fn usual() -> Self;
}

impl Usual for PacketPlane {
    fn usual() -> Self {
        PacketPlane::new(MARK)
    }
}

fn fixed(mode: Mode) -> PacketPlane {
    PacketPlane {
        modes: Modes::Fixed(mode),
        ..PacketPlane::usual()
    }
}

/// Changes the mode as often as it can, whatever the rate.
fn restless(keep: Duration) -> PacketPlane {
    PacketPlane {
        modes: Modes::Adaptive(Thresholds {
            up: 0,
            window: Duration::from_millis(1),
            down: u64::MAX,
            quiet: Duration::from_millis(2),
            keep,
        }),
        ..PacketPlane::usual()
    }
}

fn index(n: u32) -> IfIndex {
    IfIndex::new(n).unwrap()
}

fn ip(arguments: &str) -> Result<(), Failed> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ip {arguments}: {said}").into());
    }
    Ok(())
}

impl Bed {
    fn sim() -> Self {
        let sim = SimPlane::default();
        sim.connect(index(1), index(2));
        sim.set_missing(index(3), true);
        Bed {
            plane: Box::new(sim.clone()),
            packet: PacketPlane::usual(),
            near: index(1),
            far: index(2),
            missing: index(3),
            kind: Kind::Sim(sim),
        }
    }

    fn veth(plane: PacketPlane) -> Result<Self, Failed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let (near, far) = (format!("near{n}"), format!("far{n}"));
        ip(&format!("link add {near} type veth peer name {far}"))?;
        let mut indices = Vec::new();
        for name in [&near, &far] {
            // Nothing but what the test sends: no neighbour discovery, no MLD reports.
            let quiet = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            if std::path::Path::new(&quiet).exists() {
                std::fs::write(quiet, "1")?;
            }
            ip(&format!("link set {name} mtu 65535 up"))?;
            let found = mcastor::sys::ifaddr::interfaces()?;
            let found = found.into_iter().find(|i| i.name.as_str() == name);
            indices.push(found.ok_or("the veth is gone")?.index);
        }
        wait_until_running(&near)?;
        wait_until_running(&far)?;
        Ok(Bed {
            plane: Box::new(plane),
            packet: plane,
            near: indices[0],
            far: indices[1],
            missing: index(1_000_000),
            kind: Kind::Veth { near, far },
        })
    }

    /// Makes the ring, or what stands for it, small; for captures opened afterwards.
    fn with_little_room(mut self) -> Result<Self, Failed> {
        match self.kind {
            Kind::Sim(ref sim) => {
                sim.set_room(self.far, 8);
                Ok(self)
            }
            Kind::Veth { .. } => {
                self.plane = Box::new(PacketPlane {
                    room: 4096,
                    ring: tiny_ring().ring,
                    ..self.packet
                });
                Ok(self)
            }
        }
    }

    fn set_up(&self, up: bool) -> Outcome {
        match &self.kind {
            Kind::Sim(sim) => {
                sim.set_up(self.near, up);
                sim.set_up(self.far, up);
                Ok(())
            }
            Kind::Veth { near, far } => {
                let state = if up { "up" } else { "down" };
                ip(&format!("link set {near} {state}"))?;
                ip(&format!("link set {far} {state}"))?;
                if up { wait_until_running(near) } else { Ok(()) }
            }
        }
    }
}

/// The kernel starts the queue of a link that came up a little later, and until then throws
/// away what is sent, without a word.
fn wait_until_running(name: &str) -> Outcome {
    wait_running(name, true)
}

/// It stops the queue a little later, too.
fn wait_while_running(name: &str) -> Outcome {
    wait_running(name, false)
}

fn wait_running(name: &str, wanted: bool) -> Outcome {
    let running = || {
        let shown = Command::new("ip")
            .args(["-br", "link", "show", name])
            .output();
        shown.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(" UP "))
    };
    let begun = std::time::Instant::now();
    while running() != wanted {
        assert!(begun.elapsed() < PATIENCE, "{name}: not running={wanted}");
        std::thread::yield_now();
    }
    Ok(())
}

fn tiny_ring() -> PacketPlane {
    PacketPlane {
        ring: RingSize {
            block: 4096,
            blocks: 2,
            retire_ms: 1,
        },
        ..fixed(Mode::Throughput)
    }
}

/// An IPv4 packet of `len` bytes to a group, told from others by `n`.
fn packet(n: u32, len: usize) -> Vec<u8> {
    let mut p = vec![0u8; len];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    p[8] = 9;
    p[9] = 17;
    p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
    for (i, byte) in p[20..].iter_mut().enumerate() {
        *byte = (i as u32).wrapping_mul(n | 1).wrapping_add(n) as u8;
    }
    p[4..8].copy_from_slice(&n.to_be_bytes());
    p
}

/// An IPv6 packet to a group.
fn packet_v6(n: u32, len: usize) -> Vec<u8> {
    let mut p = packet(n, len);
    p[..40].fill(0);
    p[0] = 0x60;
    p[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    p[7] = 9;
    p[8..10].copy_from_slice(&[0x20, 0x01]);
    p[23] = 1;
    p[24..26].copy_from_slice(&[0xff, 0x3e]);
    p[39] = 1;
    p
}

/// Sends all of them, in as many calls as it takes.
async fn send_all(transmit: &mut dyn Transmit, packets: &[Vec<u8>]) -> io::Result<()> {
    let mut next = 0;
    while next < packets.len() {
        let left = &packets[next..];
        match transmit.send(&mut left.iter().map(Vec::as_slice)) {
            Ok(0) => panic!("took none of {}", left.len()),
            Ok(n) if n > left.len() => panic!("took {n} of {}", left.len()),
            Ok(n) => next += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| transmit.poll_writable(cx)).await?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn next_batch(capture: &mut dyn Capture) -> Result<Batch, Failed> {
    let next = poll_fn(|cx| capture.poll_batch(cx));
    Ok(tokio::time::timeout(PATIENCE, next)
        .await
        .map_err(|_| "no batch came")??)
}

fn packets_of(batch: &Batch) -> Vec<Vec<u8>> {
    let bytes = |p: &mcastor::planes::Packet| {
        assert!(!p.cut, "a packet is cut");
        batch.bytes()[p.start as usize..][..p.len as usize].to_vec()
    };
    batch.packets.iter().map(bytes).collect()
}

/// The next `count` packets, link-layer padding removed.
async fn take(capture: &mut dyn Capture, count: usize) -> Result<Vec<Vec<u8>>, Failed> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(packets_of(&next_batch(capture).await?));
    }
    Ok(taken)
}

fn same(got: &[Vec<u8>], sent: &[Vec<u8>]) -> Outcome {
    if got.len() != sent.len() {
        return Err(format!("{} packets came of {}", got.len(), sent.len()).into());
    }
    match got.iter().zip(sent).position(|(g, s)| g != s) {
        None => Ok(()),
        Some(at) => Err(format!("packet {at} of {} differs", sent.len()).into()),
    }
}

async fn what_is_sent_arrives_in_order_with_its_bytes_unchanged(bed: Bed) -> Outcome {
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

async fn a_link_that_goes_down_and_up_again_goes_on(bed: Bed) -> Outcome {
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
        let refused = transmit.send(&mut std::iter::once(&before[0][..]));
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
        match transmit.send(&mut left.iter().map(Vec::as_slice)) {
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
    let slices = || three.iter().map(Vec::as_slice);
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

/// Link header and packet of what was captured.
async fn take_frames(capture: &mut dyn Capture, count: usize) -> Result<Vec<Vec<u8>>, Failed> {
    const ETHERNET: usize = 14;
    let mut taken = Vec::new();
    while taken.len() < count {
        let batch = next_batch(capture).await?;
        taken.extend(batch.packets.iter().map(|p| {
            let start = p.start as usize;
            batch.bytes()[start - ETHERNET..start + p.len as usize].to_vec()
        }));
    }
    Ok(taken)
}

async fn a_packet_in_a_burst_is_the_frame_it_is_alone() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    let transmitter = Transmitter::open(bed.near, MARK, false)?;
    assert_eq!(transmitter.sends_bursts(), takes_programs()?);
    assert!(!Transmitter::open(bed.near, MARK, true)?.sends_bursts());
    assert!(!Transmitter::open(index(1), MARK, false)?.sends_bursts());

    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    // Growing and shrinking, on both sides of what a burst takes.
    let mut sent: Vec<_> = [28, 1500, 20, 700, 2026, 2027, 64, 3000, 100, 101]
        .iter()
        .cycle()
        .zip(0..200)
        .map(|(len, n)| packet(n, *len))
        .collect();
    sent.extend((0..40).map(|n| packet_v6(n, 60 + 37 * n as usize)));
    for address in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        // It may change while we send.
        ip(&format!("link set {near} address {address}"))?;
        let mut alone = Vec::new();
        for packet in &sent {
            send_all(transmit.as_mut(), std::slice::from_ref(packet)).await?;
            alone.extend(take_frames(capture.as_mut(), 1).await?);
        }
        send_all(transmit.as_mut(), &sent).await?;
        same(&take_frames(capture.as_mut(), sent.len()).await?, &alone)?;
        assert_eq!(
            alone[0][6..12],
            [2, 0, 0, 0, 0, address.as_bytes()[16] - b'0']
        );
    }
    Ok(())
}

async fn what_a_burst_cannot_send_is_an_error_of_that_packet() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    ip(&format!("link set {near} mtu 1000"))?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let all: Vec<_> = (0..30)
        .map(|n| packet(n, if n == 10 { 1001 } else { 1000 }))
        .collect();
    let from = |n: usize| all[n..].iter().map(Vec::as_slice);
    let error = |done: io::Result<usize>| done.err().and_then(|e| e.raw_os_error());
    assert_eq!(transmit.send(&mut from(0))?, 10);
    assert_eq!(error(transmit.send(&mut from(10))), Some(libc::EMSGSIZE));
    send_all(transmit.as_mut(), &all[11..]).await?;
    let got = take(capture.as_mut(), 29).await?;
    same(&got, &[&all[..10], &all[11..]].concat())?;

    bed.set_up(false)?;
    for _ in 0..2 {
        assert_eq!(error(transmit.send(&mut from(11))), Some(libc::ENETDOWN));
    }
    bed.set_up(true)?;
    send_all(transmit.as_mut(), &all[11..]).await?;
    same(&take(capture.as_mut(), 19).await?, &all[11..])
}

async fn a_link_that_was_never_up_gets_bursts_when_it_is() -> Outcome {
    ip("link add early type veth peer name late")?;
    let found = mcastor::sys::ifaddr::interfaces()?;
    let near = found.iter().find(|i| i.name.as_str() == "early");
    let mut transmitter = Transmitter::open(near.ok_or("no veth")?.index, MARK, false)?;
    assert!(!transmitter.sends_bursts());
    ip("link set early up")?;
    ip("link set late up")?;
    wait_until_running("early")?;
    let all: Vec<_> = (0..20).map(|n| packet(n, 100)).collect();
    let begun = std::time::Instant::now();
    while !transmitter.sends_bursts() && takes_programs()? {
        assert!(begun.elapsed() < PATIENCE, "no bursts after it came up");
        assert!(transmitter.send(all.iter().map(Vec::as_slice))? > 0);
    }
    Ok(())
}

/// A burst that a bridge floods waits in one queue of the kernel, which is shorter than 32 times
/// this many ports.
async fn a_bridge_of_many_ports_gets_bursts_it_can_take() -> Outcome {
    const PORTS: u32 = 40;
    const PACKETS: u32 = 3_000;
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { far, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    // Nothing but ours is counted.
    let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    if std::path::Path::new(quiet).exists() {
        std::fs::write(quiet, "1")?;
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
    let mut transmitter = Transmitter::open(bed.near, MARK, false)?;
    // Bridges look at the checksum where they ask netfilter.
    let whole = |n| {
        let mut packet = packet(n, 100);
        mcastor::wire::ip::refresh_ipv4_checksum(&mut packet);
        packet
    };
    let all: Vec<_> = (0..PACKETS).map(whole).collect();
    let mut next = 0;
    while next < all.len() {
        let left = &all[next..];
        match transmitter.send(left.iter().map(Vec::as_slice)) {
            Ok(n) => next += n,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut lost = 0;
    for n in 0..PORTS {
        let begun = std::time::Instant::now();
        let came = || Ok::<_, Failed>(received(n)? - before[n as usize]);
        // All but those of the bursts by which the limit is found.
        while came()? < u64::from(PACKETS) - 200 {
            let came = came()?;
            assert!(begun.elapsed() < PATIENCE, "{came} packets at port {n}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lost += u64::from(PACKETS).saturating_sub(came()?);
    }
    ip("link del wide")?;
    println!(
        "{lost} of {} lost, until the limit was found",
        PACKETS * PORTS
    );
    assert_eq!(transmitter.most_of_a_burst() < 32, takes_programs()?);
    Ok(())
}

/// In a user namespace the kernel takes no programs, and each packet goes by itself.
fn takes_programs() -> io::Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/uid_map")?.contains("4294967295"))
}

async fn a_queue_given_to_a_link_later_loses_nothing_unsaid() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let Kind::Veth { near, .. } = &bed.kind else {
        return Err("not a veth".into());
    };
    let mut capture = bed.plane.capture(bed.far)?;
    let mut transmit = bed.plane.transmit(bed.near)?;
    let all: Vec<_> = (0..100).map(|n| packet(n, 1000)).collect();
    send_all(transmit.as_mut(), &all).await?;
    same(&take(capture.as_mut(), all.len()).await?, &all)?;
    // Room for about forty.
    let shape = format!("qdisc add dev {near} root tbf rate 800kbit burst 2k limit 40000");
    let output = Command::new("tc").args(shape.split(' ')).output()?;
    assert!(output.status.success(), "tc: {output:?}");
    let (mut took, mut refused) = (Vec::new(), 0);
    let mut next = 0;
    while next < all.len() {
        match transmit.send(&mut all[next..].iter().map(Vec::as_slice)) {
            Ok(n) => {
                took.extend_from_slice(&all[next..next + n]);
                next += n;
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                refused += 1;
                next += 1;
            }
            Err(e) => return Err(e.into()),
        }
    }
    assert!(refused > 0, "the queue was never full: nothing was tried");
    same(&take(capture.as_mut(), took.len()).await?, &took)
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

/// Sends numbered packets at a steady rate from a thread of its own until told to stop.
struct Stream {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<io::Result<u32>>,
}

impl Stream {
    fn start(bed: &Bed, rate: f64) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (told, near) = (stop.clone(), bed.near);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut transmit = PacketPlane::usual().transmit(near)?;
                let (mut last, mut due, mut sent) = (std::time::Instant::now(), 0.0, 0u32);
                while !told.load(Ordering::Relaxed) {
                    let now = std::time::Instant::now();
                    // What a busy machine kept us from is not made up for: the one who takes
                    // it in is kept from that as well.
                    due = (due + (now - last).as_secs_f64() * rate).min(64.0);
                    last = now;
                    let count = due as u32;
                    due -= f64::from(count);
                    let packets: Vec<_> = (sent..sent + count).map(|n| packet(n, 60)).collect();
                    send_all(transmit.as_mut(), &packets).await?;
                    sent += count;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Ok(sent)
            })
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<u32, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the sender panicked")??)
    }
}

/// Follows the numbers of a stream.
struct Follow {
    next: u32,
    mode: &'static str,
    changes: u32,
}

impl Follow {
    fn new() -> Self {
        Self {
            next: 0,
            mode: "",
            changes: 0,
        }
    }

    async fn batch(&mut self, capture: &mut dyn Capture) -> Outcome {
        let batch = next_batch(capture).await?;
        for p in &batch.packets {
            let bytes = &batch.bytes()[p.start as usize..][..p.len as usize];
            let n = u32::from_be_bytes(bytes[4..8].try_into()?);
            if n != self.next {
                let (expected, changes) = (self.next, self.changes);
                return Err(format!("{n} came for {expected}, after {changes} changes").into());
            }
            self.next += 1;
        }
        if capture.mode() != self.mode {
            self.mode = capture.mode();
            self.changes += 1;
        }
        Ok(())
    }
}

async fn changes_lose_nothing(plane: PacketPlane, changes: u32, rate: f64) -> Outcome {
    let bed = Bed::veth(plane)?;
    let mut capture = bed.plane.capture(bed.far)?;
    let stream = Stream::start(&bed, rate);
    let mut follow = Follow::new();
    let begun = std::time::Instant::now();
    let mut outcome = Ok(());
    while outcome.is_ok() && follow.changes <= changes && begun.elapsed() < 3 * PATIENCE {
        outcome = follow.batch(capture.as_mut()).await;
    }
    let sent = stream.stop()?;
    outcome.map_err(|e| format!("{e:?}; dropped {}", capture.take_dropped()))?;
    while follow.next < sent {
        follow.batch(capture.as_mut()).await?;
    }
    assert_eq!(capture.take_dropped(), 0);
    let came = follow.changes;
    assert!(
        came > changes,
        "the mode changed {came} times only, with {sent} packets"
    );
    println!(
        "{came} changes of mode, {sent} packets, {:?}",
        begun.elapsed()
    );
    Ok(())
}

async fn nothing_is_lost_doubled_or_reordered_as_modes_change() -> Outcome {
    changes_lose_nothing(restless(Duration::from_secs(60)), 100, 10_000.0).await
}

/// What is left of the old mode must be read before the new one: the kernel keeps a block open
/// for longer here than it takes to change the mode, so that it is still to come by then.
async fn a_block_that_is_late_comes_before_what_came_later() -> Outcome {
    let mut plane = restless(Duration::from_secs(60));
    plane.ring.retire_ms = 200;
    changes_lose_nothing(plane, 5, 2_000.0).await
}

async fn a_ring_given_back_and_opened_anew_loses_nothing() -> Outcome {
    let mut plane = restless(Duration::ZERO);
    if let Modes::Adaptive(thresholds) = &mut plane.modes {
        // Long enough for the clock to be looked at in between.
        thresholds.window = Duration::from_millis(20);
    }
    changes_lose_nothing(plane, 20, 10_000.0).await
}

async fn the_mode_follows_the_rate() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut changes = Vec::new();
    for (rate, mode) in [
        (2_000.0, "latency"),
        (60_000.0, "throughput"),
        (2_000.0, "latency"),
    ] {
        let stream = Stream::start(&bed, rate);
        let (begun, mut follow) = (std::time::Instant::now(), Follow::new());
        while capture.mode() != mode || begun.elapsed() < Duration::from_millis(300) {
            follow.batch(capture.as_mut()).await?;
            assert!(
                begun.elapsed() < PATIENCE,
                "{} mode at {rate}",
                capture.mode()
            );
        }
        changes.push(follow.changes);
        let sent = stream.stop()?;
        while follow.next < sent {
            follow.batch(capture.as_mut()).await?;
        }
    }
    // It stays where it is while the rate stays.
    assert_eq!(changes, [1, 2, 2]);
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
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
    assert_eq!(transmit.send(&mut std::iter::once(&packet(1, 100)[..]))?, 1);
    bed.set_up(true)?;
    let after = [packet(2, 100)];
    send_all(transmit.as_mut(), &after).await?;
    same(&take(capture.as_mut(), 1).await?, &after)
}
