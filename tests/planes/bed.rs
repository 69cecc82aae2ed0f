//! Two interfaces with a cable between them, simulated or a veth pair, and packets for it.

use std::future::poll_fn;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::Failed;
use mcastor::model::IfIndex;
use mcastor::pipeline::{Batch, OutPacket, PacketSink, PacketSource};
use mcastor::planes::Plane;
use mcastor::planes::packet::rate::{Mode, Thresholds};
use mcastor::planes::packet::{Modes, PacketPlane};
use mcastor::planes::sim::SimPlane;
use mcastor::sys::ring::RingSize;

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const MARK: u32 = 0x6d63_7473;

pub type Outcome = Result<(), Failed>;

/// Two interfaces with a cable between them.
pub struct Bed {
    pub plane: Box<dyn Plane>,
    /// The options of the packet plane, where it is that.
    pub packet: PacketPlane,
    pub near: IfIndex,
    pub far: IfIndex,
    pub missing: IfIndex,
    pub kind: Kind,
}

pub enum Kind {
    Sim(SimPlane),
    Veth { near: String, far: String },
}

pub trait Usual {
    fn usual() -> Self;
}

impl Usual for PacketPlane {
    fn usual() -> Self {
        PacketPlane::new(MARK)
    }
}

pub fn fixed(mode: Mode) -> PacketPlane {
    PacketPlane {
        modes: Modes::Fixed(mode),
        ..PacketPlane::usual()
    }
}

/// Changes the mode as often as it can, whatever the rate.
pub fn restless(keep: Duration) -> PacketPlane {
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

pub fn index(n: u32) -> IfIndex {
    IfIndex::new(n).unwrap()
}

pub fn ip(arguments: &str) -> Result<(), Failed> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ip {arguments}: {said}").into());
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
            packet: PacketPlane::usual(),
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
    pub fn with_little_room(mut self) -> Result<Self, Failed> {
        match self.kind {
            Kind::Sim(ref sim) => {
                sim.set_room(self.far, 8);
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

/// The kernel starts the queue of a link that came up a little later, and until then throws
/// away what is sent, without a word.
pub fn wait_until_running(name: &str) -> Outcome {
    wait_running(name, true)
}

/// It stops the queue a little later, too.
pub fn wait_while_running(name: &str) -> Outcome {
    wait_running(name, false)
}

pub fn wait_running(name: &str, wanted: bool) -> Outcome {
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

/// An IPv4 packet of `len` bytes to a group, told from others by `n`.
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

/// An IPv6 packet to a group.
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

/// Sends all of them, in as many calls as it takes.
pub async fn send_all(transmit: &mut dyn PacketSink, packets: &[Vec<u8>]) -> io::Result<()> {
    let mut next = 0;
    while next < packets.len() {
        let left = &packets[next..];
        match transmit.send(&mut left.iter().map(|p| OutPacket::plain(p))) {
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

pub async fn next_batch(capture: &mut dyn PacketSource) -> Result<Batch, Failed> {
    let next = poll_fn(|cx| capture.poll_batch(cx));
    Ok(tokio::time::timeout(PATIENCE, next)
        .await
        .map_err(|_| "no batch came")??)
}

pub fn packets_of(batch: &Batch) -> Vec<Vec<u8>> {
    let bytes = |p: &mcastor::pipeline::Packet| {
        assert!(!p.truncated, "a packet is truncated");
        batch.bytes()[p.start as usize..][..p.len as usize].to_vec()
    };
    batch.packets.iter().map(bytes).collect()
}

/// The next `count` packets, link-layer padding removed.
pub async fn take(capture: &mut dyn PacketSource, count: usize) -> Result<Vec<Vec<u8>>, Failed> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(packets_of(&next_batch(capture).await?));
    }
    Ok(taken)
}

pub fn same(got: &[Vec<u8>], sent: &[Vec<u8>]) -> Outcome {
    if got.len() != sent.len() {
        return Err(format!("{} packets came of {}", got.len(), sent.len()).into());
    }
    match got.iter().zip(sent).position(|(g, s)| g != s) {
        None => Ok(()),
        Some(at) => Err(format!("packet {at} of {} differs", sent.len()).into()),
    }
}
