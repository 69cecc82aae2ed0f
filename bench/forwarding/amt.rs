//! `--amt`: what a packet costs at both ends of AMT tunnels, beside a packet of the packet plane.
//! bench/results/amt.md has the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mcastor::model::{Group, Source};
use mcastor::sys::netns::NetNs;
use mcastor::wire::amt::{AmtMessage, DATA_HEADER, FlagLayout, PORT};
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{GroupRecord, MembershipMessage, RecordType};

use crate::Outcome;
use crate::lab::{self, Lab, ROUTER, SOURCE};
use crate::meter::{self, Meter};
use crate::peer::{self, Peer, Rules};
use crate::results::median;
use crate::sender::{self, SendResult, SenderKind, Stream};
use crate::tun::TunWriter;
use crate::tunnel_sender::{IDLE_PORT, INNER, RelayNetwork, Sending, TunnelSender};

const ROUNDS: usize = 5;
const SECONDS: f64 = 0.8;
const FLOWS: usize = 10;
/// Copies or packets per second at which CPU time is measured.
const RATE: f64 = 100_000.0;
const SIZES: [usize; 2] = [200, 1316];
const TUNNELS: [usize; 3] = [1, 100, 1000];
const GATEWAY_TUNNELS: [usize; 2] = [100, 1000];

/// The address of all gateways, which differ in their ports. It exists only while they join:
/// afterwards, the host of the gateways drops the copies, as it drops native packets.
const GATEWAYS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The address of the relay on the link of the gateways.
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The address of the host of the gateways on that link.
const HOST: &str = "10.1.0.2";
/// The port of the first gateway, which the others follow.
const FIRST_GATEWAY_PORT: u16 = 20_000;
/// The TUN device, and the port of the program that writes to it.
const TUN: &str = "tun0";
const TUN_PORT: u16 = 40_001;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The packet plane with one egress.
    Native(Ingress),
    /// A relay with this number of tunnels.
    Relay(usize),
    /// A gateway with one tunnel.
    Gateway(Sending, Ingress),
    /// A gateway with this number of tunnels, each of them for its own streams. The relays send
    /// single datagrams.
    GatewayTunnels(usize),
    /// A program that writes what it receives through one tunnel to a TUN device, which is an
    /// ingress of the packet plane.
    Tun,
}

/// How the interface of the router receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ingress {
    /// Without GRO, as a veth does.
    Plain,
    /// With GRO, as hardware does.
    Coalescing,
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::Native(Ingress::Plain) => "packet plane, 1 egress".into(),
            Self::Native(Ingress::Coalescing) => "packet plane, GRO".into(),
            Self::Relay(n) => format!("relay, {n} tunnels"),
            Self::Gateway(sending, ingress) => {
                let sending = match sending {
                    Sending::Single => "",
                    Sending::Runs => ", relay sends runs",
                    Sending::Bursts => ", bursts",
                };
                let ingress = match ingress {
                    Ingress::Plain => "",
                    Ingress::Coalescing => ", GRO",
                };
                format!("gateway{sending}{ingress}")
            }
            Self::GatewayTunnels(n) => format!("gateway, {n} tunnels"),
            Self::Tun => "TUN device".into(),
        }
    }

    fn copies(self) -> usize {
        match self {
            Self::Relay(n) => n,
            _ => 1,
        }
    }

    fn ingress(self) -> Ingress {
        match self {
            Self::Native(ingress) | Self::Gateway(_, ingress) => ingress,
            _ => Ingress::Plain,
        }
    }

    fn flows(self) -> usize {
        match self {
            Self::GatewayTunnels(n) => n.max(FLOWS),
            _ => FLOWS,
        }
    }
}

/// CPU per copy, and the maximum rate of copies, of each round.
#[derive(Debug, Default)]
struct Series {
    cpu_ns: Vec<f64>,
    /// Relative to the packet plane with the same kind of interface in the same round.
    ratio: Vec<f64>,
    max: Vec<f64>,
    loss: Vec<f64>,
    backlog: Vec<f64>,
}

/// Measures all cases in turn, and prints a table. `quick`: in one round. `only`: the packet plane, and
/// the cases whose names contain it.
pub fn run(quick: bool, only: Option<&str>) -> Outcome<()> {
    let stop = AtomicBool::new(false);
    let mut figures: BTreeMap<(usize, Case), Series> = BTreeMap::new();
    let mut cases = vec![
        Case::Native(Ingress::Plain),
        Case::Native(Ingress::Coalescing),
    ];
    cases.extend(TUNNELS.map(Case::Relay));
    cases.extend([
        Case::Gateway(Sending::Single, Ingress::Plain),
        Case::Gateway(Sending::Runs, Ingress::Plain),
        Case::Gateway(Sending::Bursts, Ingress::Plain),
        Case::Gateway(Sending::Bursts, Ingress::Coalescing),
    ]);
    cases.extend(GATEWAY_TUNNELS.map(Case::GatewayTunnels));
    cases.push(Case::Tun);
    cases.retain(|case| {
        let is_wanted = only.is_none_or(|only| case.name().contains(only));
        is_wanted || matches!(case, Case::Native(_))
    });
    for round in 0..if quick { 1 } else { ROUNDS } {
        println!("round {round}");
        for size in SIZES {
            let mut native = BTreeMap::new();
            for &case in &cases {
                let measured = measure(case, size, &stop)
                    .map_err(|e| format!("{}, {size} bytes: {e}", case.name()))?;
                if let Case::Native(ingress) = case {
                    native.insert(ingress, measured.cpu_ns);
                }
                let native = native.get(&case.ingress()).copied().unwrap_or(f64::NAN);
                let series = figures.entry((size, case)).or_default();
                series.cpu_ns.push(measured.cpu_ns);
                series.ratio.push(measured.cpu_ns / native);
                series.max.push(measured.max);
                series.loss.push(measured.loss * 100.0);
                series.backlog.push(measured.backlog * 100.0);
            }
        }
    }
    println!(
        "| bytes | | CPU per copy, ns | relative | maximum, copies/s | loss at 100,000/s, % | of it in a full backlog, % |"
    );
    println!("|---|---|---|---|---|---|---|");
    for ((size, case), series) in &figures {
        let range = |all: &[f64]| {
            let least = all.iter().copied().fold(f64::MAX, f64::min);
            let most = all.iter().copied().fold(f64::MIN, f64::max);
            format!("{:.2} ({least:.2} to {most:.2})", median(all))
        };
        println!(
            "| {size} | {} | {:.0} | {} | {:.0} | {:.3} | {:.3} |",
            case.name(),
            median(&series.cpu_ns),
            range(&series.ratio),
            median(&series.max),
            median(&series.loss),
            median(&series.backlog),
        );
    }
    Ok(())
}

/// The figures of one case in one round.
struct Measured {
    /// CPU per copy.
    cpu_ns: f64,
    /// Maximum rate of copies.
    max: f64,
    /// Part of the copies that did not arrive.
    loss: f64,
    /// Part of the copies that the kernel dropped because the backlog of a core was full.
    backlog: f64,
}

/// Measures one case.
fn measure(case: Case, size: usize, stop: &AtomicBool) -> Outcome<Measured> {
    let lab = Lab::new(1)?;
    let base = Stream {
        kind: SenderKind::Raw,
        size,
        flows: case.flows(),
        rate: Some(RATE / case.copies() as f64),
        seconds: SECONDS,
    };
    // An unused port would be answered with ICMP.
    let _idle = lab.router.run(|| UdpSocket::bind((ROUTER, IDLE_PORT)))??;
    let tunnel = TunnelSender::start(&lab)?;
    let send = |stream| -> Outcome<SendResult> {
        match case {
            Case::Gateway(..) | Case::GatewayTunnels(_) | Case::Tun => {
                let kind = match case {
                    Case::Gateway(kind, _) => kind,
                    _ => Sending::Single,
                };
                let sending = || {
                    tunnel
                        .send(&lab, stream, kind, stop)
                        .map_err(|e| e.to_string())
                };
                Ok(lab.source.run(sending)??)
            }
            _ => sender::run(&lab, stream, stop),
        }
    };
    // Bytes of a datagram at the receiver.
    let payload = match case {
        Case::Relay(_) => DATA_HEADER.len() + INNER + size,
        _ => size,
    };
    let alone = {
        let meter = Meter::new(None)?;
        let before = meter.read()?;
        let sent = send(base)?;
        lab.wait_until_quiet()?;
        let threads = meter.since(&before)?.threads + sent.thread_ns as f64;
        threads / sent.packets.max(1) as f64
    };
    let writer = match case {
        Case::Tun => {
            let address = SocketAddr::from((ROUTER, TUN_PORT));
            let writer = TunWriter::start(&lab, TUN, address)?;
            ip(&lab.router, &format!("link set {TUN} up"))?;
            tunnel.lead_to(address)?;
            Some(writer)
        }
        _ => None,
    };
    let _relays = match case {
        Case::GatewayTunnels(count) => Some(RelayNetwork::start(&lab, count)?),
        _ => None,
    };
    let mut running = match case {
        Case::Native(_) => peer::start(&lab, Peer::Mcastor, Rules::Pairs(FLOWS), base.kind, FLOWS)?,
        Case::Relay(_) => peer::start_mcastor(&lab, &relay_settings())?,
        Case::Gateway(..) => {
            let relay = SOURCE.to_string();
            peer::start_mcastor(&lab, &gateway_settings("internet", Some(&relay), FLOWS))?
        }
        Case::GatewayTunnels(_) => {
            let settings = gateway_settings("internet", Some("driad"), case.flows());
            peer::start_mcastor(&lab, &settings)?
        }
        Case::Tun => peer::start_mcastor(&lab, &gateway_settings(TUN, None, FLOWS))?,
    };
    if case.ingress() == Ingress::Coalescing {
        lab.coalesce()?;
    }
    match case {
        Case::Relay(count) => join_all(&lab, count)?,
        Case::GatewayTunnels(count) => tunnel.wait_for_relays(count)?,
        _ => {}
    }
    match case {
        Case::Native(_) => peer::wait_ready(&lab, &mut running, base)?,
        _ => {
            let before = lab.arrived()?[0];
            let deadline = Instant::now() + Duration::from_secs(20);
            while lab.arrived()?[0] < before + FLOWS as u64 {
                if Instant::now() > deadline {
                    return Err("no packet arrives".into());
                }
                send(Stream {
                    rate: Some(1000.0 / case.copies() as f64 + 100.0),
                    seconds: 0.1,
                    ..base
                })?;
            }
        }
    }
    let meter = Meter::new(running.pid())?;
    lab.wait_until_quiet()?;
    let writing = || writer.as_ref().map_or(0, TunWriter::run_time_ns);
    let before = (
        lab.datagrams(payload)?[0],
        meter.read()?,
        writing(),
        meter::backlog_drops(),
    );
    let sent = send(base)?;
    lab.wait_until_quiet()?;
    let threads = meter.since(&before.1)?.threads + sent.thread_ns as f64;
    let threads = threads + (writing() - before.2) as f64;
    let backlog = meter::backlog_drops() - before.3;
    let arrived = (lab.datagrams(payload)?[0] - before.0) as f64;
    let expected = sent.packets as f64 * case.copies() as f64;
    let cpu = (threads - alone * sent.packets as f64) / arrived.max(1.0);
    let before = lab.datagrams(payload)?[0];
    let fast = send(Stream { rate: None, ..base })?;
    let arrived_fast = (lab.datagrams(payload)?[0] - before) as f64;
    Ok(Measured {
        cpu_ns: cpu,
        max: arrived_fast / fast.seconds,
        loss: (1.0 - arrived / expected).max(0.0),
        backlog: backlog as f64 / expected,
    })
}

/// Runs `ip` with these words in a namespace.
pub fn ip(netns: &NetNs, words: &str) -> Outcome<()> {
    let run = || Command::new("ip").args(words.split(' ')).output();
    let output = netns.run(run)??;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

// A relay.

fn relay_settings() -> String {
    let mut text = String::from(
        "[[amt.relay]]\nname = \"tunnels\"\nquery_interval = \"31744s\"\nlisten = [\"0.0.0.0:2268\"]\n",
    );
    for flow in 0..FLOWS {
        let (source, group) = SenderKind::Raw.flow(flow);
        let _ = write!(
            text,
            "[[route]]\nfrom = \"{}\"\nsource = \"{source}\"\ngroup = \"{group}\"\n\
             to = [\"tunnels\"]\njoin = false\n",
            lab::IN
        );
    }
    text
}

/// Joins all flows with `count` gateways.
fn join_all(lab: &Lab, count: usize) -> Outcome<()> {
    let host = &lab.receivers[0].netns;
    ip(host, &format!("address add {GATEWAYS}/32 dev lo"))?;
    ip(&lab.router, &format!("route add {GATEWAYS}/32 via {HOST}"))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    for n in 0..count {
        while let Err(e) = join(host, n as u32) {
            if Instant::now() > deadline {
                return Err(format!("gateway {n} cannot join: {e}").into());
            }
        }
    }
    ip(host, &format!("address del {GATEWAYS}/32 dev lo"))?;
    // The relay publishes changes of its members at once, but not more often than every 10 ms.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Joins all flows with one gateway.
fn join(host: &NetNs, nonce: u32) -> Outcome<()> {
    // A port that the kernel chooses may be that of an earlier gateway, whose socket is closed.
    let port = FIRST_GATEWAY_PORT + nonce as u16;
    let socket = host.run(|| UdpSocket::bind((GATEWAYS, port)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect((RELAY, PORT))?;
    let request = AmtMessage::Request {
        nonce,
        is_mld: false,
        flags: FlagLayout::Standard,
    };
    socket.send(&request.to_bytes())?;
    let mut buffer = [0; 2048];
    let len = socket.recv(&mut buffer)?;
    let AmtMessage::MembershipQuery { mac, nonce, .. } =
        AmtMessage::parse(&buffer[..len]).map_err(|e| e.to_string())?
    else {
        return Err("the relay answered with another message".into());
    };
    let record = |flow| -> Outcome<GroupRecord> {
        let (source, group) = SenderKind::Raw.flow(flow);
        Ok(GroupRecord {
            kind: RecordType::AllowNewSources,
            group: Group::new(group.into()).map_err(|e| e.to_string())?,
            sources: vec![Source::new(source.into()).map_err(|e| e.to_string())?],
        })
    };
    let records = (0..FLOWS).map(record).collect::<Outcome<Vec<_>>>()?;
    let report = MembershipMessage::Records(records);
    let packets = build(&report, Ipv4Addr::UNSPECIFIED.into(), 1200).map_err(|e| e.to_string())?;
    for packet in &packets {
        let update = AmtMessage::MembershipUpdate { mac, nonce, packet };
        socket.send(&update.to_bytes())?;
    }
    Ok(())
}

// A gateway.

fn gateway_settings(ingress: &str, relay: Option<&str>, flows: usize) -> String {
    let mut text = String::new();
    if let Some(relay) = relay {
        let _ = write!(
            text,
            "[[amt.gateway]]\nname = \"{ingress}\"\nrelay = \"{relay}\"\nfamilies = [\"ipv4\"]\n"
        );
    }
    for flow in 0..flows {
        let (source, group) = SenderKind::Raw.flow(flow);
        let _ = write!(
            text,
            "[[route]]\nfrom = \"{ingress}\"\nsource = \"{source}\"\ngroup = \"{group}\"\n\
             to = [\"{}\"]\n",
            lab::out(0)
        );
    }
    text
}
