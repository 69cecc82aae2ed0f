//! `mcastor recv`: receives test streams and prints their statistics.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};

use super::exit::stream_failed;
use super::output::print_line;
use super::rtp_report;
use super::signals::stop_on_signals;
use super::silent_groups::{remarks_text, silent_text};
use crate::model::{Group, IfName};
use crate::probe::{DatagramStats, Latency, Payload, ProbeDatagram};
use crate::streams::rtp::RtpPacket;
use crate::sys;
use crate::traffic::{
    ReceiveEvent, ReceiveOptions, ReceiveReport, RtpReceiverStats, receive_rtp, receive_with,
};

/// Receive test streams of `mcastor send`, or RTP; report loss, duplicates, reordering and latency
///
/// Joins the groups and prints "joined GROUP on INTERFACE" to standard error when packets can
/// arrive. Says what the first packet is, and every five seconds how many have arrived. Stops when --count, --seconds or --idle is reached, or on Ctrl-C. Without --count, it
/// also stops when every flow is complete, if the sender ran with --count. Prints the report in all
/// cases.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  Join a group; report on Ctrl-C, or when a sender with --count has finished:
    mcastor recv --interface eth1 --group 225.1.2.3

  Source-specific multicast, for at most ten seconds:
    mcastor recv --interface eth1 --group 232.1.2.3 --source 10.0.0.1 --seconds 10

  Four groups, until no packet arrives for two seconds, as JSON:
    mcastor recv --interface eth1 --group ff3e::8000:1 --flows 4 --idle 2 --json

  Is the RTP stream of a camera complete, and how large is its jitter?
    mcastor recv --interface eth1 --group 239.1.2.3 --port 5004 --rtp --seconds 60

With --rtp, each synchronisation source (SSRC) is judged by its sequence numbers and timestamps.
Loss at the end of a stream is not detected, because RTP does not announce the end. Jitter is that
of RFC 3550 section 6.4.1; the clock rate of a dynamic payload type is measured in the first second.
`tshark -z rtp,streams` counts duplicates as received, so its loss is
smaller by their number.

Latency is measured with the clocks of both hosts: it is exact on one host, and otherwise as exact
as the clocks are synchronised.

Exit code: 0 every flow arrived completely, 1 packets were lost, duplicated, late or damaged, or a
flow had no packets, 2 invalid arguments or a socket error.")]
pub struct RecvArgs {
    #[command(flatten)]
    options: ReceiveOptions,
    /// Judge RTP streams of any sender, in place of test streams
    #[arg(long, display_order = 75)]
    rtp: bool,
    /// Print the report as one JSON object
    #[arg(long, display_order = 80)]
    json: bool,
}

/// Runs `mcastor recv`.
pub fn run(args: RecvArgs) -> ExitCode {
    let options = &args.options;
    let mut progress = ProgressLines::default();
    let printed = stop_on_signals().and_then(|stop| {
        Ok(match args.rtp {
            true => {
                let mut on_event = |event: ReceiveEvent<'_, RtpReceiverStats>| {
                    print_event(&event, options, &mut progress, rtp_packet);
                };
                let report = receive_rtp(options, &stop, &mut on_event)?;
                let text = rtp_report::text(&report);
                (report.ok, text, serde_json::json!(report))
            }
            false => {
                let mut on_event = |event: ReceiveEvent<'_>| {
                    print_event(&event, options, &mut progress, test_packet);
                };
                let report = receive_with(options, &stop, &mut on_event)?;
                (report.ok, report_text(&report), serde_json::json!(report))
            }
        })
    });
    let (ok, text, json) = match printed {
        Ok(printed) => printed,
        Err(error) => return stream_failed("recv", &error),
    };
    match args.json {
        true => print_line(&json.to_string()),
        false => print_line(&text),
    }
    ExitCode::from(u8::from(!ok))
}

/// Prints progress to standard error. `kind` describes what a packet carries.
fn print_event<S: DatagramStats>(
    event: &ReceiveEvent<'_, S>,
    options: &ReceiveOptions,
    progress: &mut ProgressLines,
    kind: fn(&ProbeDatagram<'_>) -> String,
) {
    match event {
        ReceiveEvent::Joined(group) => {
            let verb = match options.no_join {
                true => "listening to",
                false => "joined",
            };
            let interface = &options.stream.interface;
            eprintln!("{verb} {group} on {interface}");
            if let Some(note) = note_on_address(interface, *group) {
                eprintln!("{note}");
            }
        }
        ReceiveEvent::First(datagram) => eprintln!("{}", first_packet(datagram, kind)),
        ReceiveEvent::Progress(stats) => {
            if let Some(line) = progress.line(Instant::now(), stats.datagrams(), options) {
                eprintln!("{line}");
            }
        }
    }
}

/// Returns a note on an interface without an IPv4 address, where strict reverse path filtering
/// drops the packets of every sender that the kernel would not reach over this interface.
fn note_on_address(interface: &IfName, group: Group) -> Option<String> {
    let interfaces = sys::ifaddr::interfaces().ok()?;
    let found = interfaces.iter().find(|other| other.name == *interface)?;
    let filter = |name: &str| -> Option<u8> {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let is_strict = filter("all").max(filter(interface.as_str())) == Some(1);
    let has_address = found.addrs.iter().any(IpAddr::is_ipv4);
    (group.addr().is_ipv4() && is_strict && !has_address).then(|| {
        format!(
            "note: {interface} has no IPv4 address and its rp_filter is 1, so the kernel drops \
             packets of senders to which it has no route over {interface}; add an address of their \
             subnet with `ip addr add ADDRESS/LENGTH dev {interface}`"
        )
    })
}

/// Interval of the lines about progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Describes the first packet; `kind` describes what it carries.
fn first_packet(datagram: &ProbeDatagram<'_>, kind: fn(&ProbeDatagram<'_>) -> String) -> String {
    let ttl = datagram.ttl.map(|ttl| format!(", TTL {ttl}"));
    format!(
        "first packet: to {} from {}{}, {} bytes of payload, {}",
        datagram.group,
        datagram.source,
        ttl.unwrap_or_default(),
        datagram.data.len(),
        kind(datagram)
    )
}

fn test_packet(datagram: &ProbeDatagram<'_>) -> String {
    match Payload::parse(datagram.data) {
        Ok(payload) => {
            let ns = datagram.received_ns as f64 - payload.sent_ns as f64;
            format!("{:.1} ms after it was sent", ns / 1e6)
        }
        Err(_) if RtpPacket::parse(datagram.data).is_some() => {
            "not a test packet; it may be RTP, which --rtp judges".into()
        }
        Err(_) => "not a test packet".into(),
    }
}

fn rtp_packet(datagram: &ProbeDatagram<'_>) -> String {
    match RtpPacket::parse(datagram.data) {
        Some(packet) => format!(
            "RTP with SSRC 0x{:08x}, payload type {}",
            packet.ssrc, packet.payload_type
        ),
        None => "not RTP".into(),
    }
}

/// The lines about progress, one every [`PROGRESS`].
#[derive(Default)]
struct ProgressLines {
    last: Option<(Instant, u64)>,
}

impl ProgressLines {
    fn line(&mut self, now: Instant, received: u64, options: &ReceiveOptions) -> Option<String> {
        let (at, before) = *self.last.get_or_insert((now, 0));
        let seconds = (now - at).as_secs_f64();
        if now - at < PROGRESS {
            return None;
        }
        self.last = Some((now, received));
        let (interface, group) = (&options.stream.interface, options.stream.group);
        Some(match received - before {
            0 if received == 0 => format!(
                "no packet for {seconds:.0} s; `mcastor doctor --interface {interface} --group \
                 {group}` looks for the cause"
            ),
            0 => format!("{received} packets, none in the last {seconds:.0} s"),
            new => format!("{received} packets, {:.0} a second", new as f64 / seconds),
        })
    }
}

/// Formats the report as a table and summary lines.
fn report_text(report: &ReceiveReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "group", "source", "received", "lost", "dup", "reord", "ttl", "min us", "p50", "p99", "max",
    ]);
    for s in &report.streams {
        let ttl = match (s.ttl_min, s.ttl_max) {
            (Some(a), Some(b)) if a == b => a.to_string(),
            (Some(a), Some(b)) => format!("{a}-{b}"),
            _ => "-".into(),
        };
        let us = |field: fn(&Latency) -> f64| {
            s.latency_us
                .as_ref()
                .map_or("-".into(), |l| format!("{:.1}", field(l)))
        };
        table.add_row([
            s.group.to_string(),
            s.source.to_string(),
            s.received.to_string(),
            s.lost.to_string(),
            s.duplicates.to_string(),
            s.reordered.to_string(),
            ttl,
            us(|l| l.min),
            us(|l| l.p50),
            us(|l| l.p99),
            us(|l| l.max),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = String::new();
    if !report.streams.is_empty() {
        text = format!("{}\n\n", table.trim_fmt());
    }
    text += &format!(
        "{} received, {} lost, {} duplicates, {} reordered in {:.1} s",
        report.received, report.lost, report.duplicates, report.reordered, report.seconds
    );
    let remarks = [
        (report.late, "too late to distinguish from duplicates"),
        (report.damaged, "damaged"),
        (report.foreign, "not test packets"),
        (
            report.untracked,
            "in streams beyond the limit, without statistics",
        ),
        (report.socket_dropped, "dropped at the socket"),
    ];
    text + &remarks_text(&remarks) + &silent_text(&report.interface, &report.silent)
}
