//! `mcastor send`: sends a test stream.

use std::process::ExitCode;

use super::exit::stream_failed;
use super::output::print_line;
use super::signals::stop_on_signals;
use crate::traffic::{SendOptions, send};

/// Send a test stream: numbered multicast packets with timestamps, at a constant rate
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

Exit code: 0 all packets were sent, 2 invalid arguments or a socket error.")]
pub struct SendArgs {
    #[command(flatten)]
    options: SendOptions,
    /// Print the summary as one JSON object
    #[arg(long, display_order = 80)]
    json: bool,
}

/// Runs `mcastor send`.
pub fn run(args: SendArgs) -> ExitCode {
    let sent = stop_on_signals().and_then(|stop| send(&args.options, &stop));
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => return stream_failed("send", &error),
    };
    if args.json {
        print_line(&serde_json::json!(sent).to_string());
    } else {
        print_line(&format!(
            "{} packets, {} bytes to {}{} on {} in {:.3} s: {:.1} packets/s per flow",
            sent.packets,
            sent.bytes,
            args.options.stream.group,
            match args.options.stream.flows {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            },
            sent.interface,
            sent.seconds,
            sent.rate,
        ));
    }
    ExitCode::SUCCESS
}
