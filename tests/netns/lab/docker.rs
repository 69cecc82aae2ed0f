//! A Docker Engine of a test's own: inside one of its namespaces, its data in a temporary
//! folder. No registry is asked: the one image is empty, and the binary under test comes in as
//! a volume, with the libraries it was linked with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::ns::{Lab, Ns};
use super::program::Program;
use super::router::BINARY;
use super::{eventually, wait_until};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// How an engine's folder begins; the process id of the test run and a number follow.
const FOLDER: &str = "/tmp/mcd-";
/// How long an engine may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The empty image.
const IMAGE: &str = "empty";

/// A Docker Engine. Dropping it ends it and all its containers.
pub struct Docker {
    ns: Ns,
    folder: PathBuf,
    engine: Option<Program>,
    volumes: Vec<String>,
    last_words: PathBuf,
    live_restore: bool,
}

impl Docker {
    /// Starts one and waits until it answers.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("{FOLDER}{}-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the engine");
        let last_words = lab.file("containers");
        lab.log("containers", &last_words);
        let mut docker = Self {
            last_words,
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

    /// Starts the engine, again after [`Self::stop_engine`].
    #[track_caller]
    pub fn start_engine(&mut self, lab: &Lab) {
        let path = |name: &str| self.folder.join(name).display().to_string();
        // A killed engine leaves it behind.
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
        self.engine = Some(Program::start(lab, command));
        let up = wait_until(PATIENCE, || self.try_run("version").status.success());
        assert!(up, "the engine does not answer");
    }

    /// Has containers outlive the engine, from its next start on.
    pub fn live_restore(&mut self) {
        self.live_restore = true;
    }

    /// Ends the engine, and with it its containers, unless they outlive it.
    #[track_caller]
    pub fn stop_engine(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            let status = engine.stop(libc::SIGTERM, PATIENCE);
            assert!(status.success(), "the engine: {status}");
        }
    }

    /// The path of its socket.
    pub fn socket(&self) -> String {
        self.folder.join("sock").display().to_string()
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket())
    }

    /// The lines of settings that name its socket.
    pub fn settings(&self) -> String {
        format!("[docker]\nsocket = \"{}\"\n", self.socket())
    }

    /// `docker <words>`, which must work; what it said.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        let out = self.try_run(words);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "docker {words}: {said}");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// As [`Self::run`], however it ends.
    pub fn try_run(&self, words: &str) -> Output {
        self.command()
            .args(words.split_whitespace())
            .output()
            .unwrap_or_else(|e| panic!("docker: {e}"))
    }

    /// The client, without arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", &self.folder)
            .env("PATH", path_with_sbin())
            .stdin(Stdio::null());
        command
    }

    /// Starts `mcastor <words>` in a container, with these options of `docker run`.
    #[track_caller]
    pub fn mcastor(&self, name: &str, options: &str, words: &str) {
        let volumes = self.volumes.join(" ");
        self.run(&format!(
            "run --detach --name {name} {volumes} {options} {IMAGE} /mcastor {words}"
        ));
    }

    /// Starts a container that does nothing, for programs that enter its namespace.
    #[track_caller]
    pub fn idle(&self, name: &str, options: &str) {
        // Nobody sends there; it waits until it is ended.
        let words = "recv --interface lo --group 239.255.255.250 --port 9";
        self.mcastor(name, options, words);
    }

    /// The network namespace of a running container. Its address may still be missing.
    #[track_caller]
    pub fn inside(&self, lab: &Lab, name: &str) -> Ns {
        let pid = self.run(&format!("inspect --format {{{{.State.Pid}}}} {name}"));
        let pid: u32 = pid.parse().expect("a process id");
        assert_ne!(pid, 0, "{name} does not run:\n{}", self.logs(name));
        lab.attach(name, pid)
    }

    /// What a container wrote.
    pub fn logs(&self, name: &str) -> String {
        let out = self.try_run(&format!("logs {name}"));
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        let _ = write!(text, "{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    /// Waits until a container wrote this.
    #[track_caller]
    pub fn says(&self, name: &str, text: &str) {
        eventually(&format!("{name} says {text:?}"), String::new(), || {
            let logs = self.logs(name);
            match logs.contains(text) {
                true => String::new(),
                false => logs,
            }
        });
    }

    /// Waits for the end of a container; its exit code.
    #[track_caller]
    pub fn wait(&self, name: &str) -> i32 {
        let state = "inspect --format {{.State.Status}}:{{.State.ExitCode}}";
        let mut code = None;
        let ended = wait_until(2 * super::PATIENCE, || {
            let now = self.run(&format!("{state} {name}"));
            let ended = now.strip_prefix("exited:").and_then(|c| c.parse().ok());
            code = ended;
            ended.is_some()
        });
        assert!(ended, "{name} does not end: {}", self.logs(name));
        code.expect("a code")
    }

    /// The report of `mcastor recv --json`, once it has ended.
    #[track_caller]
    pub fn report(&self, name: &str) -> serde_json::Value {
        self.wait(name);
        let out = self.run(&format!("logs {name}"));
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{name}: {e}: {out}"))
    }

    /// The bridge of a network.
    #[track_caller]
    pub fn bridge(&self, network: &str) -> String {
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
            .expect("docker import");
        // An archive without files is 1024 zeros.
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, &[0; 1024]).expect("docker import");
        drop(stdin);
        let out = child.wait_with_output().expect("docker import");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "docker import: {said}");
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let names = self.try_run("ps --all --format {{.Names}}");
            let names = String::from_utf8_lossy(&names.stdout).into_owned();
            let words = names
                .lines()
                .map(|n| format!("{n}:\n{}\n", self.logs(n)))
                .collect::<String>();
            let _ = std::fs::write(&self.last_words, words);
        }
        // Quicker than to have the engine ask them.
        let all = self.try_run("ps --all --quiet");
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        if !all.trim().is_empty() {
            self.try_run(&format!("rm --force {all}"));
        }
        if let Some(mut engine) = self.engine.take() {
            engine.stop(libc::SIGTERM, PATIENCE);
        }
        clear(&self.folder);
    }
}

/// The binary and what it is linked with, as options of `docker run`.
fn volumes() -> Vec<String> {
    let mut all = vec![format!("--volume {BINARY}:/mcastor:ro")];
    let out = Command::new("ldd").arg(BINARY).output();
    let out = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader without an arrow.
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

/// Removes what engines of test runs left that no longer live.
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

/// Ends what still runs out of a folder, unmounts what is mounted there, and removes it.
fn clear(folder: &Path) {
    for pid in processes_of(folder) {
        // A shim lives as its container does.
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
    // The innermost first.
    mounts.sort_by_key(|m| std::cmp::Reverse(m.len()));
    for mount in mounts {
        let _ = Command::new("umount").args(["--lazy", mount]).output();
    }
    if let Err(e) = std::fs::remove_dir_all(folder) {
        eprintln!("{}: {e}", folder.display());
    }
}

/// Processes started with a path below the folder among their arguments.
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
