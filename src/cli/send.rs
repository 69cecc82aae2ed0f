//! `mcastor send`: sends a test stream, or plays a capture file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::exit::stream_failed;
use super::group_and_port::GroupAndPort;
use super::output::print_line;
use super::signals::stop_on_signals;
use crate::probe::StreamError;
use crate::traffic::{PlayOptions, PlayReport, SendOptions, SendReport, play, send};

/// Exit code if no packet of a capture could be played.
const NOTHING_PLAYED: u8 = 1;

/// Send a test stream: numbered multicast packets with timestamps, at a constant rate. With
/// --play, send the packets of a capture file
///
/// `mcastor recv` at the other end reports loss, duplicates, reordering and latency.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  100 packets per second to one group, until Ctrl-C:
    mcastor send --interface eth0 --group 225.1.2.3

  10,000 packets of 1,400 bytes, 5,000 per second:
    mcastor send --interface eth0 --group 225.1.2.3 --rate 5000 --count 10000 --size 1400

  IPv6, four groups (ff3e::8000:1 to ff3e::8000:4), for ten seconds:
    mcastor send --interface eth0 --group ff3e::8000:1 --flows 4 --seconds 10

  With TTL 1, the default of many programs; a router drops these packets:
    mcastor send --interface eth0 --group 225.1.2.3 --ttl 1

  RTP as of a telephone: PCMU, 50 packets per second, each with 160 samples:
    mcastor send --interface eth0 --group 239.1.2.3 --port 5004 --rtp --payload-type 0 --rate 50

  A capture, with its own groups, ports and pace:
    mcastor send --interface eth0 --play camera.pcapng

  One stream of a capture to another group, twice as fast:
    mcastor send --interface eth0 --play all.pcap --only 239.9.9.9:5004 --group 239.1.2.3 --speed 2

An RTP packet has a header of 12 bytes before the test payload; its timestamps follow --rate.
`mcastor recv --rtp` judges it.

--play reads pcap and pcapng files. It sends UDP payloads with new IP and UDP headers: of --ttl,
--dscp and --source. Without --group, packets to unicast addresses are skipped. Fragments and
packets of which the capture has only the beginning are skipped too, and counted.

Exit code: 0 all packets were sent, 1 the capture has no packet that can be played, 2 invalid
arguments, an unreadable file or a socket error.")]
pub struct SendArgs {
    #[command(flatten)]
    stream: StreamOrCapture,
    /// Print the summary as one JSON object
    #[arg(long, display_order = 90)]
    json: bool,
}

/// The arguments of a capture that have no meaning for a test stream.
#[derive(Debug, Clone, clap::Args)]
struct CaptureArgs {
    /// Play this capture file (pcap or pcapng) at its own pace, in place of a test stream
    #[arg(long, value_name = "FILE", display_order = 80)]
    play: Option<PathBuf>,
    /// With --play: the factor of the pace; 0 means as fast as possible
    #[arg(long, value_name = "FACTOR", requires = "play", default_value_t = 1.0,
        value_parser = speed, display_order = 81)]
    speed: f64,
    /// With --play: only packets that the capture has to this address
    #[arg(
        long,
        value_name = "ADDRESS[:PORT]",
        requires = "play",
        display_order = 82
    )]
    only: Option<GroupAndPort>,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor == 0.0 || (0.001..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("the factor must be 0.001 to 1000, or 0 for no pace".into()),
    }
}

/// What is sent. The arguments of both have the same names where they mean the same.
#[derive(Debug, Clone)]
enum StreamOrCapture {
    Stream(Box<SendOptions>),
    Capture(Box<PlayOptions>),
}

/// Arguments of a test stream that a capture does not accept.
const ONLY_OF_STREAMS: [&str; 6] = ["rate", "size", "flows", "gso", "no_checksum", "rtp"];

impl Args for StreamOrCapture {
    fn augment_args(command: Command) -> Command {
        let command = CaptureArgs::augment_args(SendOptions::augment_args(command));
        command.mut_args(|arg| match arg.get_id().as_str() {
            // A capture has groups of its own.
            "group" => arg.required(false).required_unless_present("play").help(
                "Multicast group, IPv4 or IPv6; with --flows, the first of them; with --play, \
                 the group of all packets in place of their own",
            ),
            "port" => arg.help("UDP destination port. Default with --play: that of each packet"),
            "count" => arg.help(
                "Packets per flow. They carry this number, so the receiver also detects loss at \
                 the end. With --play, the number of packets. Default: unlimited",
            ),
            id if ONLY_OF_STREAMS.contains(&id) => arg.conflicts_with("play"),
            _ => arg,
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StreamOrCapture {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let capture = CaptureArgs::from_arg_matches(matches)?;
        let Some(file) = capture.play else {
            let options = SendOptions::from_arg_matches(matches)?;
            return Ok(Self::Stream(Box::new(options)));
        };
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let interface = matches.get_one("interface").cloned();
        let missing = || clap::Error::new(clap::error::ErrorKind::MissingRequiredArgument);
        Ok(Self::Capture(Box::new(PlayOptions {
            file,
            interface: interface.ok_or_else(missing)?,
            group: matches.get_one("group").copied(),
            port: (matches.get_one("port").copied()).filter(|_| is_given("port")),
            only: capture.only.map(|only| (only.group, only.port)),
            source: matches.get_one("source").copied(),
            ttl: matches.get_one("ttl").copied().ok_or_else(missing)?,
            dscp: matches.get_one("dscp").copied().ok_or_else(missing)?,
            speed: capture.speed,
            count: matches.get_one("count").copied(),
            seconds: matches.get_one("seconds").copied(),
        })))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs `mcastor send`.
pub fn run(args: SendArgs) -> ExitCode {
    let done = stop_on_signals().and_then(|stop| match &args.stream {
        StreamOrCapture::Stream(options) => send_stream(options, args.json, &stop),
        StreamOrCapture::Capture(options) => play_capture(options, args.json, &stop),
    });
    done.unwrap_or_else(|error| stream_failed("send", &error))
}

fn send_stream(
    options: &SendOptions,
    json: bool,
    stop: &AtomicBool,
) -> Result<ExitCode, StreamError> {
    let sent = send(options, stop)?;
    match json {
        true => print_line(&serde_json::json!(sent).to_string()),
        false => print_line(&sent_text(options, &sent)),
    }
    Ok(ExitCode::SUCCESS)
}

fn sent_text(options: &SendOptions, sent: &SendReport) -> String {
    let mut text = format!(
        "{} packets, {} bytes to {}{} on {} in {:.3} s: {:.1} packets/s per flow",
        sent.packets,
        sent.bytes,
        options.stream.group,
        match options.stream.flows {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        },
        sent.interface,
        sent.seconds,
        sent.rate,
    );
    if let Some(rtp) = &sent.rtp {
        text += &format!(
            "\nRTP: SSRC 0x{:08x}, payload type {}, {} Hz, first sequence number {}",
            rtp.ssrcs.first().copied().unwrap_or_default(),
            rtp.payload_type,
            rtp.clock_rate,
            rtp.first_sequence
        );
    }
    text
}

fn play_capture(
    options: &PlayOptions,
    json: bool,
    stop: &AtomicBool,
) -> Result<ExitCode, StreamError> {
    let played = play(options, stop)?;
    match json {
        true => print_line(&serde_json::json!(played).to_string()),
        false => print_line(&played_text(&played)),
    }
    Ok(match played.packets {
        0 => ExitCode::from(NOTHING_PLAYED),
        _ => ExitCode::SUCCESS,
    })
}

fn played_text(played: &PlayReport) -> String {
    let mut text = format!(
        "{} packets, {} bytes of {} on {} in {:.3} s; captured in {:.3} s; at most {:.1} ms late",
        played.packets,
        played.bytes,
        played.file,
        played.interface,
        played.seconds,
        played.capture_seconds,
        played.max_late_ms,
    );
    for reason in played.skipped.reasons() {
        text += &format!("\nskipped: {reason}");
    }
    if played.cut_short {
        text += "\nthe file ends within a packet, as after a capture that was killed";
    }
    if played.packets == 0 {
        text += "\nno packet was played";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<StreamOrCapture, String> {
        let command = SendArgs::augment_args(Command::new("send"));
        let words = std::iter::once("send").chain(words.split(' '));
        let matches = command.try_get_matches_from(words);
        let args = matches.and_then(|matches| SendArgs::from_arg_matches(&matches));
        args.map(|args| args.stream).map_err(|e| e.to_string())
    }

    #[test]
    fn groups_and_ports_are_those_of_the_capture_by_default() {
        let Ok(StreamOrCapture::Capture(own)) = parse("-i eth0 --play a.pcap") else {
            panic!("a capture");
        };
        assert_eq!(
            (own.group, own.port, own.speed, own.ttl),
            (None, None, 1.0, 16)
        );
        let words = "-i eth0 --play a.pcap -g 225.1.2.3 -p 5000 --speed 0 --only 10.0.0.1:7 -n 3";
        let Ok(StreamOrCapture::Capture(given)) = parse(words) else {
            panic!("a capture");
        };
        assert_eq!(given.group, "225.1.2.3".parse().ok());
        assert_eq!((given.port, given.count), (Some(5000), Some(3)));
        assert_eq!(given.only, Some(([10, 0, 0, 1].into(), Some(7))));
    }

    #[test]
    fn arguments_of_the_other_kind_are_refused() {
        assert!(matches!(
            parse("-i eth0 -g 225.1.2.3 --rtp --ssrc 0x10"),
            Ok(StreamOrCapture::Stream(options)) if options.rtp.ssrc == Some(16)
        ));
        for (words, named) in [
            ("-i eth0", "--group <ADDR>"),
            ("-g 225.1.2.3", "--interface <NAME>"),
            ("--play a.pcap", "--interface <NAME>"),
            ("-i eth0 --play a.pcap --rate 5", "--rate"),
            ("-i eth0 --play a.pcap --rtp", "--rtp"),
            ("-i eth0 -g 225.1.2.3 --speed 2", "--play <FILE>"),
            ("-i eth0 -g 225.1.2.3 --ssrc 2", "--rtp"),
        ] {
            let error = parse(words).expect_err(words);
            assert!(error.contains(named), "{words}: {error}");
        }
    }
}
