//! Starts the process that replaces this one.
//!
//! A program inherits the capabilities of the thread that starts it, and this process drops most of
//! them ([`capabilities::drop_unneeded`]). So a thread of its own, started before that, keeps those
//! that forwarding needs for the programs that it starts. It starts no other program.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::unistd::Uid;
use tokio::sync::oneshot;
use tracing::debug;

use super::capabilities;
use super::message_socket::MessageSocket;

/// The environment variable of a process that replaces another one. Its value is the process ID of
/// that one.
const PREDECESSOR: &str = "MCASTOR_PREDECESSOR";

/// Variables of the service manager that concern the former process alone. The watchdog is not
/// among them: without `WATCHDOG_PID` it applies to the new process.
const NOT_INHERITED: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// A started process, and the connection to it.
pub type LaunchedProcess = (Child, MessageSocket);

struct LaunchJob {
    program: PathBuf,
    answer: oneshot::Sender<io::Result<LaunchedProcess>>,
}

/// Starts programs with the arguments and the environment of this process.
pub struct UpgradeLauncher {
    jobs: Sender<LaunchJob>,
    /// The path of the running program.
    own_program: PathBuf,
}

impl UpgradeLauncher {
    /// Starts the thread. Call this before capabilities are dropped.
    ///
    /// # Errors
    /// The thread cannot be started, or the path of this program is unknown.
    pub fn start() -> io::Result<Self> {
        // The kernel marks the path when the file has been replaced, so it is read at the start.
        let own_program = std::env::current_exe()?;
        let (jobs, receiver) = channel();
        let thread = std::thread::Builder::new().name("mcastor-upgrade".into());
        thread.spawn(move || launch_all(&receiver))?;
        Ok(Self { jobs, own_program })
    }

    /// Starts a program; without a path, the file from which this process was started, as it is
    /// now.
    ///
    /// # Errors
    /// The program cannot be started. This process is not root, and another user than root owns the
    /// file or may write to it: that user would get capabilities.
    pub fn launch(
        &self,
        program: Option<PathBuf>,
    ) -> impl Future<Output = io::Result<LaunchedProcess>> + use<> {
        let program = program.unwrap_or_else(|| self.own_program.clone());
        let (answer, launched) = oneshot::channel();
        let sent = self.jobs.send(LaunchJob { program, answer });
        async move {
            sent.map_err(io::Error::other)?;
            launched.await.map_err(io::Error::other)?
        }
    }
}

/// Returns the connection to the process that this one replaces, if there is one.
pub fn predecessor() -> Option<io::Result<MessageSocket>> {
    std::env::var_os(PREDECESSOR)?;
    Some(MessageSocket::from_stdin())
}

/// Processes 1 of containers that end with their first child.
const CONTAINER_INITS: [&str; 5] = [
    "docker-init",
    "podman-init",
    "tini",
    "catatonit",
    "dumb-init",
];

/// Returns whether a container ends with this process: it is process 1, or the child of a process 1
/// that ends with it.
pub fn ends_container() -> bool {
    let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    std::process::id() == 1
        || (std::os::unix::process::parent_id() == 1 && CONTAINER_INITS.contains(&init.trim()))
}

fn launch_all(jobs: &Receiver<LaunchJob>) {
    if let Err(e) = capabilities::keep_for_programs() {
        debug!("a new process may lack capabilities: {e}");
    }
    while let Ok(LaunchJob { program, answer }) = jobs.recv() {
        let launched = launch(&program).map_err(|e| {
            let message = format!("cannot start {}: {e}", program.display());
            io::Error::new(e.kind(), message)
        });
        if let Err(Ok((mut child, _))) = answer.send(launched) {
            let _ = child.kill();
        }
    }
}

fn launch(program: &Path) -> io::Result<LaunchedProcess> {
    check_owner(program)?;
    let mut arguments = std::env::args_os();
    let called = arguments
        .next()
        .unwrap_or_else(|| OsString::from("mcastor"));
    let mut command = Command::new(program);
    command
        .arg0(called)
        .args(arguments)
        .env(PREDECESSOR, std::process::id().to_string());
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    MessageSocket::start(&mut command)
}

/// Refuses a program of another user, unless this process is root.
fn check_owner(program: &Path) -> io::Result<()> {
    let file = fs::metadata(program)?;
    let is_writable_by_others = file.mode() & 0o022 != 0;
    if !Uid::effective().is_root() && (file.uid() != 0 || is_writable_by_others) {
        let reason = "the file must belong to root, and only root may be able to write to it, \
                      because the new process inherits capabilities";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(())
}
