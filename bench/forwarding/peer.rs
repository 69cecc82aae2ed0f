//! The routers that are compared, each started anew for every run.

use std::fmt::Write as _;
use std::fs::{self, File};
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
use crate::sender::{self, Kind, NICE, ROUTER_CORE, Stream};

/// A router, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// No router: what the sender costs by itself.
    Alone,
    /// The kernel's ip_mroute, filled by smcrouted.
    Kernel,
    /// `mcastor run` with its defaults.
    Mcastor,
    /// `mcastor run` with `plane.qdisc_bypass = true`.
    McastorBypass,
    /// `mcastor run` with `plane.busy_poll = 0`.
    McastorSleeping,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "sender alone",
            Self::Kernel => "ip_mroute",
            Self::Mcastor => "mcastor",
            Self::McastorBypass => "mcastor, qdisc_bypass",
            Self::McastorSleeping => "mcastor, busy_poll = 0",
        }
    }
}

/// What the routers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// One (S,G) rule for each of so many flows.
    Pairs(usize),
    /// The same, with another source, group and port for each.
    Rewritten(usize),
    /// Ten (*,G) rules with groups of /16. The kernel knows no prefixes: it gets one (S,G) for
    /// each flow that is alive, as smcrouted would install them packet by packet.
    Prefixes,
    /// So many (*,G) rules with groups of /28.
    ManyPrefixes(usize),
}

/// A router that runs. Dropped, it ends.
pub struct Running {
    child: Option<Child>,
    _dir: TempDir,
}

impl Running {
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What mcastor says of its interfaces: where packets were lost.
    pub fn interfaces(&self) -> Outcome<String> {
        let mut show = Command::new(env!("CARGO_BIN_EXE_mcastor"));
        show.args(["show", "interfaces", "--socket"]);
        let output = show.arg(self._dir.path().join("control.sock")).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Running {
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

/// The groups that `rule` of many /28 takes; the first ten hold the flows.
fn narrow(rule: usize) -> String {
    let [_, a, b, c] = ((rule as u32) << 4).to_be_bytes();
    // Flow i of a raw stream is in 225.(i % 10).0.(i / 10).
    match rule {
        0..10 => format!("225.{rule}.0.0/28"),
        _ => format!("{}.{a}.{b}.{c}/28", 226),
    }
}

fn mcastor_settings(dir: &Path, egresses: usize, rules: Rules, kind: Kind, peer: Peer) -> String {
    let bypass = peer == Peer::McastorBypass;
    let sleeping = match peer {
        Peer::McastorSleeping => "plane.busy_poll = 0\n",
        _ => "",
    };
    let to: Vec<_> = (0..egresses)
        .map(|i| format!("\"{}\"", lab::out(i)))
        .collect();
    let to = to.join(", ");
    let socket = dir.join("control.sock");
    let mut text = format!(
        "http.listen = \"off\"\ncontrol.socket = \"{}\"\nplane.qdisc_bypass = {bypass}\n{sleeping}\
         limits.flows = 200000\nlog.level = \"warn\"\n",
        socket.display()
    );
    let mut route = |source: Option<String>, group: String, more: &str| {
        let source = source.map_or(String::new(), |s| format!("source = \"{s}\"\n"));
        // The kernel's routes join nothing either.
        let _ = write!(
            text,
            "[[route]]\nfrom = \"{}\"\n{source}group = \"{group}\"\nto = [{to}]\njoin = false\n{more}",
            lab::IN
        );
    };
    match rules {
        Rules::Pairs(n) | Rules::Rewritten(n) => (0..n).for_each(|i| {
            let (source, group) = kind.flow(i);
            let [_, _, a, b] = (i as u32).to_be_bytes();
            let (to, port) = (format!("77.{a}.{b}"), 5001);
            let more = match rules {
                Rules::Rewritten(_) => format!(
                    "rewrite = {{ source = \"10.{to}\", group = \"239.{to}\", port = {port} }}\n"
                ),
                _ => String::new(),
            };
            route(Some(source.to_string()), group.to_string(), &more);
        }),
        Rules::Prefixes => (0..10).for_each(|i| route(None, format!("225.{i}.0.0/16"), "")),
        Rules::ManyPrefixes(n) => (0..n).for_each(|i| route(None, narrow(i), "")),
    }
    text
}

fn smcroute_settings(egresses: usize, pairs: usize, kind: Kind) -> String {
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

/// Starts `peer` and returns at once.
pub fn start(lab: &Lab, peer: Peer, rules: Rules, kind: Kind, flows: usize) -> Outcome<Running> {
    start_with(lab, peer, rules, kind, flows, &[])
}

/// The same, with variables in its environment.
pub fn start_with(
    lab: &Lab,
    peer: Peer,
    rules: Rules,
    kind: Kind,
    flows: usize,
    environment: &[(&str, &str)],
) -> Outcome<Running> {
    let dir = tempfile::Builder::new().prefix("mcastor-bench").tempdir()?;
    let egresses = lab.receivers.len();
    let file = |name: &str| dir.path().join(name).into_os_string();
    let mut command = Command::new("nice");
    command.args(["-n", NICE, "taskset", "-c", &ROUTER_CORE.to_string()]);
    command.envs(environment.iter().copied());
    match peer {
        Peer::Alone => {
            return Ok(Running {
                child: None,
                _dir: dir,
            });
        }
        Peer::Kernel => {
            let pairs = match rules {
                Rules::Rewritten(n) => n,
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
        Peer::Mcastor | Peer::McastorBypass | Peer::McastorSleeping => {
            let text = mcastor_settings(dir.path(), egresses, rules, kind, peer);
            fs::write(file("mcastor.toml"), text)?;
            command.arg(env!("CARGO_BIN_EXE_mcastor"));
            command.arg("run").arg("--config").arg(file("mcastor.toml"));
        }
    }
    let log = File::create(file("log"))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = lab.router.run(|| command.spawn())??;
    Ok(Running {
        child: Some(child),
        _dir: dir,
    })
}

/// Run time within 50 ms, in nanoseconds, below which a router is at rest.
const IDLE_NS: u64 = 2_000_000;

/// Sends a packet of a few flows now and then until they come through and the router is at rest,
/// so that all rules are in force, and then one of each flow, so that none is new.
pub fn wait_ready(lab: &Lab, running: &mut Running, stream: Stream) -> Outcome<()> {
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
            let log = fs::read_to_string(running._dir.path().join("log")).unwrap_or_default();
            return Err(format!("the router ended ({status}): {}", log.trim()).into());
        }
        let now = lab.arrived()?;
        if now.iter().zip(&before).all(|(n, b)| n > b) {
            break;
        }
        if Instant::now() > deadline {
            return Err("the router forwards nothing".into());
        }
        let few = Stream {
            flows: stream.flows.min(10),
            rate: Some(stream.flows.min(10) as f64 * 50.0),
            ..probe
        };
        sender::run(lab, few, &never)?;
    }
    // It may still be filling its tables: smcrouted forwards long before all is in them.
    let pid = child.id();
    let mut busy = u64::MAX;
    while busy > IDLE_NS {
        if Instant::now() > deadline {
            return Err("the router does not come to rest".into());
        }
        let before = meter::process_ns(pid);
        std::thread::sleep(Duration::from_millis(50));
        busy = meter::process_ns(pid).saturating_sub(before);
    }
    if stream.flows > 10 {
        // Slow enough for nobody to lose one; again where rules were still on their way.
        let each = Stream {
            rate: Some(100_000.0),
            seconds: stream.flows as f64 / 100_000.0,
            ..stream
        };
        for _ in 0..20 {
            let before = lab.arrived()?;
            sender::run(lab, each, &never)?;
            let after = lab.settled()?;
            let arrived = after[0].saturating_sub(before[0]);
            if arrived >= stream.flows as u64 {
                return Ok(());
            }
        }
        return Err("the router does not forward every flow".into());
    }
    lab.settled()?;
    Ok(())
}
