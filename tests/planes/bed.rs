//! The test bed: two connected interfaces, simulated or a veth pair, and functions for test
//! packets.

use std::future::poll_fn;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::Failed;
use mcastor::model::{IfIndex, InterfaceId};
use mcastor::pipeline::{Batch, OutPacket, PacketSink, PacketSource};
use mcastor::planes::Plane;
use mcastor::planes::ebpf::EbpfPlane;
use mcastor::planes::packet::rate::{Mode, Thresholds};
use mcastor::planes::packet::{Modes, PacketPlane};
use mcastor::planes::sim::SimPlane;
use mcastor::sys::offload::{
    InstanceTag, OffloadError, OffloadProgram, Persistence, ProgramOptions,
};
use mcastor::sys::ring::RingSize;

/// Timeout of operations that must succeed.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const MARK: u32 = 0x6d63_7473;

pub type Outcome = Result<(), Failed>;

/// Two interfaces that are connected with each other.
pub struct Bed {
    pub plane: Box<dyn Plane>,
    /// The options of the packet plane; unused if the plane is simulated.
    pub packet: PacketPlane,
    pub near: InterfaceId,
    pub far: InterfaceId,
    /// The index of an interface that does not exist.
    pub missing: InterfaceId,
    pub kind: Kind,
}

pub enum Kind {
    Sim(SimPlane),
    Veth { near: String, far: String },
}

pub fn default_plane() -> PacketPlane {
    PacketPlane::new(MARK)
}

pub fn fixed(mode: Mode) -> PacketPlane {
    PacketPlane {
        modes: Modes::Fixed(mode),
        ..default_plane()
    }
}

/// Returns a plane that changes the capture mode as often as possible at every rate.
pub fn frequent_mode_changes(keep: Duration) -> PacketPlane {
    PacketPlane {
        modes: Modes::Adaptive(Thresholds {
            up: 0,
            window: Duration::from_millis(1),
            down: u64::MAX,
            quiet: Duration::from_millis(2),
            keep,
        }),
        ..default_plane()
    }
}

fn load_programs() -> Result<OffloadProgram, OffloadError> {
    OffloadProgram::load(&ProgramOptions {
        mark: MARK,
        magic: MARK,
        unknown_packets: 0,
        sizes: EbpfPlane::table_sizes(16),
        instance: InstanceTag::default(),
        persistence: Persistence::Nothing,
        orphan_after: Duration::ZERO,
    })
}

/// Returns whether the programs of the eBPF plane can be loaded here.
pub fn can_load_programs() -> bool {
    load_programs().is_ok()
}

pub fn index(n: u32) -> InterfaceId {
    InterfaceId::new(n).unwrap()
}

/// Returns the ifindex of a link of the kernel.
pub fn ifindex(interface: InterfaceId) -> IfIndex {
    interface.ifindex().unwrap()
}

pub fn ip(arguments: &str) -> Result<(), Failed> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ip {arguments}: {stderr}").into());
    }
    Ok(())
}

impl Bed {
    pub fn sim() -> Self {
        let sim = SimPlane::default();
        sim.connect(index(1), index(2));
        sim.set_missing(index(3), true);
        Bed {
            plane: Box::new(sim.clone()),
            packet: default_plane(),
            near: index(1),
            far: index(2),
            missing: index(3),
            kind: Kind::Sim(sim),
        }
    }

    pub fn veth(plane: PacketPlane) -> Result<Self, Failed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let (near, far) = (format!("near{n}"), format!("far{n}"));
        ip(&format!("link add {near} type veth peer name {far}"))?;
        let mut indices = Vec::new();
        for name in [&near, &far] {
            // Without IPv6 the kernel sends no neighbour discovery and no MLD reports.
            let disable_ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            if std::path::Path::new(&disable_ipv6).exists() {
                std::fs::write(disable_ipv6, "1")?;
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
            near: indices[0].into(),
            far: indices[1].into(),
            missing: index(1_000_000),
            kind: Kind::Veth { near, far },
        })
    }

    /// A veth pair of the eBPF plane. It gets no forwarding table, so it forwards nothing by itself.
    pub fn ebpf() -> Result<Self, Failed> {
        let mut bed = Self::veth(fixed(Mode::Latency))?;
        let program = load_programs().map_err(|e| e.to_string())?;
        bed.plane = Box::new(EbpfPlane::start(bed.packet, program)?);
        Ok(bed)
    }

    /// Makes the receive buffer small, for captures that are opened afterwards.
    pub fn with_small_buffers(mut self) -> Result<Self, Failed> {
        match self.kind {
            Kind::Sim(ref sim) => {
                sim.set_capacity(self.far, 8);
                Ok(self)
            }
            Kind::Veth { .. } => {
                self.plane = Box::new(PacketPlane {
                    receive_buffer: 4096,
                    ring: tiny_ring().ring,
                    ..self.packet
                });
                Ok(self)
            }
        }
    }

    pub fn set_up(&self, up: bool) -> Outcome {
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

/// Waits until the interface is running. The kernel activates the queue of a link some time after
/// the link came up, and silently drops packets until then.
pub fn wait_until_running(name: &str) -> Outcome {
    wait_running(name, true)
}

/// Waits until the interface is not running. The kernel deactivates the queue with a delay, too.
pub fn wait_while_running(name: &str) -> Outcome {
    wait_running(name, false)
}

pub fn wait_running(name: &str, wanted: bool) -> Outcome {
    let running = || {
        let output = Command::new("ip")
            .args(["-br", "link", "show", name])
            .output();
        output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(" UP "))
    };
    let started = std::time::Instant::now();
    while running() != wanted {
        assert!(started.elapsed() < PATIENCE, "{name}: not running={wanted}");
        std::thread::yield_now();
    }
    Ok(())
}

pub fn tiny_ring() -> PacketPlane {
    PacketPlane {
        ring: RingSize {
            block: 4096,
            blocks: 2,
            retire_ms: 1,
        },
        ..fixed(Mode::Throughput)
    }
}

/// Returns an IPv4 multicast packet of `len` bytes whose content depends on `n`.
pub fn packet(n: u32, len: usize) -> Vec<u8> {
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

/// Returns an IPv6 multicast packet of `len` bytes whose content depends on `n`.
pub fn packet_v6(n: u32, len: usize) -> Vec<u8> {
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

/// Sends all packets with as many calls as necessary.
pub async fn send_all(transmit: &mut dyn PacketSink, packets: &[Vec<u8>]) -> io::Result<()> {
    let mut next = 0;
    while next < packets.len() {
        let rest = &packets[next..];
        match transmit.send(&mut rest.iter().map(|p| OutPacket::plain(p))) {
            Ok(0) => panic!("took none of {}", rest.len()),
            Ok(n) if n > rest.len() => panic!("took {n} of {}", rest.len()),
            Ok(n) => next += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| transmit.poll_writable(cx)).await?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub async fn next_batch(capture: &mut dyn PacketSource) -> Result<Batch, Failed> {
    let next = poll_fn(|cx| capture.poll_batch(cx));
    Ok(tokio::time::timeout(PATIENCE, next)
        .await
        .map_err(|_| "no batch arrived")??)
}

pub fn packets_of(batch: &Batch) -> Vec<Vec<u8>> {
    let bytes = |p: &mcastor::pipeline::Packet| {
        assert!(!p.truncated, "a packet is truncated");
        batch.bytes()[p.start as usize..][..p.len as usize].to_vec()
    };
    batch.packets.iter().map(bytes).collect()
}

/// Receives the next `count` packets without link-layer padding.
pub async fn receive(capture: &mut dyn PacketSource, count: usize) -> Result<Vec<Vec<u8>>, Failed> {
    let mut packets = Vec::new();
    while packets.len() < count {
        packets.extend(packets_of(&next_batch(capture).await?));
    }
    Ok(packets)
}

/// Checks that the received packets are the sent ones in the same order.
pub fn check_equal(received: &[Vec<u8>], sent: &[Vec<u8>]) -> Outcome {
    if received.len() != sent.len() {
        return Err(format!("received {} of {} packets", received.len(), sent.len()).into());
    }
    match received.iter().zip(sent).position(|(r, s)| r != s) {
        None => Ok(()),
        Some(at) => Err(format!("packet {at} of {} differs", sent.len()).into()),
    }
}
