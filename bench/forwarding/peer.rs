//! The compared routers. The bench starts a new router for every run.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mcastor::sys::spawn::terminate;
use serde::Serialize;
use tempfile::TempDir;

use crate::Outcome;
use crate::lab::{self, Lab};
use crate::meter;
use crate::sender::{self, NICE, ROUTER_CORE, SenderKind, Stream};
use crate::show_flows;

/// A compared router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// No router: measures the cost of the sender.
    Alone,
    /// The kernel's ip_mroute, configured by smcrouted.
    Kernel,
    /// `mcastor run` with its defaults.
    Mcastor,
    /// `mcastor run` with `plane.kind = "ebpf"`.
    McastorEbpf,
    /// The same, and `plane = "peer"` for each egress.
    McastorRedirect,
    /// `mcastor run` with `plane.qdisc_bypass = true`.
    McastorBypass,
    /// `mcastor run` with `plane.busy_poll = 0`.
    McastorNoBusyPoll,
}

impl Peer {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "sender alone",
            Self::Kernel => "ip_mroute",
            Self::Mcastor => "mcastor",
            Self::McastorEbpf => "mcastor, ebpf",
            Self::McastorRedirect => "mcastor, ebpf to the peer",
            Self::McastorBypass => "mcastor, qdisc_bypass",
            Self::McastorNoBusyPoll => "mcastor, busy_poll = 0",
        }
    }

    /// Whether the kernel forwards with the BPF programs.
    pub fn uses_ebpf(self) -> bool {
        matches!(self, Self::McastorEbpf | Self::McastorRedirect)
    }
}

/// The routes that the routers are configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// This number of (S,G) rules, one per flow.
    Pairs(usize),
    /// This number of (S,G) rules that translate source, group and port.
    #[serde(rename = "rewritten")]
    Translated(usize),
    /// Ten (*,G) rules with groups of /16. The kernel has no prefix routes: it gets one (S,G) route
    /// per active flow, as smcrouted would install them for the first packet of each flow.
    Prefixes,
    /// This number of (*,G) rules with groups of /28.
    ManyPrefixes(usize),
}

/// The UDP port of translated flows.
const TRANSLATED_PORT: u16 = 5001;

impl Rules {
    /// Returns the group as which flow 0 leaves, and its UDP port if that changes.
    pub fn outgoing(self, kind: SenderKind) -> (Ipv4Addr, Option<u16>) {
        match self {
            Self::Translated(_) => (Ipv4Addr::new(239, 77, 0, 0), Some(TRANSLATED_PORT)),
            _ => (kind.flow(0).1, None),
        }
    }
}

/// A running router. Dropping it stops the router.
pub struct RunningRouter {
    child: Option<Child>,
    dir: TempDir,
}

impl RunningRouter {
    /// The process ID; `None` for [`Peer::Alone`].
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns the path of the control socket of mcastor.
    pub fn control_socket(&self) -> std::path::PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Returns the number of flows that the kernel forwards.
    fn offloaded_flows(&self) -> Outcome<usize> {
        const FORWARDED: &[u8] = b"\"plane\":\"ebpf\"";
        let mut stream = UnixStream::connect(self.control_socket())?;
        let mut reply = Vec::new();
        show_flows::request(&mut stream, &mut reply)?;
        let windows = reply.windows(FORWARDED.len());
        Ok(windows.filter(|w| *w == FORWARDED).count())
    }

    /// Returns the output of `mcastor show interfaces`, which shows where packets were dropped.
    pub fn interfaces(&self) -> Outcome<String> {
        let mut show = Command::new(env!("CARGO_BIN_EXE_mcastor"));
        show.args(["show", "interfaces", "--socket"]);
        let output = show.arg(self.dir.path().join("control.sock")).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for RunningRouter {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        terminate(child);
        let deadline = Instant::now() + Duration::from_secs(3);
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns the /28 group prefix of a rule of [`Rules::ManyPrefixes`]. The first ten contain the
/// flows.
fn prefix_28(rule: usize) -> String {
    let [_, a, b, c] = ((rule as u32) << 4).to_be_bytes();
    // Flow i of a raw stream has group 225.(i % 10).0.(i / 10).
    match rule {
        0..10 => format!("225.{rule}.0.0/28"),
        _ => format!("{}.{a}.{b}.{c}/28", 226),
    }
}

fn mcastor_settings(
    dir: &Path,
    egresses: usize,
    rules: Rules,
    kind: SenderKind,
    peer: Peer,
) -> String {
    let bypass = peer == Peer::McastorBypass;
    let kind_of_plane = if peer.uses_ebpf() { "ebpf" } else { "packet" };
    let busy_poll = match peer {
        Peer::McastorNoBusyPoll => "plane.busy_poll = 0\n",
        _ => "",
    };
    let to: Vec<_> = (0..egresses)
        .map(|i| format!("\"{}\"", lab::out(i)))
        .collect();
    let to = to.join(", ");
    let socket = dir.join("control.sock");
    let mut text = format!(
        "http.listen = \"off\"\ncontrol.socket = \"{}\"\nplane.qdisc_bypass = {bypass}\n\
         plane.kind = \"{kind_of_plane}\"\n{busy_poll}\
         limits.flows = 200000\nlog.level = \"warn\"\n",
        socket.display()
    );
    if peer == Peer::McastorRedirect {
        for i in 0..egresses {
            let name = lab::out(i);
            let _ = writeln!(text, "[[interface]]\nname = \"{name}\"\nplane = \"peer\"");
        }
    }
    let mut route = |source: Option<String>, group: String, more: &str| {
        let source = source.map_or(String::new(), |s| format!("source = \"{s}\"\n"));
        // smcrouted does not join the groups of its routes either.
        let _ = write!(
            text,
            "[[route]]\nfrom = \"{}\"\n{source}group = \"{group}\"\nto = [{to}]\njoin = false\n{more}",
            lab::IN
        );
    };
    match rules {
        Rules::Pairs(n) | Rules::Translated(n) => (0..n).for_each(|i| {
            let (source, group) = kind.flow(i);
            let [_, _, a, b] = (i as u32).to_be_bytes();
            let (to, port) = (format!("77.{a}.{b}"), TRANSLATED_PORT);
            let more = match rules {
                Rules::Translated(_) => format!(
                    "rewrite = {{ source = \"10.{to}\", group = \"239.{to}\", port = {port} }}\n"
                ),
                _ => String::new(),
            };
            route(Some(source.to_string()), group.to_string(), &more);
        }),
        Rules::Prefixes => (0..10).for_each(|i| route(None, format!("225.{i}.0.0/16"), "")),
        Rules::ManyPrefixes(n) => (0..n).for_each(|i| route(None, prefix_28(i), "")),
    }
    text
}

fn smcroute_settings(egresses: usize, pairs: usize, kind: SenderKind) -> String {
    let to: Vec<_> = (0..egresses).map(lab::out).collect();
    let mut text = String::new();
    for name in [lab::IN.to_owned()].iter().chain(&to) {
        let _ = writeln!(text, "phyint {name} enable");
    }
    let to = to.join(" ");
    for i in 0..pairs {
        let (source, group) = kind.flow(i);
        let _ = writeln!(
            text,
            "mroute from {} source {source} group {group} to {to}",
            lab::IN
        );
    }
    text
}

/// Starts `peer` without waiting for it.
pub fn start(
    lab: &Lab,
    peer: Peer,
    rules: Rules,
    kind: SenderKind,
    flows: usize,
) -> Outcome<RunningRouter> {
    start_with(lab, peer, rules, kind, flows, &[])
}

/// Starts `peer` with additional environment variables, without waiting for it.
pub fn start_with(
    lab: &Lab,
    peer: Peer,
    rules: Rules,
    kind: SenderKind,
    flows: usize,
    environment: &[(&str, &str)],
) -> Outcome<RunningRouter> {
    let dir = tempfile::Builder::new().prefix("mcastor-bench").tempdir()?;
    let egresses = lab.receivers.len();
    let file = |name: &str| dir.path().join(name).into_os_string();
    let mut command = Command::new("nice");
    command.args(["-n", NICE, "taskset", "-c", &ROUTER_CORE.to_string()]);
    command.envs(environment.iter().copied());
    match peer {
        Peer::Alone => {
            return Ok(RunningRouter { child: None, dir });
        }
        Peer::Kernel => {
            let pairs = match rules {
                Rules::Translated(n) => n,
                Rules::Pairs(n) => n,
                Rules::Prefixes | Rules::ManyPrefixes(_) => flows,
            };
            fs::write(
                file("smcroute.conf"),
                smcroute_settings(egresses, pairs, kind),
            )?;
            command.args(["smcrouted", "-n", "-N", "-l", "err", "-i", "mcastor-bench"]);
            command.arg("-f").arg(file("smcroute.conf"));
            command.arg("-P").arg(file("smcroute.pid"));
            command.arg("-u").arg(file("smcroute.sock"));
        }
        Peer::Mcastor
        | Peer::McastorEbpf
        | Peer::McastorRedirect
        | Peer::McastorBypass
        | Peer::McastorNoBusyPoll => {
            let text = mcastor_settings(dir.path(), egresses, rules, kind, peer);
            fs::write(file("mcastor.toml"), text)?;
            command.arg(env!("CARGO_BIN_EXE_mcastor"));
            command.arg("run").arg("--config").arg(file("mcastor.toml"));
        }
    }
    spawn(lab, command, dir)
}

/// The program under test.
pub const MCASTOR: &str = env!("CARGO_BIN_EXE_mcastor");

/// Starts mcastor with the packet plane and these tables of settings, without waiting for it.
pub fn start_mcastor(lab: &Lab, tables: &str) -> Outcome<RunningRouter> {
    start_program(lab, MCASTOR, tables)
}

/// As [`start_mcastor`], with another build.
pub fn start_program(lab: &Lab, program: &str, tables: &str) -> Outcome<RunningRouter> {
    let dir = tempfile::Builder::new().prefix("mcastor-bench").tempdir()?;
    let config = dir.path().join("mcastor.toml");
    let socket = dir.path().join("control.sock");
    let text = format!(
        "http.listen = \"off\"\ncontrol.socket = \"{}\"\nplane.kind = \"packet\"\n\
         log.level = \"warn\"\n{tables}",
        socket.display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new("nice");
    command.args(["-n", NICE, "taskset", "-c", &ROUTER_CORE.to_string()]);
    command.args([program, "run", "--config"]).arg(config);
    spawn(lab, command, dir)
}

/// Starts a router whose files are in `dir`.
fn spawn(lab: &Lab, mut command: Command, dir: TempDir) -> Outcome<RunningRouter> {
    let log = File::create(dir.path().join("log"))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = lab.router.run(|| command.spawn())??;
    Ok(RunningRouter {
        child: Some(child),
        dir,
    })
}

/// A router with less run time than this in 50 ms is idle, in nanoseconds.
const IDLE_NS: u64 = 2_000_000;

/// Waits until the router forwards. Sends packets of a few flows until they arrive and the router
/// is idle, so that all rules are installed. Then sends a packet of each flow, so that no flow is
/// new.
pub fn wait_ready(lab: &Lab, running: &mut RunningRouter, stream: Stream) -> Outcome<()> {
    let Some(child) = &mut running.child else {
        return Ok(());
    };
    let never = AtomicBool::new(false);
    let before = lab.arrived()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let probe = Stream {
        rate: Some(stream.flows as f64 * 50.0),
        seconds: 0.02,
        ..stream
    };
    loop {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(running.dir.path().join("log")).unwrap_or_default();
            return Err(format!("the router exited ({status}): {}", log.trim()).into());
        }
        let now = lab.arrived()?;
        if now.iter().zip(&before).all(|(n, b)| n > b) {
            break;
        }
        if Instant::now() > deadline {
            return Err("the router does not forward".into());
        }
        let few = Stream {
            flows: stream.flows.min(10),
            rate: Some(stream.flows.min(10) as f64 * 50.0),
            ..probe
        };
        sender::run(lab, few, &never)?;
    }
    // smcrouted forwards the first flows long before it has installed all rules.
    let pid = child.id();
    let mut busy = u64::MAX;
    while busy > IDLE_NS {
        if Instant::now() > deadline {
            return Err("the router does not become idle".into());
        }
        let before = meter::process_ns(pid);
        std::thread::sleep(Duration::from_millis(50));
        busy = meter::process_ns(pid).saturating_sub(before);
    }
    if stream.flows > 10 {
        // The rate is low enough for all routers. Repeats if some rules were not installed yet.
        let each = Stream {
            rate: Some(100_000.0),
            seconds: stream.flows as f64 / 100_000.0,
            ..stream
        };
        for _ in 0..20 {
            let before = lab.arrived()?;
            sender::run(lab, each, &never)?;
            let after = lab.wait_until_quiet()?;
            let arrived = after[0].saturating_sub(before[0]);
            if arrived >= stream.flows as u64 {
                return Ok(());
            }
        }
        return Err("the router does not forward every flow".into());
    }
    lab.wait_until_quiet()?;
    Ok(())
}

/// How often the packets of all flows are sent without a flow that the kernel takes over.
const ROUNDS_WITHOUT_HAND_OVER: usize = 20;

/// Sends a packet of each flow again and again, until the kernel forwards all flows or takes over no
/// more of them. Returns the number of flows that it forwards.
pub fn wait_offloaded(lab: &Lab, running: &RunningRouter, stream: Stream) -> Outcome<usize> {
    let never = AtomicBool::new(false);
    let each = Stream {
        rate: Some((stream.flows as f64 * 50.0).min(50_000.0)),
        seconds: (stream.flows as f64 / 50_000.0).max(0.04),
        ..stream
    };
    let (mut most, mut rounds) = (0, 0);
    while most < stream.flows && rounds < ROUNDS_WITHOUT_HAND_OVER {
        sender::run(lab, each, &never)?;
        let now = running.offloaded_flows()?;
        rounds = if now > most { 0 } else { rounds + 1 };
        most = most.max(now);
    }
    lab.wait_until_quiet()?;
    Ok(most)
}
