//! The router under test, and the kernel's own multicast routing for tests of the harness itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::control::Control;
use super::http::{self, Answer};
use super::metrics::Metrics;
use super::ns::{BPFFS_VARIABLE, Lab, Ns};
use super::program::Program;
use super::{TIMEOUT, eventually, wait_until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_mcastor");

/// The environment variable with the path of another binary to test.
const OTHER_BINARY: &str = "MCASTOR_BINARY";

/// Returns the binary to test.
pub fn binary() -> String {
    std::env::var(OTHER_BINARY).unwrap_or_else(|_| BINARY.to_owned())
}

/// Returns the environment of a router whose settings say nothing of the plane. `make test-packet`
/// selects the packet plane for all such routers.
pub fn plane_variable() -> Option<(&'static str, String)> {
    let kind = std::env::var("MCASTOR_TEST_PLANE").ok()?;
    Some(("MCASTOR__PLANE__KIND", kind))
}

/// Returns whether the goals themselves are checked instead of their order of magnitude. Otherwise
/// other tests run in parallel, and the build is not optimised.
pub fn measures() -> bool {
    std::env::var_os(OTHER_BINARY).is_some()
}

/// `mcastor run` in a namespace. Dropping it stops the process.
pub struct Router {
    ns: Ns,
    /// The process.
    pub program: Program,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its settings file.
    pub config: PathBuf,
    http: SocketAddr,
    failure_log: PathBuf,
}

impl Drop for Router {
    /// Saves the non-zero metrics of a failing test for its report.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(answer) = self.get("/metrics")
        {
            let non_zero =
                |l: &&str| !l.starts_with('#') && !l.ends_with(" 0") && !l.contains("_bucket");
            let lines: Vec<&str> = answer.body.lines().filter(non_zero).collect();
            let _ = std::fs::write(&self.failure_log, lines.join("\n"));
        }
    }
}

/// Returns the command of a router with these files.
fn command(
    ns: &Ns,
    config: &Path,
    socket: &Path,
    toml: &str,
    env: &[(&str, &str)],
) -> std::process::Command {
    let mut command = ns.command(&binary());
    command
        .args(["run", "--config"])
        .arg(config)
        .arg("--pid-file")
        .arg(socket.with_extension("pid"))
        .envs(plane_variable().filter(|_| !toml.contains("[plane]")))
        .envs(env.iter().copied());
    if toml.contains("bpffs = ") {
        command.env_remove(BPFFS_VARIABLE);
    }
    command
}

impl Router {
    /// Starts the router with the settings `toml` and waits until it is ready. The addresses of the
    /// HTTP server and the control socket are added to the settings.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns, toml: &str) -> Self {
        Self::start_with(lab, ns, toml, &[])
    }

    /// As [`Self::start`], with environment variables.
    #[track_caller]
    pub fn start_with(lab: &Lab, ns: &Ns, toml: &str, env: &[(&str, &str)]) -> Self {
        let mut router = Self::launch(lab, ns, toml, env);
        router.wait_until_ready();
        router
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let mut last = String::new();
        let ready = wait_until(TIMEOUT, || {
            if let Some(status) = self.program.exit_status() {
                last = format!("the process exited: {status}");
                return true;
            }
            match self.get("/readyz") {
                Ok(answer) if answer.status == 200 => {
                    last.clear();
                    true
                }
                Ok(answer) => {
                    last = format!("/readyz: {} {}", answer.status, answer.body);
                    false
                }
                Err(e) => {
                    last = format!("/readyz: {e}");
                    false
                }
            }
        });
        assert!(ready && last.is_empty(), "mcastor run is not ready: {last}");
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.program.stop(libc::SIGKILL, TIMEOUT);
    }

    /// Starts the process again after its end, with the same files, without waiting.
    pub fn launch_again(&mut self, lab: &Lab) {
        let no_environment: [(&str, &str); 0] = [];
        let toml = std::fs::read_to_string(&self.config).expect("settings");
        let command = command(&self.ns, &self.config, &self.socket, &toml, &no_environment);
        self.program = Program::start(lab, command);
    }

    /// Starts the process again after its end, with the same files, and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self, lab: &Lab) {
        self.launch_again(lab);
        self.wait_until_ready();
    }

    /// Returns whether `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// Starts the router without waiting.
    pub fn launch(lab: &Lab, ns: &Ns, toml: &str, env: &[(&str, &str)]) -> Self {
        let socket = lab.file("mcastor.sock");
        let config = lab.file("mcastor.toml");
        write_settings(&config, &socket, toml);
        lab.log("settings", &config);
        let program = Program::start(lab, command(ns, &config, &socket, toml, env));
        let http = env.iter().find(|(k, _)| *k == "MCASTOR__HTTP__LISTEN");
        let http = http.map_or("127.0.0.1:9464", |(_, address)| *address);
        // The router refuses an invalid one.
        let http = http.parse().unwrap_or(([127, 0, 0, 1], 9464).into());
        let failure_log = lab.file("metrics");
        lab.log("metrics", &failure_log);
        Self {
            failure_log,
            ns: ns.clone(),
            program,
            socket,
            config,
            http,
        }
    }

    /// The path of its control socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// The path of its pid file.
    pub fn pid_file(&self) -> PathBuf {
        self.socket.with_extension("pid")
    }

    /// Replaces its settings file atomically, as an editor does. The router reads it on reload.
    pub fn write_settings(&self, toml: &str) {
        write_settings(&self.config, &self.socket, toml);
    }

    /// Opens a connection to its control socket.
    #[track_caller]
    pub fn control(&self) -> Control {
        Control::new(&self.socket).unwrap_or_else(|e| panic!("{}: {e}", self.socket.display()))
    }

    /// Runs `mcastor <words> --socket …`, which must succeed, and returns its standard output.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        let out = self.try_run(words);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "mcastor {words}: {stderr}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// As [`Self::run`], but the command may fail.
    pub fn try_run(&self, words: &str) -> Output {
        let socket = self.socket.display().to_string();
        let mut args: Vec<&str> = words.split_whitespace().collect();
        args.extend(["--socket", &socket]);
        self.cli(&args)
    }

    /// Sends a GET request to its HTTP server.
    pub fn get(&self, path: &str) -> std::io::Result<Answer> {
        http::get(&self.ns, self.http, path)
    }

    /// Scrapes its metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let answer = self
            .get("/metrics")
            .unwrap_or_else(|e| panic!("/metrics: {e}"));
        assert_eq!(answer.status, 200, "/metrics: {}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// Returns the sum of the series with these labels, or zero if there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until the packet counter of `route` towards `oif` is exactly `expected`.
    #[track_caller]
    pub fn expect_routed(&self, route: &str, oif: &str, expected: u64) {
        let labels = [("route", route), ("oif", oif)];
        self.expect_metric("mcastor_route_packets_total", &labels, expected);
    }

    /// Waits until the drop counter for `reason` on `iface` is exactly `expected`.
    #[track_caller]
    pub fn expect_dropped(&self, reason: &str, iface: &str, expected: u64) {
        let labels = [("reason", reason), ("iface", iface)];
        self.expect_metric("mcastor_dropped_packets_total", &labels, expected);
    }

    /// Waits until a metric is exactly `expected`; panics with all non-zero metrics otherwise.
    #[track_caller]
    pub fn expect_metric(&self, name: &str, labels: &[(&str, &str)], expected: u64) {
        let mut all = String::new();
        let mut value = 0.0;
        let ok = wait_until(TIMEOUT, || {
            let metrics = self.metrics();
            all = metrics.show("mcastor_");
            value = metrics.sum(name, labels);
            value == expected as f64
        });
        assert!(
            ok,
            "{name}{labels:?} is {value}, expected {expected}; non-zero metrics:\n{all}"
        );
    }

    /// Runs another `mcastor` command in the same namespace.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.ns.output(BINARY, args)
    }

    /// Stops it with SIGTERM; it must exit with code 0.
    #[track_caller]
    pub fn stop(mut self) {
        let status = self.program.stop(libc::SIGTERM, TIMEOUT);
        assert_eq!(status.code(), Some(0), "after SIGTERM: {status}");
    }
}

fn write_settings(config: &Path, socket: &Path, toml: &str) {
    // A test of HTTP brings its own table.
    let http = match toml.contains("[http]") {
        true => "",
        false => "[http]\nlisten = \"127.0.0.1:9464\"\n",
    };
    let text = format!("{http}[control]\nsocket = \"{}\"\n{toml}", socket.display());
    // The rename is atomic: a reader finds either the old or the new file.
    let new = config.with_extension("new");
    std::fs::write(&new, text).expect("writing settings");
    std::fs::rename(&new, config).expect("writing settings");
}

/// Kernel multicast routing, configured by Debian's smcrouted.
pub struct KernelRouter {
    _program: Program,
}

impl KernelRouter {
    /// Starts smcrouted with the lines of `smcroute.conf` and waits for its first route.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns, conf: &str) -> Self {
        let path = lab.file("smcroute.conf");
        std::fs::write(&path, conf).expect("writing settings");
        let ctl = lab.file("smcroute.sock");
        let (path, ctl) = (path.display().to_string(), ctl.display().to_string());
        let program = ns.spawn(
            lab,
            "/usr/sbin/smcrouted",
            &["-n", "-N", "-f", &path, "-u", &ctl],
        );
        eventually("smcrouted has routes", true, || {
            let out = ns.output("/usr/sbin/smcroutectl", &["-u", &ctl, "show", "routes"]);
            out.status.success() && String::from_utf8_lossy(&out.stdout).contains("out1")
        });
        Self { _program: program }
    }
}
