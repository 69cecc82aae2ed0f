//! Laboratories and their network namespaces.
//!
//! A namespace is named `mcl-<pid>-<n>-<m>-<role>`. The process id distinguishes namespaces that a
//! killed test run left behind from those of a running one.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::keeper::end_keepers_in;
use super::program::Program;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The namespaces, files and logs of one test. Dropping it removes them.
pub struct Lab {
    prefix: String,
    dir: tempfile::TempDir,
    spaces: RefCell<Vec<String>>,
    logs: RefCell<Vec<(String, PathBuf)>>,
    files: Cell<u32>,
    keep: Cell<bool>,
}

/// The environment variable of `plane.bpffs`. It overrides the settings file.
pub const BPFFS_VARIABLE: &str = "MCASTOR__PLANE__BPFFS";

impl Lab {
    /// Creates a laboratory without namespaces. `test` becomes part of the name of its folder.
    pub fn new(test: &str) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix(&format!("mcl-{}-", test.replace(':', "-")))
            .tempdir()
            .expect("a temporary folder");
        Self {
            prefix: format!("mcl-{}-{n}", std::process::id()),
            dir,
            spaces: RefCell::default(),
            logs: RefCell::default(),
            files: Cell::new(0),
            keep: Cell::new(false),
        }
    }

    /// Creates a namespace with its loopback interface up. Router advertisements, duplicate address
    /// detection and the reverse path filter are off.
    pub fn ns(&self, role: &str) -> Ns {
        let before = self.spaces.borrow().len();
        let name = format!("{}-{before}-{role}", self.prefix);
        ip(&["netns", "add", &name]).unwrap_or_else(|e| panic!("{e}"));
        self.spaces.borrow_mut().push(name.clone());
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let ns = Ns {
            name,
            file: Arc::new(file),
        };
        ns.sysctl("net/ipv6/conf/all/accept_dad", "0");
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        ns.sysctl("net/ipv6/conf/default/accept_ra", "0");
        ns.sysctl("net/ipv6/conf/default/router_solicitations", "0");
        for interface in ["all", "default"] {
            ns.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
        ns.ip("link set lo up");
        ns
    }

    /// Attaches to the network namespace of a process that this laboratory did not start.
    #[track_caller]
    pub fn attach(&self, role: &str, pid: u32) -> Ns {
        let before = self.spaces.borrow().len();
        let name = format!("{}-{before}-{role}", self.prefix);
        ip(&["netns", "attach", &name, &pid.to_string()]).unwrap_or_else(|e| panic!("{e}"));
        self.spaces.borrow_mut().push(name.clone());
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Ns {
            name,
            file: Arc::new(file),
        }
    }

    /// Returns a new file name in the laboratory's temporary folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.set(self.files.get() + 1);
        self.dir.path().join(format!("{}-{name}", self.files.get()))
    }

    /// Adds the file at `path` to the report of a failing test, under `title`.
    pub fn log(&self, title: &str, path: &Path) {
        self.logs.borrow_mut().push((title.into(), path.into()));
    }

    /// Keeps the namespaces of a failed test if `MCASTOR_NETNS_KEEP` is set.
    pub fn failed(&self) {
        self.keep
            .set(std::env::var_os("MCASTOR_NETNS_KEEP").is_some());
    }

    /// Returns the output of all programs of this test, the last 6 kB of each.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (title, path) in self.logs.borrow().iter() {
            let log = std::fs::read(path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log[log.len().saturating_sub(6000)..]).into_owned();
            if !log.trim().is_empty() {
                text += &format!("--- {title}\n{}\n", log.trim_end());
            }
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep.get() {
            eprintln!("kept: {:?}", self.spaces.borrow());
            return;
        }
        for space in self.spaces.borrow().iter() {
            end_keepers_in(&Path::new("/run/netns").join(space));
        }
        let batch: String = self
            .spaces
            .borrow()
            .iter()
            .map(|s| format!("netns del {s}\n"))
            .collect();
        if let Err(e) = ip_batch(&["-force"], &batch) {
            eprintln!("removing namespaces: {e}");
        }
    }
}

/// Removes the namespaces of test runs that no longer exist.
pub fn sweep() {
    let Ok(dir) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in dir
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
    {
        let Some(pid) = name.strip_prefix("mcl-").and_then(|r| r.split('-').next()) else {
            continue;
        };
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !comm.starts_with("netns") {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// One network namespace.
#[derive(Clone)]
pub struct Ns {
    name: String,
    file: Arc<File>,
}

impl Ns {
    /// Returns the name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` in a thread inside the namespace; sockets that it returns stay inside.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter_current_thread(&self.file).expect("setns");
                f()
            });
            inside
                .join()
                .unwrap_or_else(|_| panic!("in namespace {}", self.name))
        })
    }

    /// Runs `ip -n <namespace> <words>`, which must succeed.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        self.try_ip(words)
            .unwrap_or_else(|e| panic!("ip {words}: {e}"));
    }

    /// As [`Self::ip`], but returns the error.
    pub fn try_ip(&self, words: &str) -> Result<String, String> {
        let mut args = vec!["-n", self.name.as_str()];
        args.extend(words.split_whitespace());
        ip(&args)
    }

    /// Runs several `ip` commands, one per line.
    #[track_caller]
    pub fn ip_batch(&self, lines: &str) {
        ip_batch(&["-n", &self.name], lines).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Writes a file below `/proc/sys`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.enter(|| std::fs::write(&path, value))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Disables IPv6 on interfaces created from now on, so that the kernel sends no packets of its
    /// own on them.
    pub fn disable_ipv6(&self) {
        self.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    }

    /// Waits until packets sent on a new link arrive. A link that was set up before its peer drops
    /// packets until the kernel has processed the carrier event, which happens later and in another
    /// thread. Neither `LOWER_UP` nor the name of the queueing discipline shows this; the
    /// operational state does.
    #[track_caller]
    pub fn wait_until_up(&self, iface: &str) {
        super::eventually(&format!("{iface} is up"), true, || {
            let link = self.try_ip(&format!("-o link show dev {iface}"));
            link.is_ok_and(|l| l.contains(" state UP "))
        });
    }

    /// Returns the index of an interface.
    #[track_caller]
    pub fn index(&self, iface: &str) -> u32 {
        let name = std::ffi::CString::new(iface).expect("no NUL");
        // SAFETY: `name` is NUL-terminated and outlives the call.
        let index = self.enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
        assert_ne!(index, 0, "no interface {iface} in {}", self.name);
        index
    }

    /// Returns the packets that the kernel dropped at each interface: name, received, transmitted.
    #[track_caller]
    pub fn link_drops(&self) -> Vec<(String, u64, u64)> {
        let text = self.try_ip("-s -j link show").expect("ip -s link");
        let links: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        let counted = |link: &serde_json::Value| {
            let dropped = |way: &str| link["stats64"][way]["dropped"].as_u64().unwrap_or(0);
            let name = link["ifname"].as_str().unwrap_or("?").to_owned();
            (name, dropped("rx"), dropped("tx"))
        };
        let all = links.iter().map(counted);
        all.filter(|(_, rx, tx)| rx + tx > 0).collect()
    }

    /// Returns the number of packets that an interface has sent.
    pub fn sent_packets(&self, iface: &str) -> u64 {
        let shown = self.try_ip(&format!("-s -j link show dev {iface}"));
        let json = serde_json::from_str(&shown.unwrap_or_default());
        let json: serde_json::Value = json.unwrap_or_default();
        json[0]["stats64"]["tx"]["packets"].as_u64().unwrap_or(0)
    }

    /// Returns the Ethernet address of an interface.
    #[track_caller]
    pub fn mac(&self, iface: &str) -> [u8; 6] {
        let text = self
            .try_ip(&format!("-o link show dev {iface}"))
            .expect("ip link show");
        let mac = text
            .split_whitespace()
            .skip_while(|w| *w != "link/ether")
            .nth(1)
            .expect("a MAC");
        let mut bytes = [0; 6];
        for (to, from) in bytes.iter_mut().zip(mac.split(':')) {
            *to = u8::from_str_radix(from, 16).expect("hex");
        }
        bytes
    }

    /// Returns a command that will run inside the namespace.
    pub fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let file = self.file.clone();
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        // Nothing is pinned in the BPF file system of the machine.
        command.env(BPFFS_VARIABLE, "off");
        // SAFETY: between fork and exec only setns and prctl run, both async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // Programs started here must not outlive a killed test run.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                enter_current_thread(&file)
            });
        }
        command
    }

    /// Runs a program inside and waits for its exit.
    pub fn output(&self, program: &str, args: &[&str]) -> Output {
        self.command(program)
            .args(args)
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Starts a program inside.
    pub fn spawn(&self, lab: &Lab, program: &str, args: &[&str]) -> Program {
        let mut command = self.command(program);
        command.args(args);
        Program::start(lab, command)
    }
}

fn enter_current_thread(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is open, and setns only changes the calling thread.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<String, String> {
    stdout_or_error(Command::new("ip").args(args).output())
}

/// Runs several `ip` commands, one per line, in the namespace that `-n` of `options` names, else in
/// that of the machine.
pub fn ip_batch(options: &[&str], lines: &str) -> Result<String, String> {
    let run = || {
        let mut child = Command::new("ip")
            .args(options)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(lines.as_bytes())?;
        child.wait_with_output()
    };
    stdout_or_error(run()).map_err(|e| format!("ip -batch: {e}\n{lines}"))
}

fn stdout_or_error(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
