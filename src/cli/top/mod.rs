//! `mcastor top`: interfaces, flows, drops, joins and streams, as they change.

mod details;
mod draw;
mod lines;
mod snapshot;
mod source;
mod state;
mod table;
mod tables;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::change::SocketArgs;
use super::exit::fail;
use snapshot::{Rates, Reading};
use tables::View;

/// Arguments of `mcastor top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: 1 to 5 or Tab choose a table, arrows or h, j, k, l move, Enter opens a row, s sorts, / filters,
p pauses, ? shows all keys, q quits. A flow is opened with what `mcastor explain` says, a stream with
its health.

If standard output is not a terminal, or with --lines or --once, the tables are printed as plain
lines. Rates need two readings, so the first lines are printed after --interval. Without colours:
NO_COLOR=1.

Examples:
  mcastor top

  The drops of the last minute, and their rates:
    mcastor top --once --view drops

  The flows every ten seconds, into a file:
    mcastor top --view flows --interval 10 > flows.txt

Exit codes: 0 success, 1 no mcastor answers.")]
pub struct TopArgs {
    /// The table that is shown first; with plain lines, the only one
    #[arg(long, value_name = "TABLE")]
    view: Option<View>,
    /// Time between two readings, in seconds
    #[arg(long, short = 'd', value_name = "S", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Print the tables once, as plain lines
    #[arg(long)]
    once: bool,
    /// Print plain lines, also to a terminal
    #[arg(long)]
    lines: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("the interval must be 0.1 to 3600 seconds".into()),
    }
}

/// Runs `mcastor top`.
pub fn run(args: &TopArgs) -> ExitCode {
    let interval = Duration::from_secs_f64(args.interval);
    let is_plain = args.once || args.lines || !io::stdout().is_terminal();
    // A router that does not answer is reported before the screen is taken.
    let started = Instant::now();
    let first = match source::read(&args.socket.socket, "", started) {
        Ok(snapshot) => snapshot,
        Err(e) => return fail(&e),
    };
    if is_plain {
        return print_lines(args, first, started, interval);
    }
    let socket: PathBuf = args.socket.socket.clone();
    let view = args.view.unwrap_or(View::Interfaces);
    match terminal::run(socket, view, first, started, interval) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&format_args!("cannot use the terminal: {e}; try --lines")),
    }
}

/// Prints the tables after each reading, until standard output is closed.
fn print_lines(
    args: &TopArgs,
    mut before: Reading,
    started: Instant,
    interval: Duration,
) -> ExitCode {
    let one = args.view.map(|view| [view]);
    let views: &[View] = one.as_ref().map_or(&View::ALL, |one| one);
    let mut is_first = true;
    loop {
        std::thread::sleep(interval);
        let now = match source::read(&args.socket.socket, "", started) {
            Ok(now) => now,
            Err(e) => return fail(&e),
        };
        let rates = Rates::between(&before, &now);
        let mut text = lines::text(views, &now, &rates);
        if !is_first {
            text.insert(0, '\n');
        }
        is_first = false;
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if args.once || written.is_err() {
            return ExitCode::SUCCESS;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::snapshot::Reading;

    /// A reading after so many seconds, with the packets of three flows that leave on two
    /// interfaces. One packet of a thousand bytes each.
    pub(super) fn snapshot(seconds: u64, packets: [u64; 3]) -> Reading {
        let total: u64 = packets.iter().sum::<u64>() + 1000;
        let flows = (1..).zip(packets).map(|(n, packets)| {
            json!({
                "iif": "eth0", "source": "10.0.0.1", "group": format!("225.1.2.{n}"),
                "route": "cams", "oifs": ["eth1", "eth2"], "packets": packets,
                "bytes": packets * 100, "age_ms": 9000, "idle_ms": 7, "plane": "packet",
            })
        });
        let interface = |index: u32, name: &str, received: u64, sent: u64, dropped: u64| {
            json!({
                "index": index, "name": name, "up": true, "carrier": true, "mtu": 1500,
                "ingress": index == 1, "egress": index > 1, "ttl_threshold": null,
                "received_packets": received, "transmitted_packets": sent,
                "dropped_packets": {"no_route": dropped}, "socket_dropped_packets": 0,
            })
        };
        let dropped = 5 + 2 * seconds;
        let interfaces = [
            interface(1, "eth0", total, 0, dropped),
            interface(2, "eth1", 0, 2 * total, 0),
        ];
        let drop = json!({
            "interface": "eth0", "reason": "no_route", "source": "10.0.0.9",
            "group": "225.9.9.9", "last_minute": 9, "packets": dropped, "missed_at_most": 0,
            "bytes": 900, "age_ms": 1, "idle_ms": 1, "ttl": 16, "size": 128, "port": 5000,
            "meaning": "No route or proxy matches it.", "remedy": "Add a route.",
        });
        let group = json!({
            "interface": "eth0", "role": "host", "group": "225.1.2.1", "mode": "exclude",
            "sources": [], "expires_ms": null, "version": null, "reporters": [],
            "last_reporter": null, "error": null,
        });
        Reading {
            at: Duration::from_secs(seconds),
            interfaces: serde_json::from_value(interfaces.to_vec().into()).expect("interfaces"),
            flows: serde_json::from_value(flows.collect::<Vec<_>>().into()).expect("flows"),
            search: String::new(),
            drops: serde_json::from_value(json!([drop])).expect("drops"),
            groups: serde_json::from_value(json!([group])).expect("groups"),
            streams: Vec::new(),
        }
    }
}
