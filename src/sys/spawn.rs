//! A child of this very program inside a network namespace, with a listening socket handed over.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::netns::NetNs;

/// The first descriptor of the socket activation protocol (sd_listen_fds(3)).
const LISTEN_FD: RawFd = 3;

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(io::Error::other)
}

/// Starts `/proc/self/exe` with `args` inside `netns`. `http` becomes its descriptor 3, announced
/// as `http` by the socket activation protocol; `log` its standard error. It is in a process group
/// of its own, so that Ctrl-C reaches the parent alone, and dies with the calling thread, by
/// SIGKILL.
pub fn spawn_self(
    args: &[&OsStr],
    netns: &NetNs,
    http: &TcpListener,
    log: File,
) -> io::Result<Child> {
    // Descriptor 3 must be taken while `Command` opens its own, or one of those would be it and
    // be overwritten.
    // SAFETY: asks for a new descriptor of an open one.
    let placeholder = unsafe { libc::fcntl(http.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LISTEN_FD) };
    if placeholder < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let _placeholder = unsafe { OwnedFd::from_raw_fd(placeholder) };

    let program = c_string("/proc/self/exe")?;
    let mut argv = vec![c_string("mcastor")?];
    for arg in args {
        argv.push(c_string(arg)?);
    }
    let mut envp = vec![c_string("LISTEN_FDS=1")?, c_string("LISTEN_FDNAMES=http")?];
    for (name, value) in std::env::vars_os() {
        if !name.as_bytes().starts_with(b"LISTEN_") {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            envp.push(CString::new(entry).map_err(io::Error::other)?);
        }
    }
    // Only the child knows its number; it writes it here, where no allocation is needed.
    let mut listen_pid = *b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0";
    let (netns, http) = (netns.as_fd().as_raw_fd(), http.as_raw_fd());
    // SAFETY: plain getter.
    let parent = unsafe { libc::getpid() };

    let mut command = Command::new("/proc/self/exe");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0);
    // The lists of pointers are made before the fork, for the same reason.
    let mut pointers = Pointers::new(&argv, &envp);
    let setup = move || {
        let pointers = &mut pointers;
        // SAFETY: between fork and exec only calls that are async-signal-safe: no allocation, no
        // lock. The strings behind the pointers are owned by the frame that spawns, whose memory
        // the child has a copy of.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::setns(netns, libc::CLONE_NEWNET) != 0
            {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before it was asked for a signal.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            // A descriptor that is 3 already would keep its close-on-exec flag through `dup2`.
            let kept = if http == LISTEN_FD {
                libc::fcntl(LISTEN_FD, libc::F_SETFD, 0)
            } else {
                libc::dup2(http, LISTEN_FD)
            };
            if kept < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut digits = &mut listen_pid[b"LISTEN_PID=".len()..22];
            write!(digits, "{}", libc::getpid())?;
            pointers.envp[0] = listen_pid.as_ptr().cast();
            libc::execve(
                program.as_ptr(),
                pointers.argv.as_ptr(),
                pointers.envp.as_ptr(),
            );
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: see the block inside.
    unsafe { command.pre_exec(setup) };
    let child = command.spawn();
    drop((argv, envp));
    child
}

/// Asks `child` to end (SIGTERM).
pub fn terminate(child: &Child) {
    // SAFETY: sends a signal. The child is not reaped yet, so the number is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

/// Lists of strings as `execve` takes them; the first of `envp` is left to be filled in.
struct Pointers {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

// SAFETY: used by the forked child alone, which has one thread.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

impl Pointers {
    fn new(argv: &[CString], envp: &[CString]) -> Self {
        let end = std::ptr::null();
        let of = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let mut pointers = Self {
            argv: of(argv),
            envp: [vec![end], of(envp)].concat(),
        };
        pointers.argv.push(end);
        pointers.envp.push(end);
        pointers
    }
}
