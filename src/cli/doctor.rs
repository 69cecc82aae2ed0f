//! `mcastor doctor`: finds out why multicast does not arrive.

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;

use serde_json::json;

use super::change::SocketArgs;
use super::exit::fail;
use super::output::{paragraph, print_line};
use crate::api::{DropQuery, ShowQuery, ShowReply};
use crate::doctor::probe::{self, ProbeEnd, ProbeReport, probe_group};
use crate::doctor::{Certainty, Facts, Finding, RouterFacts, examine, host};
use crate::frontend::control::client::ClientError;
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{Group, IfName};

/// Exit code if something was found.
const FOUND: u8 = 3;

/// Arguments of `mcastor doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It reads the interfaces, routes and firewall of this network namespace, and asks the running mcastor
if there is one. It changes nothing, and sends nothing without --probe. Run it where the receiver
runs, where mcastor runs and where the sender runs: each sees other causes. docs/troubleshooting.md
explains each finding.

Examples:
  Why does multicast not arrive here?
    mcastor doctor

  Why does this group not arrive on eth0?
    mcastor doctor --interface eth0 --group 239.1.2.3

  Do packets of one container arrive in another?
    mcastor doctor --probe container:camera container:viewer

  In the network namespace of a container:
    nsenter --net --target \"$(docker inspect -f '{{.State.Pid}}' NAME)\" mcastor doctor

Exit codes: 0 nothing found, 1 failure, 2 invalid arguments, 3 something was found.")]
pub struct DoctorArgs {
    /// Examine only this interface
    #[arg(long, value_name = "NAME")]
    interface: Option<IfName>,
    /// Examine only this group
    #[arg(long, value_name = "ADDRESS")]
    group: Option<Group>,
    /// Send a test stream from one interface to another, in --group or a random one. An end is eth0,
    /// container:NAME, container:NAME/eth0, netns:NAME/eth0 or pid:NUMBER/eth0
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    probe: Option<Vec<ProbeEnd>>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Examines the host and the running mcastor, and prints what was found.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let host = runtime.and_then(|runtime| runtime.block_on(host::read()));
    let mut host = match host {
        Ok(host) => host,
        Err(e) => return fail(&format!("cannot read the interfaces: {e}")),
    };
    let router = match router(args) {
        Ok(router) => Some(router),
        Err(e) => {
            host.not_examined.push(format!("the running mcastor: {e}"));
            None
        }
    };
    let facts = Facts {
        host,
        router,
        interface: args.interface.as_ref().map(ToString::to_string),
        group: args.group.map(|group| group.addr()),
    };
    let probed = match args.probe.as_deref() {
        Some([from, to]) => match probed(args, from, to) {
            Ok(report) => Some(report),
            Err(e) => return fail(&e),
        },
        _ => None,
    };
    let mut findings: Vec<Finding> = probed.iter().filter_map(probe::finding).collect();
    findings.extend(examine(&facts));
    let not_examined = &facts.host.not_examined;
    let (text, style) = match args.json {
        true => (
            json!({ "findings": findings, "not_examined": not_examined, "probe": probed })
                .to_string(),
            EscapeStyle::Json,
        ),
        false => (
            probed.as_ref().map(probe_text).unwrap_or_default() + &text(&facts, &findings),
            EscapeStyle::Lines,
        ),
    };
    print_line(&escape(&text, style));
    match findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => FOUND.into(),
    }
}

fn probed(
    args: &DoctorArgs,
    from: &ProbeEnd,
    to: &ProbeEnd,
) -> Result<ProbeReport, Box<dyn Error>> {
    let random = RandomState::new().build_hasher().finish();
    let group = args.group.or_else(|| probe_group(random));
    let group = group.ok_or("no group for the probe")?;
    Ok(probe::run(from, to, group)?)
}

fn probe_text(probe: &ProbeReport) -> String {
    let ProbeReport {
        from, to, group, ..
    } = probe;
    let mut text = format!(
        "Probe: {} of {} packets to {group} from {from} arrived at {to}",
        probe.received, probe.sent
    );
    if let Some(ttl) = probe.ttl_received {
        text += &format!(", with TTL {} -> {ttl}", probe.ttl_sent);
    }
    if let Some(source) = probe.source {
        text += &format!(", from {source}");
    }
    text += ".";
    if probe.received > 0 && probe.before_first > 0 {
        text += &format!(
            " The first {} were sent before the join was in force.",
            probe.before_first
        );
    }
    if probe.duplicates > 0 {
        text += &format!(" {} arrived more than once.", probe.duplicates);
    }
    paragraph(&text, 0) + "\n"
}

/// Asks the running mcastor.
fn router(args: &DoctorArgs) -> Result<RouterFacts, ClientError> {
    let mut facts = RouterFacts::default();
    for query in [
        ShowQuery::Interfaces,
        ShowQuery::Routes,
        ShowQuery::Groups,
        ShowQuery::Pending,
        ShowQuery::Discovery,
        ShowQuery::Drops(DropQuery::default()),
    ] {
        match client::send(&args.socket.socket, Command::Show(query))? {
            ShowReply::Interfaces(interfaces) => facts.interfaces = interfaces,
            ShowReply::Routes(routes) => facts.routes = routes,
            ShowReply::Groups(groups) => facts.groups = groups,
            ShowReply::Pending(pending) => facts.pending = pending,
            ShowReply::Drops(drops) => facts.drops = drops,
            ShowReply::Discovery(discovery) => facts.discovery = discovery,
            ShowReply::Flows(_)
            | ShowReply::Mnat(_)
            | ShowReply::Streams(_)
            | ShowReply::Tunnels(_)
            | ShowReply::Explain(_)
            | ShowReply::Trace(_)
            | ShowReply::Upgraded(_)
            | ShowReply::Done(_) => {}
        }
    }
    Ok(facts)
}

fn text(facts: &Facts, findings: &[Finding]) -> String {
    let mut text = String::new();
    for (number, finding) in findings.iter().enumerate() {
        let certainty = match finding.certainty {
            Certainty::Certain => "certain",
            Certainty::Likely => "likely",
            Certainty::Possible => "possible",
        };
        text += &format!("{}. {} ({certainty})\n", number + 1, finding.problem);
        text += &paragraph(finding.meaning, 3);
        text += &paragraph(&format!("Seen: {}", finding.evidence), 3);
        text += &paragraph(&format!("To do: {}", finding.remedy), 3);
        text += "\n";
    }
    if findings.is_empty() {
        text += "Nothing was found.\n\n";
    }
    let interfaces = facts.host.interfaces.len();
    let router = match facts.router {
        Some(_) => ", and the running mcastor",
        None => "",
    };
    text += &paragraph(
        &format!("Examined: {interfaces} interfaces of this network namespace{router}."),
        0,
    );
    for part in &facts.host.not_examined {
        let end = if part.ends_with('?') { "" } else { "." };
        text += &paragraph(&format!("Not examined: {part}{end}"), 0);
    }
    if !findings.is_empty() {
        text += "See docs/troubleshooting.md.";
    }
    text.truncate(text.trim_end().len());
    text
}
