//! Both of a kind: this program as smcrouted and Debian's, in namespaces of the same shape.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use super::{BINARY, Capture, Injector, Lab, Ns, PATIENCE, Program, Seen, Star, Udp, wait_until};

/// Whose program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This one.
    Ours,
    /// Debian's.
    Theirs,
}

/// Both.
pub const BOTH: [Whose; 2] = [Whose::Ours, Whose::Theirs];

/// The route of the packet by which [`pass`] ends.
pub const EVERYBODY: &str = "mroute from in group 225.255.0.1 to out1 out2 out3\n";

/// A running daemon.
pub struct Daemon {
    /// Whose it is.
    pub whose: Whose,
    /// The process.
    pub program: Program,
    /// Its socket.
    pub socket: PathBuf,
    /// Its file.
    pub conf: PathBuf,
    /// Its pid file.
    pub pid: PathBuf,
    ns: Ns,
}

impl Daemon {
    /// Starts `smcrouted -n` and waits until it routes.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns, whose: Whose, conf: &str, flags: &[&str]) -> Self {
        let (socket, file) = (lab.file("sock"), lab.file("conf"));
        let (pid, ready) = (lab.file("pid"), lab.file("ready"));
        std::fs::write(&file, conf).expect("writing");
        let heard = UnixDatagram::bind(&ready).expect("a socket");
        // The daemon may be somebody else by then.
        let open = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o777));
        open(&ready)
            .and_then(|()| open(ready.parent().expect("a folder")))
            .expect("chmod");
        heard.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut command = match whose {
            Whose::Ours => ns.command(BINARY),
            Whose::Theirs => ns.command("/usr/sbin/smcrouted"),
        };
        if whose == Whose::Ours {
            command.arg("smcrouted").env("NOTIFY_SOCKET", &ready);
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
            whose,
            program,
            socket,
            conf: file,
            pid,
            ns: ns.clone(),
        };
        match whose {
            Whose::Ours => {
                let mut said = [0; 256];
                let n = loop {
                    match heard.recv(&mut said) {
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => panic!("not ready: {e}; {}", daemon.program.stderr()),
                        Ok(n) => break n,
                    }
                };
                assert_eq!(&said[..n.min(7)], b"READY=1");
            }
            Whose::Theirs => {
                let ready = wait_until(PATIENCE, || daemon.pid.exists());
                assert!(ready, "{}", daemon.program.stderr());
            }
        }
        daemon
    }

    /// Asks it by Debian's client.
    pub fn theirs(&self, words: &[&str]) -> Output {
        self.ask(Whose::Theirs, words)
    }

    /// Asks it by one of the clients.
    pub fn ask(&self, client: Whose, words: &[&str]) -> Output {
        ask(&self.ns, client, &self.socket, words, "")
    }
}

/// Asks a daemon by one of the clients; options stand first among `words`.
pub fn ask(ns: &Ns, client: Whose, socket: &Path, words: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut command = match client {
        Whose::Ours => ns.command(BINARY),
        Whose::Theirs => ns.command("/usr/sbin/smcroutectl"),
    };
    if client == Whose::Ours {
        command.arg("smcroutectl");
    }
    command.arg("-u").arg(socket).args(words);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starting the client");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("writing");
    drop(stdin);
    child.wait_with_output().expect("the client's end")
}

/// What a program wrote to standard output.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `smcrouted` to its end.
pub fn smcrouted(ns: &Ns, whose: Whose, args: &[&str]) -> Output {
    match whose {
        Whose::Ours => ns.output(BINARY, &[&["smcrouted"], args].concat()),
        Whose::Theirs => ns.output("/usr/sbin/smcrouted", args),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.program.ended().is_none() {
            self.program.stop(libc::SIGTERM, Duration::from_secs(5));
        }
    }
}

/// What arrived of the test's own packets: where, TTL, and all bytes but TTL and checksum.
pub type Arrived = BTreeSet<(usize, u8, Vec<u8>)>;

/// A router for each of both, with so many egresses.
pub fn two(lab: &Lab, egresses: usize) -> [(Whose, Star); 2] {
    let tag = lab.file("").display().to_string();
    let tag = tag.rsplit('/').next().unwrap_or_default().to_string();
    BOTH.map(|whose| {
        (
            whose,
            Star::one_of(lab, egresses, &format!("{tag}{whose:?}")),
        )
    })
}

/// Sends packets and then one that reaches everybody; tells what arrived before that.
pub fn pass(star: &Star, egresses: usize, packets: &[Udp]) -> Arrived {
    let captures: Vec<Capture> = (1..=egresses)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    for packet in packets {
        inject.send(&packet.frame());
        // The kernel queues few packets of a flow it has no route for yet.
        std::thread::yield_now();
    }
    let last = Udp::new("10.0.0.10:9", "225.255.0.1:5000", "the last");
    inject.send(&last.frame());
    let mut arrived = Arrived::new();
    for (n, capture) in captures.iter().enumerate() {
        let mut seen = Vec::new();
        let there = wait_until(PATIENCE, || {
            let frames = capture.frames();
            seen.extend(
                frames
                    .iter()
                    .filter(|f| !f.outgoing)
                    .filter_map(|f| Seen::read(&f.bytes)),
            );
            seen.iter().any(|s| s.dst.to_string() == "225.255.0.1")
        });
        assert!(there, "the last packet did not reach eth{}", n + 1);
        let own = seen
            .iter()
            .filter(|s| s.dst.is_multicast() && s.protocol == 17);
        for s in own.filter(|s| s.payload().starts_with(b"packet") || s.payload() == b"the last") {
            arrived.insert((n + 1, s.ttl, s.untouchable()));
        }
    }
    arrived
}
