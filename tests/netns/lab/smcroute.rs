//! mcastor as smcrouted and Debian's smcroute, in identical topologies.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use super::{
    BINARY, Capture, Injector, IpPacket, Lab, Ns, Program, Star, TIMEOUT, Udp, binary, wait_until,
};

/// The implementation that a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// `mcastor smcrouted` and `mcastor smcroutectl`.
    Mcastor,
    /// Debian's smcroute package.
    Smcroute,
}

/// Both implementations.
pub const BOTH: [Implementation; 2] = [Implementation::Mcastor, Implementation::Smcroute];

/// The route of the end marker that [`send_and_collect`] sends last.
pub const ROUTE_TO_ALL: &str = "mroute from in group 225.255.0.1 to out1 out2 out3\n";

/// How long nothing arrives once all packets have.
const QUIET: Duration = Duration::from_millis(100);

/// A running daemon.
pub struct Daemon {
    /// Its implementation.
    pub implementation: Implementation,
    /// The process.
    pub program: Program,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its configuration file.
    pub conf: PathBuf,
    /// Its pid file.
    pub pid: PathBuf,
    ns: Ns,
}

impl Daemon {
    /// Starts `smcrouted -n` and waits until it forwards.
    #[track_caller]
    pub fn start(
        lab: &Lab,
        ns: &Ns,
        implementation: Implementation,
        conf: &str,
        flags: &[&str],
    ) -> Self {
        let (socket, file) = (lab.file("sock"), lab.file("conf"));
        let (pid, ready) = (lab.file("pid"), lab.file("ready"));
        std::fs::write(&file, conf).expect("writing");
        let notifications = UnixDatagram::bind(&ready).expect("a socket");
        // The daemon may have dropped root when it sends the notification.
        let open = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o777));
        open(&ready)
            .and_then(|()| open(ready.parent().expect("a folder")))
            .expect("chmod");
        notifications
            .set_read_timeout(Some(TIMEOUT))
            .expect("a timeout");
        let mut command = match implementation {
            Implementation::Mcastor => ns.command(&binary()),
            Implementation::Smcroute => ns.command("/usr/sbin/smcrouted"),
        };
        if implementation == Implementation::Mcastor {
            command.arg("smcrouted").env("NOTIFY_SOCKET", &ready);
            command.envs(super::router::plane_variable());
        }
        command
            .arg("-n")
            .arg("-f")
            .arg(&file)
            .arg("-u")
            .arg(&socket);
        command.arg("-P").arg(&pid).args(flags);
        let program = Program::start(lab, command);
        let daemon = Self {
            implementation,
            program,
            socket,
            conf: file,
            pid,
            ns: ns.clone(),
        };
        match implementation {
            Implementation::Mcastor => {
                let mut text = [0; 256];
                let n = loop {
                    match notifications.recv(&mut text) {
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => panic!("not ready: {e}; {}", daemon.program.stderr()),
                        // Of memberships that are kept.
                        Ok(n) if text[..n].starts_with(b"FDSTORE") => {}
                        Ok(n) => break n,
                    }
                };
                assert_eq!(&text[..n.min(7)], b"READY=1");
            }
            Implementation::Smcroute => {
                let ready = wait_until(TIMEOUT, || daemon.pid.exists());
                assert!(ready, "{}", daemon.program.stderr());
            }
        }
        daemon
    }

    /// Runs Debian's smcroutectl with `words` against this daemon.
    pub fn smcroutectl(&self, words: &[&str]) -> Output {
        self.run_client(Implementation::Smcroute, words)
    }

    /// Runs smcroutectl of the given implementation against this daemon.
    pub fn run_client(&self, client: Implementation, words: &[&str]) -> Output {
        run_client(&self.ns, client, &self.socket, words, "")
    }
}

/// Runs smcroutectl of the given implementation with `input` on standard input. Options come first
/// in `words`.
pub fn run_client(
    ns: &Ns,
    client: Implementation,
    socket: &Path,
    words: &[&str],
    input: &str,
) -> Output {
    use std::io::Write;
    let mut command = match client {
        Implementation::Mcastor => ns.command(&binary()),
        Implementation::Smcroute => ns.command("/usr/sbin/smcroutectl"),
    };
    if client == Implementation::Mcastor {
        command.arg("smcroutectl");
    }
    command.arg("-u").arg(socket).args(words);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starting the client");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("writing");
    drop(stdin);
    child.wait_with_output().expect("the client's output")
}

/// Returns the standard output of a program.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `smcrouted` until it exits.
pub fn smcrouted(ns: &Ns, implementation: Implementation, args: &[&str]) -> Output {
    match implementation {
        Implementation::Mcastor => ns.output(BINARY, &[&["smcrouted"], args].concat()),
        Implementation::Smcroute => ns.output("/usr/sbin/smcrouted", args),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.program.exit_status().is_none() {
            self.program.stop(libc::SIGTERM, Duration::from_secs(5));
        }
    }
}

/// The test packets that arrived: egress number, TTL, and the bytes without TTL and checksum.
pub type ArrivedPackets = BTreeSet<(usize, u8, Vec<u8>)>;

/// Returns one star per implementation, each with `egresses` egresses.
pub fn star_per_implementation(lab: &Lab, egresses: usize) -> [(Implementation, Star); 2] {
    let tag = lab.file("").display().to_string();
    let tag = tag.rsplit('/').next().unwrap_or_default().to_string();
    BOTH.map(|implementation| {
        (
            implementation,
            Star::tagged(lab, egresses, &format!("{tag}{implementation:?}")),
        )
    })
}

/// Sends `packets` and then an end marker to all egresses. Returns the packets that arrived, and the
/// marker.
pub fn send_and_collect(star: &Star, egresses: usize, packets: &[Udp]) -> ArrivedPackets {
    let captures: Vec<Capture> = (1..=egresses)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    for packet in packets {
        inject.send(&packet.frame());
        // The kernel queues only a few packets of a flow without a route.
        std::thread::yield_now();
    }
    let last = Udp::new("10.0.0.10:9", "225.255.0.1:5000", "the last");
    inject.send(&last.frame());
    let mut arrived = ArrivedPackets::new();
    for (n, capture) in captures.iter().enumerate() {
        let mut seen: Vec<IpPacket> = Vec::new();
        let mut collect = || {
            let before = seen.len();
            let frames = capture.frames();
            let incoming = frames.iter().filter(|f| !f.outgoing);
            seen = incoming.filter_map(|f| IpPacket::parse(&f.bytes)).collect();
            let is_last = |s: &IpPacket| s.dst.to_string() == "225.255.0.1";
            (seen.iter().any(is_last), seen.len() > before)
        };
        let complete = wait_until(TIMEOUT, || collect().0);
        // The last packet is of another flow, so it may overtake some.
        let mut quiet = Instant::now();
        while quiet.elapsed() < QUIET {
            if collect().1 {
                quiet = Instant::now();
            }
            std::thread::sleep(QUIET / 10);
        }
        assert!(complete, "the last packet did not reach eth{}", n + 1);
        let own = seen
            .iter()
            .filter(|s| s.dst.is_multicast() && s.protocol == 17);
        for s in own.filter(|s| s.payload().starts_with(b"packet") || s.payload() == b"the last") {
            arrived.insert((n + 1, s.ttl, s.without_ttl_and_checksum()));
        }
    }
    arrived
}
