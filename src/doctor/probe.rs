//! The active probe: a short test stream from one interface to another, each in any network
//! namespace of this host.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::finding::{Cause, Certainty, Finding};
use crate::model::{Group, IfName, LinkError};
use crate::probe::StreamError;
use crate::sys::netns::NetNs;
use crate::traffic::{
    ReceiveEvent, ReceiveOptions, ReceiveReport, SendOptions, StreamOptions, receive_with, send,
};

/// Packets of a probe.
const PACKETS: u64 = 100;

/// Packets a second of a probe: it lasts two seconds.
const RATE: f64 = 50.0;

/// TTL with which the packets are sent.
const TTL: u8 = 16;

/// How long the receiver waits for packets after the last one was sent.
const GRACE: Duration = Duration::from_millis(500);

/// Longest time of the receiver.
const LIMIT: f64 = 10.0;

/// UDP port of the probe: the discard protocol (RFC 863).
const PORT: u16 = 9;

/// A network namespace of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Namespace {
    /// That of this process.
    Own,
    /// That of a process.
    Process(u32),
    /// One that `ip netns` made.
    Named(String),
    /// That of a container of Docker or Podman.
    Container(String),
}

/// One end of a probe: an interface in a network namespace. Its text form is `eth0`,
/// `container:NAME/eth0`, `container:NAME` for its eth0, `netns:NAME/eth0` or `pid:NUMBER/eth0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeEnd {
    namespace: Namespace,
    interface: IfName,
}

impl FromStr for ProbeEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let interface = |name: &str| name.parse().map_err(|e: LinkError| e.to_string());
        let Some((kind, rest)) = text.split_once(':') else {
            return Ok(Self {
                namespace: Namespace::Own,
                interface: interface(text)?,
            });
        };
        let (name, of_namespace) = match rest.split_once('/') {
            Some((name, of_namespace)) => (name, Some(of_namespace)),
            None => (rest, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(is_name) {
            return Err(format!(
                "`{name}` is not the name of a container or namespace"
            ));
        }
        let (namespace, default) = match kind {
            "container" => (Namespace::Container(name.into()), Some("eth0")),
            "netns" => (Namespace::Named(name.into()), None),
            "pid" => {
                let process = name.parse();
                let process = process.map_err(|_| format!("`{name}` is not a process id"))?;
                (Namespace::Process(process), None)
            }
            _ => {
                return Err(format!(
                    "`{kind}:` is not known; write an interface, container:NAME/IF, \
                     netns:NAME/IF or pid:NUMBER/IF"
                ));
            }
        };
        let of_namespace = of_namespace.or(default);
        let of_namespace =
            of_namespace.ok_or_else(|| format!("write {kind}:{name}/IF with an interface"))?;
        Ok(Self {
            namespace,
            interface: interface(of_namespace)?,
        })
    }
}

impl fmt::Display for ProbeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Namespace::Own => {}
            Namespace::Process(process) => write!(f, "pid:{process}/")?,
            Namespace::Named(name) => write!(f, "netns:{name}/")?,
            Namespace::Container(name) => write!(f, "container:{name}/")?,
        }
        write!(f, "{}", self.interface)
    }
}

/// Why a probe could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace of {end}: {error}{}", privilege(.error))]
    Namespace {
        /// The end of the probe.
        end: ProbeEnd,
        /// The answer of the kernel.
        error: io::Error,
    },
    /// Neither Docker nor Podman knows the container.
    #[error(
        "no running container {0}: neither `docker inspect` nor `podman inspect` found it; check that the engine runs, and the name with `docker ps` or `podman ps`"
    )]
    NoContainer(String),
    /// The stream failed at one end.
    #[error("{end}: {error}")]
    Stream {
        /// The end.
        end: ProbeEnd,
        /// The error.
        error: StreamError,
    },
    /// A thread of the probe ended without a result.
    #[error("the probe ended without a result")]
    Ended,
}

fn privilege(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::NotFound => "; `ip netns` lists the names, `ps` the processes",
        _ => "",
    }
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeReport {
    /// Where the packets were sent.
    pub from: String,
    /// Where they were expected.
    pub to: String,
    /// Their group.
    pub group: IpAddr,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub received: u64,
    /// Packets sent before the first that arrived: until then, the join was not in force.
    pub before_first: u64,
    /// Packets that did not arrive after the first one.
    pub lost: u64,
    /// Packets that arrived twice or more often.
    pub duplicates: u64,
    /// The TTL or hop limit with which they were sent.
    pub ttl_sent: u8,
    /// The lowest TTL or hop limit with which they arrived.
    pub ttl_received: Option<u8>,
    /// The source address with which they arrived.
    pub source: Option<IpAddr>,
}

/// Returns a group that is unlikely to be in use, in the organisation-local scope (RFC 2365 section
/// 6.2).
pub fn probe_group(random: u64) -> Option<Group> {
    let [low, middle, high, ..] = random.to_le_bytes();
    Group::new(Ipv4Addr::new(239, 192 | (high & 3), middle, low.max(1)).into()).ok()
}

/// Sends a stream of two seconds from one end, and receives it at the other, which joins the group
/// first.
///
/// # Errors
/// A namespace cannot be entered, or an interface cannot be used.
pub fn run(from: &ProbeEnd, to: &ProbeEnd, group: Group) -> Result<ProbeReport, ProbeError> {
    let (from_namespace, to_namespace) = (open(from)?, open(to)?);
    let stop = &AtomicBool::new(false);
    let (joined, is_joined) = mpsc::channel();
    let stream = |end: &ProbeEnd| StreamOptions {
        port: PORT,
        ..StreamOptions::new(end.interface.clone(), group)
    };
    let mut receive_options = ReceiveOptions::new(stream(to));
    receive_options.stream.seconds = Some(LIMIT);
    let mut send_options = SendOptions::new(stream(from));
    send_options.stream.count = Some(PACKETS);
    (send_options.rate, send_options.ttl) = (RATE, TTL);
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            enter(to, to_namespace.as_ref())?;
            let mut on_event = |event: ReceiveEvent<'_>| {
                if let ReceiveEvent::Joined(_) = event {
                    // The sender may have failed.
                    let _ = joined.send(());
                }
            };
            let report = receive_with(&receive_options, stop, &mut on_event);
            report.map_err(|error| stream_error(to, error))
        });
        let sender = scope.spawn(move || {
            enter(from, from_namespace.as_ref())?;
            // If the receiver fails, its error is the one to report.
            if is_joined.recv().is_err() {
                return Ok(0);
            }
            let sent = send(&send_options, stop);
            let sent = sent.map_err(|error| stream_error(from, error));
            if sent.is_ok() {
                thread::sleep(GRACE);
            }
            stop.store(true, Ordering::Relaxed);
            Ok(sent?.packets)
        });
        let sent = sender.join().map_err(|_| ProbeError::Ended);
        let received = receiver.join().map_err(|_| ProbeError::Ended)??;
        Ok(report(from, to, group, sent??, &received))
    })
}

fn stream_error(end: &ProbeEnd, error: StreamError) -> ProbeError {
    let end = end.clone();
    ProbeError::Stream { end, error }
}

fn report(
    from: &ProbeEnd,
    to: &ProbeEnd,
    group: Group,
    sent: u64,
    received: &ReceiveReport,
) -> ProbeReport {
    let streams = &received.streams;
    let before_first = streams.iter().map(|stream| stream.first_seq).min();
    let arrived: u64 = streams.iter().map(|stream| stream.received).sum();
    let before_first = before_first.unwrap_or(sent);
    ProbeReport {
        from: from.to_string(),
        to: to.to_string(),
        group: group.addr(),
        sent,
        received: arrived,
        before_first,
        lost: sent.saturating_sub(before_first + arrived),
        duplicates: received.duplicates,
        ttl_sent: TTL,
        ttl_received: streams.iter().filter_map(|stream| stream.ttl_min).min(),
        source: streams.first().map(|stream| stream.source),
    }
}

/// Opens the namespace of an end; `None` for that of this process.
fn open(end: &ProbeEnd) -> Result<Option<NetNs>, ProbeError> {
    let path = match &end.namespace {
        Namespace::Own => return Ok(None),
        Namespace::Process(process) => format!("/proc/{process}/ns/net"),
        Namespace::Named(name) => format!("/run/netns/{name}"),
        Namespace::Container(name) => {
            let process = container_process(name);
            let process = process.ok_or_else(|| ProbeError::NoContainer(name.clone()))?;
            format!("/proc/{process}/ns/net")
        }
    };
    let opened = NetNs::open(path.as_ref());
    opened
        .map(Some)
        .map_err(|error| namespace_error(end, error))
}

fn enter(end: &ProbeEnd, namespace: Option<&NetNs>) -> Result<(), ProbeError> {
    let entered = namespace.map_or(Ok(()), NetNs::enter);
    entered.map_err(|error| namespace_error(end, error))
}

fn namespace_error(end: &ProbeEnd, error: io::Error) -> ProbeError {
    let end = end.clone();
    ProbeError::Namespace { end, error }
}

/// Returns the first process of a container that runs.
fn container_process(name: &str) -> Option<u32> {
    ["docker", "podman"].iter().find_map(|engine| {
        let mut command = Command::new(engine);
        command.args(["inspect", "--format", "{{.State.Pid}}", name]);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        let output = output.ok().filter(|output| output.status.success())?;
        let process = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
        // A stopped container has none.
        (process != 0).then_some(process)
    })
}

/// Returns what a probe found, if packets did not arrive.
pub fn finding(report: &ProbeReport) -> Option<Finding> {
    let ProbeReport {
        from, to, group, ..
    } = report;
    if report.received == 0 {
        return Some(Finding::new(
            Cause::ProbeLost,
            Certainty::Certain,
            format!(
                "none of {} packets to {group} from {from} with TTL {} arrived at {to}",
                report.sent, report.ttl_sent
            ),
            format!(
                "run the probe again, and beside it `mcastor trace {group}` where mcastor runs; \
                 if a static route forwards your group, name that group with --group"
            ),
        ));
    }
    (report.lost > 0).then(|| {
        Finding::new(
            Cause::ProbeLost,
            Certainty::Certain,
            format!(
                "{} of {} packets to {group} from {from} did not arrive at {to} after the first \
                 one",
                report.lost,
                report.sent - report.before_first
            ),
            "`mcastor show drops`, then the counters of the interfaces in between: ip -s link",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_parsed_and_shown() {
        for text in [
            "eth0",
            "container:cam/eth1",
            "netns:a-b/eth0",
            "pid:17/wlan0",
        ] {
            assert_eq!(text.parse::<ProbeEnd>().unwrap().to_string(), text);
        }
        let container: ProbeEnd = "container:cam".parse().unwrap();
        assert_eq!(container.to_string(), "container:cam/eth0");
    }

    #[test]
    fn invalid_ends_are_refused() {
        for (text, error) in [
            ("netns:a", "write netns:a/IF"),
            ("pid:x/eth0", "not a process id"),
            ("vm:a/eth0", "`vm:` is not known"),
            ("netns:../x/eth0", "is not the name"),
            ("container:-x", "is not the name"),
        ] {
            let refused = text.parse::<ProbeEnd>().unwrap_err();
            assert!(refused.contains(error), "{text}: {refused}");
        }
    }

    #[test]
    fn groups_are_organisation_local() {
        for random in [0, 1, u64::MAX, 0x00ff_00ff_00ff] {
            let IpAddr::V4(group) = probe_group(random).unwrap().addr() else {
                panic!("not IPv4");
            };
            let [a, b, _, d] = group.octets();
            assert!(a == 239 && (192..196).contains(&b) && d > 0, "{group}");
        }
    }
}
