//! `mcastor trace`: follows live packets through the decision.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::change::SocketArgs;
use super::exit::{fail, print_error, usage_error};
use super::group_and_port::GroupAndPort;
use super::output::{paragraph, print_line};
use super::pcapng::{PcapPacket, PcapngWriter};
use super::signals::stop_on_signals;
use crate::api::{ShowReply, TraceQuery, TraceView, TracedPacketView, TracedPathView};
use crate::forward::DropReason;
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{GroupPrefix, IfName};

/// Exit code if no packet arrived.
const NO_PACKET: u8 = 3;

/// Time between two requests for packets.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `mcastor trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints each packet as it arrives, and for each egress with which TTL and addresses it leaves or why
it is dropped. A packet that leaves has been passed to the egress; if the link or its queue drops it
there, `mcastor show drops` says so. Packets are recorded only while this command runs.

Examples:
  The next 20 packets of a group, for at most ten seconds:
    mcastor trace 239.1.2.3

  A port and a source, as they arrive on eth0, until 1,000 packets or a minute have passed:
    mcastor trace --iif eth0 --source 10.0.0.10 --count 1000 --seconds 60 239.1.2.3:5000

  For Wireshark, which shows the decision as the comment of each packet:
    mcastor trace --pcap trace.pcapng 239.0.0.0/8

Exit codes: 0 a packet arrived, 1 failure, 2 invalid arguments, 3 no packet arrived.")]
pub struct TraceArgs {
    /// Group or prefix, and the UDP port if it matters
    #[arg(value_name = "GROUP[:PORT]")]
    group: TracedGroup,
    /// Only packets of this source
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Only packets that arrive on this interface
    #[arg(long, value_name = "NAME")]
    iif: Option<IfName>,
    /// Stop after this number of packets
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Stop after this time
    #[arg(long, value_name = "S", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Also write the packets to a pcapng file, or only to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Print one JSON object a line for each packet
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// A group with or without a port, or a prefix.
#[derive(Debug, Clone, Copy)]
struct TracedGroup {
    group: GroupPrefix,
    port: Option<u16>,
}

impl FromStr for TracedGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<GroupAndPort>() {
            Ok(GroupAndPort { group, port }) => {
                let group = group.to_string().parse::<GroupPrefix>();
                let group = group.map_err(|e| e.to_string())?;
                Ok(Self { group, port })
            }
            Err(e) if !text.contains('/') => Err(e),
            Err(_) => {
                let group = text.parse::<GroupPrefix>();
                let group = group.map_err(|e| e.to_string())?;
                Ok(Self { group, port: None })
            }
        }
    }
}

/// Where the packets go.
struct TraceOutput {
    json: bool,
    /// Whether standard output is the pcapng file.
    quiet: bool,
    pcap: Option<PcapngWriter<Box<dyn Write>>>,
    /// Time of the first packet.
    first_ns: Option<u64>,
    packets: u64,
    /// Packets by outcome, as the summary lists them.
    outcomes: BTreeMap<String, u64>,
    /// The reasons that occurred.
    reasons: BTreeMap<String, ()>,
}

/// Follows packets, and prints them.
pub fn run(args: &TraceArgs) -> ExitCode {
    let group_is_v4 = args.group.group.net().addr().is_ipv4();
    if args
        .source
        .is_some_and(|source| source.is_ipv4() != group_is_v4)
    {
        return usage_error(&"source and group have different IP versions");
    }
    match follow(args) {
        Ok(0) => NO_PACKET.into(),
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

/// Returns the number of packets.
fn follow(args: &TraceArgs) -> Result<u64, Box<dyn Error>> {
    let to_stdout = args
        .pcap
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    let mut query = TraceQuery {
        id: RandomState::new().build_hasher().finish(),
        group: args.group.group.to_string(),
        port: args.group.port,
        source: args.source,
        iif: args.iif.as_ref().map(ToString::to_string),
        bytes: args.pcap.is_some(),
        end: false,
    };
    let stop = stop_on_signals()?;
    let pcap = args.pcap.as_ref().map(|path| {
        let open = || -> io::Result<_> {
            let file: Box<dyn Write> = match to_stdout {
                true => Box::new(io::stdout()),
                false => Box::new(File::create(path)?),
            };
            let mut writer = PcapngWriter::new(file, "")?;
            writer.file().flush()?;
            Ok(writer)
        };
        open().map_err(|e| {
            let path = path.display();
            format!("cannot write {path} (--pcap): {e}; the folder must exist and be writable")
        })
    });
    let pcap = pcap.transpose()?;
    let mut missed = request(&args.socket, &query)?.missed;
    let mut output = TraceOutput {
        json: args.json,
        quiet: to_stdout,
        pcap,
        first_ns: None,
        packets: 0,
        outcomes: BTreeMap::new(),
        reasons: BTreeMap::new(),
    };
    eprintln!(
        "tracing {} for {} s or {} packets",
        args.group.group, args.seconds, args.count
    );
    let until = Instant::now() + Duration::from_secs(args.seconds);
    while output.packets < args.count && !query.end {
        let remaining = until.saturating_duration_since(Instant::now());
        sleep(POLL_INTERVAL.min(remaining));
        query.end = Instant::now() >= until || stop.load(Ordering::Relaxed);
        let view = request(&args.socket, &query)?;
        missed += view.missed;
        let wanted = args.count - output.packets;
        for packet in view.packets.iter().take(wanted as usize) {
            match output.write(packet) {
                Ok(()) => {}
                // The reader has seen enough, as with `| head`.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => query.end = true,
                Err(e) => return Err(e.into()),
            }
        }
    }
    if !query.end {
        query.end = true;
        request(&args.socket, &query)?;
    }
    let summary = output.summary(args, missed);
    match output.quiet || output.json {
        false => print_line(&escape(&summary, EscapeStyle::Lines)),
        // Standard output has the packets alone.
        true => print_error(&summary.trim_start()),
    }
    Ok(output.packets)
}

fn request(socket: &SocketArgs, query: &TraceQuery) -> Result<TraceView, Box<dyn Error>> {
    match client::send(&socket.socket, Command::Trace(query.clone()))? {
        ShowReply::Trace(view) => Ok(view),
        _ => Err("the running mcastor answered something else".into()),
    }
}

impl TraceOutput {
    fn write(&mut self, packet: &TracedPacketView) -> io::Result<()> {
        self.packets += 1;
        let decision = decision_text(packet);
        self.count(packet);
        if let (Some(pcap), Some(digits)) = (&mut self.pcap, &packet.bytes) {
            pcap.write(PcapPacket {
                interface: &packet.iif,
                received_ns: packet.received_ns,
                bytes: &from_hex(digits),
                len: packet.size,
                comment: &decision,
            })?;
            // A reader of a pipe sees each packet at once.
            pcap.file().flush()?;
        }
        if self.quiet {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        if self.json {
            let packet = TracedPacketView {
                bytes: None,
                ..packet.clone()
            };
            let text = serde_json::to_string(&packet)?;
            return writeln!(stdout, "{}", escape(&text, EscapeStyle::Json));
        }
        let first_ns = *self.first_ns.get_or_insert(packet.received_ns);
        let since = Duration::from_nanos(packet.received_ns.saturating_sub(first_ns));
        let text = format!("{:9.4} s  {}\n", since.as_secs_f64(), packet_text(packet))
            + &indented(&decision);
        write!(stdout, "{}", escape(&text, EscapeStyle::Lines))
    }

    /// Adds a packet to the summary.
    fn count(&mut self, packet: &TracedPacketView) {
        let at_egress = packet.egresses.iter().map(|egress| match &egress.reason {
            Some(reason) => format!("dropped at {} as {reason}", egress.oif),
            None => format!("left on {}", egress.oif),
        });
        let dropped = packet.dropped.iter();
        let dropped = dropped.map(|reason| format!("dropped as {reason}"));
        let membership = packet.membership.then(|| "membership messages".to_owned());
        for outcome in at_egress.chain(dropped).chain(membership) {
            *self.outcomes.entry(outcome).or_default() += 1;
        }
        let reasons = packet.egresses.iter().filter_map(|e| e.reason.clone());
        for reason in reasons.chain(packet.dropped.iter().cloned()) {
            self.reasons.insert(reason, ());
        }
    }

    fn summary(&self, args: &TraceArgs, missed: u64) -> String {
        if self.packets == 0 {
            return format!(
                "No packet of {} arrived in {} s. If it should: mcastor doctor --group {}",
                args.group.group,
                args.seconds,
                args.group.group.net().addr()
            );
        }
        let outcomes = self.outcomes.iter();
        let outcomes: Vec<String> = outcomes
            .map(|(outcome, packets)| format!("{packets} {outcome}"))
            .collect();
        let mut text = format!("\n{} packets", self.packets);
        if !outcomes.is_empty() {
            text += ": ";
            text += &outcomes.join(", ");
        }
        text = paragraph(&text, 0);
        for reason in self.reasons.keys() {
            let known = DropReason::ALL.iter().find(|of| of.label() == reason);
            if let Some(known) = known {
                text += &paragraph(&format!("{reason}: {}", known.meaning()), 2);
            }
        }
        if missed > 0 {
            text += &paragraph(
                &format!(
                    "{missed} more packets matched, and are not shown: they arrived faster than \
                     this command reads them. They were forwarded like any others."
                ),
                0,
            );
        }
        text.trim_end().to_owned()
    }
}

fn packet_text(packet: &TracedPacketView) -> String {
    let group = match packet.port {
        Some(port) => SocketAddr::new(packet.group, port).to_string(),
        None => packet.group.to_string(),
    };
    format!(
        "{}: {} to {group}, {} bytes, TTL {}",
        packet.iif, packet.source, packet.size, packet.ttl
    )
}

/// Returns what happened to a packet, a line for each egress.
fn decision_text(packet: &TracedPacketView) -> String {
    let mut lines: Vec<String> = packet.egresses.iter().map(egress_text).collect();
    let dropped = packet.dropped.iter();
    lines.extend(dropped.map(|reason| format!("dropped as {reason}")));
    if packet.membership {
        lines.push("a membership message, which is not forwarded".into());
    }
    lines.join("\n")
}

fn egress_text(egress: &TracedPathView) -> String {
    let TracedPathView { oif, rule, .. } = egress;
    if let Some(reason) = &egress.reason {
        return format!("-> {oif}: dropped as {reason} ({rule})");
    }
    let mut text = format!("-> {oif}: leaves with TTL {}", egress.ttl);
    if let (Some(source), Some(group)) = (egress.source, egress.group) {
        let group = match egress.port {
            Some(port) => SocketAddr::new(group, port).to_string(),
            None => group.to_string(),
        };
        text += &format!(" as {source} to {group}");
    }
    if let Some(fragments) = egress.fragments {
        text += &format!(" in {fragments} fragments");
    }
    text + &format!(" ({rule})")
}

/// Returns `text` with each line below the packet that it describes.
fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("             {line}\n"))
        .collect()
}

/// Returns the bytes of hexadecimal digits. Skips what is none.
fn from_hex(digits: &str) -> Vec<u8> {
    let digits = digits
        .bytes()
        .filter_map(|digit| char::from(digit).to_digit(16));
    let digits: Vec<u8> = digits.map(|digit| digit as u8).collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
