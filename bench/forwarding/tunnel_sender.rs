//! The relays of a gateway that is measured: they answer its messages, and send packets through its
//! tunnels.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mcastor::model::{IfIndex, TunnelEndpoint};
use mcastor::probe::{PaceAction, Pacer};
use mcastor::sys::bpf_burst::{BurstOutcome, BurstProgram, ETHERNET_HEADER_LEN, MAX_PACKETS};
use mcastor::sys::datagram::{CopySender, DatagramReceiver, DatagramSocket};
use mcastor::wire::amt::{AmtMessage, DATA_HEADER, FlagLayout, PORT, ResponseMac};
use mcastor::wire::ip::refresh_ipv4_checksum;
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{Generation, MembershipMessage, Query};
use mcastor::wire::vlan::ETHERTYPE_IPV4;
use mcastor::wire::{checksum, udp};

use crate::Outcome;
use crate::amt::ip;
use crate::lab::{Lab, ROUTER, SOURCE};
use crate::meter;
use crate::relay_records::RelayRecords;
use crate::sender::{self, SENDER_CORE, SendResult, SenderKind, Stream};

/// The port of a socket that reads nothing: the tunnel leads there until a gateway runs.
pub const IDLE_PORT: u16 = 40_000;
/// The relays of a gateway with many tunnels: addresses of the source, and the network that has them.
const FIRST_RELAY: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const RELAYS: &str = "10.7.0.0/16";
/// The name server that has their records.
const NAME_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(SOURCE), 53);
/// IPv4 and UDP headers of the packet in a tunnel.
pub const INNER: usize = 28;
/// Most packets of one system call of the sender.
const BATCH: usize = 64;
/// Length of an IPv4 and of a UDP header.
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The relays of a gateway with many tunnels, and the name server that knows them.
pub struct RelayNetwork {
    _records: RelayRecords,
}

impl RelayNetwork {
    pub fn start(lab: &Lab, count: usize) -> Outcome<Self> {
        // A namespace has its loopback down at first.
        ip(&lab.source, "link set lo up")?;
        ip(&lab.source, &format!("route add local {RELAYS} dev lo"))?;
        ip(&lab.router, &format!("route add {RELAYS} via {SOURCE}"))?;
        let relay_of = move |source| {
            let (first, _) = SenderKind::Raw.flow(0);
            let flow = Ipv4Addr::to_bits(source).wrapping_sub(first.to_bits());
            relay_address(flow as usize, count)
        };
        let _records = RelayRecords::start(&lab.source, NAME_SERVER, relay_of)?;
        Ok(Self { _records })
    }
}

/// Returns the relay of a flow.
fn relay_address(flow: usize, relays: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_RELAY.to_bits() + (flow % relays) as u32)
}

/// How relays send packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sending {
    /// One datagram after the other, each in a soft interrupt of its own.
    Single,
    /// Runs of one stream (`UDP_SEGMENT`), as the relay of mcastor sends them.
    Runs,
    /// Single datagrams, several of which arrive together: as the native packets of this bench do,
    /// and those that hardware receives between two interrupts.
    Bursts,
}

/// The relays of the gateway: answer its messages, and send it packets. Dropping it ends them.
pub struct TunnelSender {
    socket: Arc<DatagramSocket>,
    gateway: Arc<Mutex<SocketAddr>>,
    /// The addresses of relays that have received an update.
    joined: Arc<Mutex<BTreeSet<IpAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TunnelSender {
    pub fn start(lab: &Lab) -> Outcome<Self> {
        let open = || DatagramSocket::open((Ipv4Addr::UNSPECIFIED, PORT).into(), None);
        let socket = Arc::new(lab.source.run(open)??);
        let gateway = Arc::new(Mutex::new(SocketAddr::from((ROUTER, IDLE_PORT))));
        let stop = Arc::new(AtomicBool::new(false));
        let joined: Arc<Mutex<BTreeSet<IpAddr>>> = Arc::default();
        let (answering, known, stopped) = (socket.clone(), gateway.clone(), stop.clone());
        let updated = joined.clone();
        let thread = std::thread::spawn(move || {
            let mut receiver = DatagramReceiver::new(answering.clone());
            while !stopped.load(Ordering::Relaxed) {
                let mut datagrams = Vec::new();
                let Ok(buffer) = receiver.receive(&mut datagrams) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                for datagram in datagrams {
                    let range = datagram.start..datagram.start + datagram.len;
                    let message = buffer.bytes().get(range).unwrap_or_default();
                    let parsed = AmtMessage::parse(message);
                    if matches!(parsed, Ok(AmtMessage::MembershipUpdate { .. }))
                        && let Ok(mut updated) = updated.lock()
                    {
                        updated.insert(datagram.endpoint.local);
                    }
                    if let Some(answer) = answer(message) {
                        if let Ok(mut known) = known.lock() {
                            *known = datagram.endpoint.remote;
                        }
                        let _ = answering.send(datagram.endpoint, &answer);
                    }
                }
            }
        });
        Ok(Self {
            socket,
            gateway,
            joined,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until this number of relays has received an update.
    pub fn wait_for_relays(&self, count: usize) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let joined = self.joined.lock().map_err(|e| e.to_string())?.len();
            if joined >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{joined} of {count} relays have received an update").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends to this address from now on.
    pub fn lead_to(&self, address: SocketAddr) -> Outcome<()> {
        *self.gateway.lock().map_err(|e| e.to_string())? = address;
        Ok(())
    }

    /// Sends the packets of a stream through the tunnel.
    pub fn send(
        &self,
        lab: &Lab,
        stream: Stream,
        sending: Sending,
        stop: &AtomicBool,
    ) -> Outcome<SendResult> {
        let remote = *self.gateway.lock().map_err(|e| e.to_string())?;
        let mut burst = match sending {
            Sending::Bursts => Some(DatagramBurst::open(lab, remote)?),
            _ => None,
        };
        // One relay sends all flows, or each of its own.
        let relays = self.joined.lock().map_err(|e| e.to_string())?.len();
        let relay_of = |flow| match relays {
            0 | 1 => SOURCE,
            relays => relay_address(flow, relays),
        };
        let flows = 0..stream.flows;
        let packets = flows.map(|flow| sender::packet(stream.size, stream.kind.flow(flow)));
        let packets: Vec<_> = packets.collect();
        sender::pin(SENDER_CORE)?;
        let cpu = meter::own_ns();
        let mut copies = CopySender::default();
        let segment = (DATA_HEADER.len() + INNER + stream.size) as u16;
        // The kernel makes at most 64 datagrams of a run, whose length has 16 bits.
        let longest = (usize::from(u16::MAX) / usize::from(segment) - 1).min(BATCH);
        let mut pacer = Pacer::new(stream.rate);
        let max = stream
            .rate
            .map_or(u64::MAX, |rate| (rate * stream.seconds) as u64);
        let limit = Duration::from_secs_f64(match stream.rate {
            Some(_) => stream.seconds * 2.0,
            None => stream.seconds,
        });
        let (mut sent, mut batches) = (0u64, 0);
        let started = Instant::now();
        while sent < max && started.elapsed() < limit && !stop.load(Ordering::Relaxed) {
            let due = match pacer.poll(started.elapsed()) {
                PaceAction::Sleep(pause) => {
                    std::thread::sleep(pause);
                    continue;
                }
                PaceAction::Send(due) => due.min(max - sent).min(BATCH as u64) as usize,
            };
            let flow = batches % packets.len();
            let packet = &packets[flow];
            let to = [TunnelEndpoint {
                remote,
                local: relay_of(flow).into(),
            }; BATCH];
            batches += 1;
            let run = due.min(longest);
            let done = match (&mut burst, sending) {
                (Some(burst), _) => burst.send(packet, due),
                (None, Sending::Runs) if run > 1 => {
                    let parts = [&DATA_HEADER[..], packet].repeat(run);
                    let sending = copies.send(&self.socket, &parts, Some(segment), &to[..1]);
                    sending.map(|_| run)
                }
                _ => copies.send(&self.socket, &[&DATA_HEADER, packet], None, &to[..due]),
            };
            match done {
                Ok(n) => {
                    sent += n as u64;
                    pacer.sent(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(SendResult {
            packets: sent,
            seconds: started.elapsed().as_secs_f64(),
            thread_ns: meter::own_ns().saturating_sub(cpu),
        })
    }
}

impl Drop for TunnelSender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends datagrams of a relay as frames, many in one soft interrupt.
struct DatagramBurst {
    program: BurstProgram,
    index: IfIndex,
    header: [u8; ETHERNET_HEADER_LEN],
    to: SocketAddrV4,
}

impl DatagramBurst {
    fn open(lab: &Lab, to: SocketAddr) -> Outcome<Self> {
        let SocketAddr::V4(to) = to else {
            return Err("bursts are sent over IPv4 only".into());
        };
        let mut header = [0; ETHERNET_HEADER_LEN];
        header[..6].copy_from_slice(&lab.router_mac()?);
        header[12..].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        Ok(Self {
            program: BurstProgram::open()?,
            index: lab.source_index()?,
            header,
            to,
        })
    }

    /// Sends a packet in `count` datagrams. Returns how many were sent.
    fn send(&mut self, packet: &[u8], count: usize) -> io::Result<usize> {
        let datagram = self.datagram(packet);
        let count = count.min(MAX_PACKETS);
        for n in 0..count {
            self.program.put(n, &self.header, &datagram);
        }
        match self.program.run(self.index, 0, count)? {
            BurstOutcome::AllSent => Ok(count),
            // A verdict is a drop at the next queue.
            BurstOutcome::QueueVerdict { sent, .. } => Ok(sent + 1),
            BurstOutcome::Refused { errno, .. } => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Returns a datagram as an IPv4 packet, with checksums.
    fn datagram(&self, packet: &[u8]) -> Vec<u8> {
        let udp_len = UDP_HEADER + DATA_HEADER.len() + packet.len();
        let (from, to) = (SOURCE, *self.to.ip());
        let mut datagram = vec![0u8; IPV4_HEADER];
        datagram[0] = 0x45;
        datagram[2..4].copy_from_slice(&((IPV4_HEADER + udp_len) as u16).to_be_bytes());
        datagram[8] = 64;
        datagram[9] = udp::PROTOCOL;
        datagram[12..16].copy_from_slice(&from.octets());
        datagram[16..20].copy_from_slice(&to.octets());
        refresh_ipv4_checksum(&mut datagram);
        for field in [PORT, self.to.port(), udp_len as u16, 0] {
            datagram.extend(field.to_be_bytes());
        }
        datagram.extend(DATA_HEADER);
        datagram.extend(packet);
        let sum = checksum::pseudo_header(from.into(), to.into(), udp::PROTOCOL, udp_len as u32);
        let sum = !checksum::fold(checksum::add(sum, &datagram[IPV4_HEADER..]));
        let field = IPV4_HEADER + udp::CHECKSUM_OFFSET;
        datagram[field..field + 2].copy_from_slice(&udp::checksum_field(sum).to_be_bytes());
        datagram
    }
}

/// Returns the answer of the relay to a message.
fn answer(message: &[u8]) -> Option<Vec<u8>> {
    match AmtMessage::parse(message).ok()? {
        AmtMessage::RelayDiscovery { nonce } => {
            let relay = SOURCE.into();
            Some(AmtMessage::RelayAdvertisement { nonce, relay }.to_bytes())
        }
        AmtMessage::Request { nonce, .. } => {
            let query = MembershipMessage::Query(Query {
                generation: Generation::Three,
                group: None,
                max_response_time: Duration::from_secs(1),
                suppress: false,
                robustness: 2,
                interval: Some(Duration::from_secs(125)),
                sources: Vec::new(),
            });
            let packets = build(&query, SOURCE.into(), 1200).ok()?;
            let query = AmtMessage::MembershipQuery {
                is_limit_reached: false,
                mac: ResponseMac([1; 6]),
                nonce,
                packet: packets.first()?,
                gateway: None,
                flags: FlagLayout::Standard,
            };
            Some(query.to_bytes())
        }
        _ => None,
    }
}
