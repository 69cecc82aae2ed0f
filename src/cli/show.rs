//! `mcastor show`: the state of the running router as tables or JSON.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::exit::{fail, usage_error};
use super::output::print_line;
use super::show_tables::text;
use crate::api::{DropQuery, FlowOrder, FlowQuery, ShowQuery, ShowReply, StreamQuery};
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{Group, IfName, Source};
use crate::settings::DEFAULT_SOCKET;

/// The environment variable of the settings key `control.socket`.
const SOCKET_VARIABLE: &str = "MCASTOR__CONTROL__SOCKET";

/// Returns the path of the control socket: from the environment, else [`DEFAULT_SOCKET`]. A path
/// that is only in the settings file of the router is not known here.
pub fn default_socket() -> PathBuf {
    let named = std::env::var_os(SOCKET_VARIABLE);
    named.map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

/// Arguments of `mcastor show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The routes and what they have forwarded:
    mcastor show routes

  The interfaces that packets arrive on, as JSON:
    mcastor show interfaces --json | jq '.[] | select(.ingress)'

  The ten flows with the most packets:
    mcastor show flows --order packets --limit 10

  What is being dropped, why, and what can be done:
    mcastor show drops

  The health of monitored streams, and where packets were lost:
    mcastor show streams

  The routes, again every second:
    mcastor show routes --watch 1")]
pub struct ShowArgs {
    /// The table to show
    pub table: ShowTable,
    #[command(flatten)]
    flows: FlowArgs,
    /// Print JSON, in the format of /api/v1 over HTTP
    #[arg(long)]
    pub json: bool,
    /// Print the table again every SECONDS (default: 2), until Ctrl-C
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    watch: Option<u16>,
    /// Control socket of the running mcastor
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    pub socket: PathBuf,
}

impl ShowArgs {
    /// Returns the query of the table, or an error if it does not accept one of the arguments.
    fn query(&self) -> Result<ShowQuery, String> {
        let query = ShowQuery::from(self.table);
        match (query, self.flows.first_given()) {
            (ShowQuery::Flows(_), _) => Ok(ShowQuery::Flows(self.flows.query())),
            (ShowQuery::Drops(_), _) => self.flows.drop_query(),
            (ShowQuery::Streams(_), _) => self.flows.stream_query(),
            (query, Some(flag)) => Err(format!(
                "`show {}` does not accept {flag}; it is an argument of `show flows`",
                query.name()
            )),
            (query, None) => Ok(query),
        }
    }
}

/// The arguments of `mcastor show flows`, `mcastor show drops` and `mcastor show streams`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of `show flows`, `show drops` and `show streams`")]
struct FlowArgs {
    /// Show at most N flows or streams (default: all) or drops (default: 20)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only flows: sort them; --limit selects the first ones. Default: recent
    #[arg(long, value_name = "ORDER")]
    order: Option<FlowOrder>,
    /// Show only flows or streams that arrive on this interface, or drops there
    #[arg(long, value_name = "NAME")]
    iif: Option<IfName>,
    /// Show only flows, streams or drops from this source
    #[arg(long, value_name = "ADDRESS")]
    source: Option<Source>,
    /// Show only flows, streams or drops to this group
    #[arg(long, value_name = "ADDRESS")]
    group: Option<Group>,
    /// Only flows: show also flows that are dropped: no route or member takes them, or their TTL is too low
    #[arg(long)]
    dropped: bool,
}

impl FlowArgs {
    /// Returns the query with these arguments.
    fn query(&self) -> FlowQuery {
        FlowQuery {
            limit: self.limit,
            order: self.order.unwrap_or_default(),
            iif: self.iif.as_ref().map(ToString::to_string),
            source: self.source.map(|source| source.addr()),
            group: self.group.map(|group| group.addr()),
            dropped: self.dropped,
        }
    }

    /// Returns the query for drops with these arguments.
    fn drop_query(&self) -> Result<ShowQuery, String> {
        self.refuse_flow_flags("drops")?;
        Ok(ShowQuery::Drops(DropQuery {
            limit: Some(self.limit.unwrap_or(DROPS)),
            iif: self.iif.as_ref().map(ToString::to_string),
            source: self.source.map(|source| source.addr()),
            group: self.group.map(|group| group.addr()),
        }))
    }

    /// Returns the query for monitored streams with these arguments.
    fn stream_query(&self) -> Result<ShowQuery, String> {
        self.refuse_flow_flags("streams")?;
        Ok(ShowQuery::Streams(StreamQuery {
            limit: self.limit,
            iif: self.iif.as_ref().map(ToString::to_string),
            source: self.source.map(|source| source.addr()),
            group: self.group.map(|group| group.addr()),
        }))
    }

    /// Refuses the arguments that only `show flows` accepts.
    fn refuse_flow_flags(&self, table: &str) -> Result<(), String> {
        let only_flows = [
            (self.order.is_some(), "--order"),
            (self.dropped, "--dropped"),
        ];
        match only_flows.iter().find(|(given, _)| *given) {
            Some((_, flag)) => Err(format!(
                "`show {table}` does not accept {flag}; it is an argument of `show flows`"
            )),
            None => Ok(()),
        }
    }

    /// Returns the flag of the first argument that was given.
    fn first_given(&self) -> Option<&'static str> {
        [
            (self.limit.is_some(), "--limit"),
            (self.order.is_some(), "--order"),
            (self.iif.is_some(), "--iif"),
            (self.source.is_some(), "--source"),
            (self.group.is_some(), "--group"),
            (self.dropped, "--dropped"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }
}

/// Default number of rows of `show drops`.
const DROPS: usize = 20;

/// The tables of `mcastor show`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ShowTable {
    /// Routes, the interfaces that they use now, and the packets that they sent
    Routes,
    /// Interfaces, and the packets received, sent and dropped on them
    Interfaces,
    /// Flows that are being forwarded
    Flows,
    /// Groups joined as a host, and groups with members
    Groups,
    /// Routes and joins that wait for an interface
    Pending,
    /// MNAT mappings, and streams that wait for a mapping
    Mnat,
    /// Tunnels to AMT relays and gateways
    Tunnels,
    /// What devices offer between networks, who asks, and what is withheld
    Discovery,
    /// The streams with the most dropped packets, why they are dropped, and what can be done
    Drops,
    /// The health of monitored streams, and where packets were lost
    Streams,
}

impl From<ShowTable> for ShowQuery {
    fn from(table: ShowTable) -> Self {
        match table {
            ShowTable::Routes => Self::Routes,
            ShowTable::Interfaces => Self::Interfaces,
            ShowTable::Flows => Self::Flows(FlowQuery::default()),
            ShowTable::Groups => Self::Groups,
            ShowTable::Pending => Self::Pending,
            ShowTable::Mnat => Self::Mnat,
            ShowTable::Tunnels => Self::Tunnels,
            ShowTable::Discovery => Self::Discovery,
            ShowTable::Drops => Self::Drops(DropQuery::default()),
            ShowTable::Streams => Self::Streams(StreamQuery::default()),
        }
    }
}

/// Queries the running router and prints the reply.
pub fn run(args: &ShowArgs) -> ExitCode {
    let query = match args.query() {
        Ok(query) => query,
        Err(e) => return usage_error(&e),
    };
    let answer = || -> Result<String, Box<dyn Error>> {
        let reply = client::send(&args.socket, Command::Show(query.clone()))?;
        Ok(printed(&reply, args.json)?)
    };
    let first = match answer() {
        Ok(text) => text,
        Err(e) => return fail(&e),
    };
    match args.watch {
        None => print_line(&first),
        Some(seconds) => watch(first, Duration::from_secs(seconds.into()), || {
            // mcastor may be restarted in the meantime.
            answer().unwrap_or_else(|e| escape(&e.to_string(), EscapeStyle::Lines).into_owned())
        }),
    }
    ExitCode::SUCCESS
}

/// Prints a text again and again, until standard output is closed. A terminal shows only the last
/// one.
fn watch(mut text: String, interval: Duration, next: impl Fn() -> String) {
    let mut out = io::stdout();
    // Clears the screen (ECMA-48, ED and CUP).
    let (begin, end) = match out.is_terminal() {
        true => ("\x1b[H\x1b[2J", "\n"),
        false => ("", "\n\n"),
    };
    while write!(out, "{begin}{text}{end}")
        .and_then(|()| out.flush())
        .is_ok()
    {
        std::thread::sleep(interval);
        text = next();
    }
}

/// Formats a reply as a table or as JSON. Escapes control characters.
fn printed(reply: &ShowReply, as_json: bool) -> serde_json::Result<String> {
    let (text, style) = match as_json {
        true => (json(reply)?, EscapeStyle::Json),
        false => (text(reply), EscapeStyle::Lines),
    };
    Ok(escape(&text, style).into_owned())
}

fn json(reply: &ShowReply) -> serde_json::Result<String> {
    match reply {
        ShowReply::Routes(routes) => serde_json::to_string_pretty(routes),
        ShowReply::Interfaces(interfaces) => serde_json::to_string_pretty(interfaces),
        ShowReply::Flows(flows) => serde_json::to_string_pretty(flows),
        ShowReply::Groups(groups) => serde_json::to_string_pretty(groups),
        ShowReply::Pending(pending) => serde_json::to_string_pretty(pending),
        ShowReply::Mnat(ends) => serde_json::to_string_pretty(ends),
        ShowReply::Tunnels(tunnels) => serde_json::to_string_pretty(tunnels),
        ShowReply::Discovery(discovery) => serde_json::to_string_pretty(discovery),
        ShowReply::Drops(drops) => serde_json::to_string_pretty(drops),
        ShowReply::Streams(streams) => serde_json::to_string_pretty(streams),
        ShowReply::Upgraded(view) => serde_json::to_string_pretty(view),
        ShowReply::Done(done) => serde_json::to_string_pretty(done),
        ShowReply::Explain(view) => serde_json::to_string_pretty(view),
        ShowReply::Trace(view) => serde_json::to_string_pretty(view),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::api::MnatView;

    fn query(words: &str) -> Result<ShowQuery, String> {
        let command = ShowArgs::augment_args(clap::Command::new("show"));
        let words = std::iter::once("show").chain(words.split(' '));
        let matches = command.try_get_matches_from(words);
        let args = matches.and_then(|matches| ShowArgs::from_arg_matches(&matches));
        args.map_err(|e| e.to_string())?.query()
    }

    /// An MNAT server chooses parts of its error text, a container engine those of a hint.
    #[test]
    fn text_and_json_of_other_programs_are_escaped() {
        let hostile = "a\u{1b}[2J\u{202e}b";
        let reply = ShowReply::Mnat(vec![MnatView {
            role: "egress".into(),
            server: "10.0.0.1:443".into(),
            up: true,
            error: Some(hostile.into()),
            upstream: "eth0".into(),
            downstream: "eth1".into(),
            mappings: Vec::new(),
        }]);
        let text = printed(&reply, false).unwrap();
        assert!(text.contains("a\\u{1b}[2J\\u{202e}b"), "{text}");
        let json = printed(&reply, true).unwrap();
        assert!(json.is_ascii() && json.contains("\\u202e"), "{json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json[0]["error"], hostile);
    }

    #[test]
    fn flow_arguments_become_a_flow_query() {
        assert_eq!(query("flows"), Ok(ShowQuery::Flows(FlowQuery::default())));
        assert_eq!(
            query(
                "flows --limit 10 --order bytes --iif eth0 --source 10.0.0.1 --group 225.1.2.3 --dropped --json"
            ),
            Ok(ShowQuery::Flows(FlowQuery {
                limit: Some(10),
                order: FlowOrder::Bytes,
                iif: Some("eth0".into()),
                source: Some([10, 0, 0, 1].into()),
                group: Some([225, 1, 2, 3].into()),
                dropped: true,
            }))
        );
        for (word, order) in [
            ("recent", FlowOrder::Recent),
            ("packets", FlowOrder::Packets),
            ("address", FlowOrder::Address),
        ] {
            let expected = FlowQuery {
                order,
                ..FlowQuery::default()
            };
            let flows = query(&format!("flows --order {word}"));
            assert_eq!(flows, Ok(ShowQuery::Flows(expected)));
        }
        for invalid in [
            "--order size",
            "--limit -1",
            "--source 225.1.2.3",
            "--group 10.0.0.1",
        ] {
            assert!(query(&format!("flows {invalid}")).is_err(), "{invalid}");
        }
    }

    #[test]
    fn other_tables_refuse_flow_arguments() {
        for (word, flag) in [
            ("--limit 10", "--limit"),
            ("--order recent", "--order"),
            ("--iif eth0", "--iif"),
            ("--source 10.0.0.1", "--source"),
            ("--group 225.1.2.3", "--group"),
            ("--dropped", "--dropped"),
        ] {
            let expected =
                format!("`show routes` does not accept {flag}; it is an argument of `show flows`");
            assert_eq!(query(&format!("routes {word}")), Err(expected));
        }
    }
}
