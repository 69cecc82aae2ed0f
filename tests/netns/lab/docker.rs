//! A Docker Engine or Podman for one test. It runs in a namespace of the test and keeps its data in
//! a temporary folder. It needs no registry: its only image is empty, and the binary under test and
//! its shared libraries are mounted as volumes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::ns::{Lab, Ns};
use super::program::Program;
use super::router::BINARY;
use super::wait_until;

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The prefix of an engine's folder, followed by the process id of the test run and a number.
const FOLDER: &str = "/tmp/mcd-";
/// Longest wait for the start or the exit of an engine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The empty image.
const IMAGE: &str = "empty";

/// The program of an engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docker,
    /// Without limits on control groups and with the storage driver `vfs`, so that it runs on any
    /// machine. Its containers survive it.
    Podman,
}

/// A Docker Engine or Podman. Dropping it stops the engine and removes its containers.
pub struct Docker {
    kind: Kind,
    ns: Ns,
    folder: PathBuf,
    engine: Option<Program>,
    volumes: Vec<String>,
    failure_log: PathBuf,
    live_restore: bool,
}

impl Docker {
    /// Starts a Docker Engine and waits until it responds.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns) -> Self {
        Self::start_kind(lab, ns, Kind::Docker)
    }

    /// Starts the service of Podman and waits until it responds. Commands are those of `podman`.
    #[track_caller]
    pub fn start_podman(lab: &Lab, ns: &Ns) -> Self {
        Self::start_kind(lab, ns, Kind::Podman)
    }

    #[track_caller]
    fn start_kind(lab: &Lab, ns: &Ns, kind: Kind) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("{FOLDER}{}-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the engine");
        let failure_log = lab.file("containers");
        lab.log("containers", &failure_log);
        let mut docker = Self {
            kind,
            failure_log,
            ns: ns.clone(),
            folder,
            engine: None,
            volumes: volumes(),
            live_restore: false,
        };
        docker.start_engine(lab);
        docker.import_empty();
        docker
    }

    /// Starts the engine. Can be called again after [`Self::stop_engine`].
    #[track_caller]
    pub fn start_engine(&mut self, lab: &Lab) {
        let command = match self.kind {
            Kind::Docker => self.dockerd(),
            Kind::Podman => self.podman_service(),
        };
        self.engine = Some(Program::start(lab, command));
        let up = wait_until(TIMEOUT, || self.try_run("version").status.success());
        assert!(up, "the engine does not respond");
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn dockerd(&self) -> Command {
        let path = |name: &str| self.path(name);
        // A killed engine leaves its pid file behind.
        let _ = std::fs::remove_file(self.folder.join("pid"));
        let mut command = self.ns.command("dockerd");
        command
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--host", &self.host()])
            .args(["--shutdown-timeout", "1", "--log-level", "warn"])
            .env("PATH", path_with_sbin());
        if self.live_restore {
            command.arg("--live-restore");
        }
        command
    }

    /// Returns the command of the service. All its folders outside of its own one are in a mount
    /// namespace that ends with the last process in it.
    fn podman_service(&self) -> Command {
        let path = |name: &str| self.path(name);
        let config = path("containers.conf");
        let text = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             tmp_dir = {:?}\nstatic_dir = {:?}\nvolume_path = {:?}\n\
             [network]\nnetwork_config_dir = {:?}\n",
            path("tmp"),
            path("static"),
            path("volumes"),
            path("networks")
        );
        std::fs::write(&config, text).expect("the configuration of podman");
        let _ = std::fs::remove_file(self.socket());
        let script = "mkdir -p /var/lib/cni /run/netns; mount -t tmpfs tmpfs /var/lib/cni; \
                      mount -t tmpfs tmpfs /run/netns; exec podman \"$@\"";
        let mut command = self.ns.command("unshare");
        command
            .args(["--mount", "sh", "-c", script, "podman"])
            .args(["--root", &path("data"), "--runroot", &path("run")])
            .args(["--storage-driver", "vfs", "--log-level", "warn"])
            .args(["system", "service", "--time", "0", &self.host()])
            .env("CONTAINERS_CONF", config)
            .env("PATH", path_with_sbin());
        command
    }

    /// Lets containers survive the engine, from its next start on.
    pub fn live_restore(&mut self) {
        self.live_restore = true;
    }

    /// Stops the engine, and its containers too unless `live_restore` is set.
    #[track_caller]
    pub fn stop_engine(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            // The service of Podman waits for its connections to end, and that for events does not.
            if self.kind == Kind::Podman {
                engine.stop(libc::SIGKILL, TIMEOUT);
                return;
            }
            let status = engine.stop(libc::SIGTERM, TIMEOUT);
            assert!(status.success(), "the engine: {status}");
        }
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> String {
        self.folder.join("sock").display().to_string()
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket())
    }

    /// Returns the settings that name the socket.
    pub fn settings(&self) -> String {
        format!("[docker]\nsocket = \"{}\"\n", self.socket())
    }

    /// Runs `docker <words>` or `podman <words>`, which must succeed, and returns its trimmed
    /// standard output.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        let out = self.try_run(words);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{words}: {stderr}");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// As [`Self::run`], but the command may fail.
    pub fn try_run(&self, words: &str) -> Output {
        self.command()
            .args(words.split_whitespace())
            .output()
            .unwrap_or_else(|e| panic!("{words}: {e}"))
    }

    /// Returns a `docker` or `podman` command without arguments.
    pub fn command(&self) -> Command {
        let mut command = match self.kind {
            Kind::Docker => {
                let mut docker = Command::new("docker");
                docker
                    .env("DOCKER_HOST", self.host())
                    .env("DOCKER_CONFIG", &self.folder);
                docker
            }
            Kind::Podman => {
                let mut podman = Command::new("podman");
                podman.args(["--url", &self.host()]);
                podman
            }
        };
        command.env("PATH", path_with_sbin()).stdin(Stdio::null());
        command
    }

    /// Starts `mcastor <words>` in a container, with the given options of `docker run`.
    #[track_caller]
    pub fn run_mcastor(&self, name: &str, options: &str, words: &str) {
        let volumes = self.volumes.join(" ");
        self.run(&format!(
            "run --detach --name {name} {volumes} {options} {IMAGE} /mcastor {words}"
        ));
    }

    /// Starts `mcastor run` with these settings in a container with the network of the host. As in
    /// conf/compose, it has the capability NET_RAW and the socket of the engine.
    #[track_caller]
    pub fn run_router(&self, lab: &Lab, name: &str, settings: &str) {
        let file = lab.file("container.toml");
        std::fs::write(&file, self.settings() + settings).expect("settings");
        lab.log("settings", &file);
        let socket = self.socket();
        let options = format!(
            "--network host --user 0 --cap-drop ALL --cap-add NET_RAW --read-only \
             --security-opt no-new-privileges:true --volume /run/mcastor \
             --volume {socket}:{socket}:ro --volume {}:/mcastor.toml:ro",
            file.display()
        );
        self.run_mcastor(name, &options, "run --config /mcastor.toml");
    }

    /// Starts an idle container, for programs that enter its namespace.
    #[track_caller]
    pub fn run_idle(&self, name: &str, options: &str) {
        // No packets are sent to this group, so the receiver waits until it is stopped.
        let words = "recv --interface lo --group 239.255.255.250 --port 9";
        self.run_mcastor(name, options, words);
    }

    /// Returns the network namespace of a running container. Its address may not be set yet.
    #[track_caller]
    pub fn namespace_of(&self, lab: &Lab, name: &str) -> Ns {
        let pid = self.run(&format!("inspect --format {{{{.State.Pid}}}} {name}"));
        let pid: u32 = pid.parse().expect("a process id");
        assert_ne!(pid, 0, "{name} is not running:\n{}", self.logs(name));
        lab.attach(name, pid)
    }

    /// Returns the output of a container.
    pub fn logs(&self, name: &str) -> String {
        let out = self.try_run(&format!("logs {name}"));
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        let _ = write!(text, "{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    /// Waits until the output of a container contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, name: &str, text: &str) {
        let mut logs = String::new();
        let has_text = wait_until(super::TIMEOUT, || {
            logs = self.logs(name);
            logs.contains(text)
        });
        assert!(has_text, "{name} does not log {text:?}: {logs}");
    }

    /// Waits until a container exits and returns its exit code.
    #[track_caller]
    pub fn wait(&self, name: &str) -> i32 {
        let state = "inspect --format {{.State.Status}}:{{.State.ExitCode}}";
        let mut code = None;
        let ended = wait_until(2 * super::TIMEOUT, || {
            let now = self.run(&format!("{state} {name}"));
            let ended = now.strip_prefix("exited:").and_then(|c| c.parse().ok());
            code = ended;
            ended.is_some()
        });
        assert!(ended, "{name} is still running: {}", self.logs(name));
        code.expect("a code")
    }

    /// Returns the report of `mcastor recv --json` after its container has exited.
    #[track_caller]
    pub fn report(&self, name: &str) -> serde_json::Value {
        self.wait(name);
        let out = self.run(&format!("logs {name}"));
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{name}: {e}: {out}"))
    }

    /// Returns the bridge interface of a network.
    #[track_caller]
    pub fn bridge(&self, network: &str) -> String {
        if self.kind == Kind::Podman {
            let format = "{{.NetworkInterface}}";
            return self.run(&format!("network inspect --format {format} {network}"));
        }
        let id = self.run(&format!("network inspect --format {{{{.Id}}}} {network}"));
        format!("br-{}", &id[..12])
    }

    fn import_empty(&self) {
        let mut child = self
            .command()
            .args(["import", "-", IMAGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("import of the image");
        // A tar archive without files is 1024 zero bytes.
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, &[0; 1024]).expect("import of the image");
        drop(stdin);
        let out = child.wait_with_output().expect("import of the image");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "import: {stderr}");
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let names = self.try_run("ps --all --format {{.Names}}");
            let names = String::from_utf8_lossy(&names.stdout).into_owned();
            let logs = names
                .lines()
                .map(|n| format!("{n}:\n{}\n", self.logs(n)))
                .collect::<String>();
            let _ = std::fs::write(&self.failure_log, logs);
        }
        // Killing the containers is faster than a graceful stop by the engine.
        let all = self.try_run("ps --all --quiet");
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        if !all.trim().is_empty() {
            self.try_run(&format!("rm --force {all}"));
        }
        if let Some(mut engine) = self.engine.take() {
            let signal = match self.kind {
                Kind::Docker => libc::SIGTERM,
                Kind::Podman => libc::SIGKILL,
            };
            engine.stop(signal, TIMEOUT);
        }
        clear(&self.folder);
    }
}

/// Returns `docker run` options that mount the binary and its shared libraries.
fn volumes() -> Vec<String> {
    let mut all = vec![format!("--volume {BINARY}:/mcastor:ro")];
    let out = Command::new("ldd").arg(BINARY).output();
    let out = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    // Lines are `libc.so.6 => /lib/…/libc.so.6 (0x…)`; the loader's line has no arrow.
    for line in out.unwrap_or_default().lines() {
        if let Some(file) = line.split_whitespace().find(|w| w.starts_with('/')) {
            all.push(format!("--volume {file}:{file}:ro"));
        }
    }
    all
}

fn path_with_sbin() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}

/// Removes the folders of engines whose test run no longer exists.
pub fn sweep() {
    let Ok(dir) = std::fs::read_dir("/tmp") else {
        return;
    };
    for path in dir.flatten().map(|entry| entry.path()) {
        let Some(rest) = path.to_str().and_then(|p| p.strip_prefix(FOLDER)) else {
            continue;
        };
        let pid = rest.split('-').next().unwrap_or_default();
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !comm.starts_with("netns") {
            clear(&path);
        }
    }
}

/// Kills the processes of an engine's folder, unmounts its mounts and removes it.
fn clear(folder: &Path) {
    for pid in processes_of(folder) {
        // A shim runs as long as its container does.
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|c| c.parse().ok());
        for pid in children.chain([pid]) {
            // SAFETY: only sends a signal, to a process found under the folder of a test.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    wait_until(Duration::from_secs(5), || processes_of(folder).is_empty());
    let inside = format!("{}/", folder.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|l| l.split(' ').nth(1));
    let mut mounts: Vec<&str> = mounts.filter(|m| m.starts_with(&inside)).collect();
    // The innermost mount first.
    mounts.sort_by_key(|m| std::cmp::Reverse(m.len()));
    for mount in mounts {
        let _ = Command::new("umount").args(["--lazy", mount]).output();
    }
    if let Err(e) = std::fs::remove_dir_all(folder) {
        eprintln!("{}: {e}", folder.display());
    }
}

/// Returns the processes with a path below the folder among their arguments.
fn processes_of(folder: &Path) -> Vec<i32> {
    let inside = format!("{}/", folder.display());
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&inside)
    })
    .collect()
}
