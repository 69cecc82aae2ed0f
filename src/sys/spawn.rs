//! Starts this program again inside a network namespace and passes a listening socket to it.

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

/// Starts `/proc/self/exe` with `args` inside `netns`.
///
/// The child receives `http` as descriptor 3 with the name `http` (socket activation protocol), and
/// `log` as its standard error. It has its own process group, so Ctrl-C reaches only the parent.
/// The kernel kills the child (SIGKILL) when the calling thread ends.
pub fn spawn_self(
    args: &[&OsStr],
    netns: &NetNs,
    http: &TcpListener,
    log: File,
) -> io::Result<Child> {
    // Occupies descriptor 3 while `Command` opens its descriptors. Otherwise one of them could get
    // number 3, and `dup2` below would overwrite it.
    // SAFETY: `F_DUPFD_CLOEXEC` takes no pointer and duplicates an open descriptor.
    let placeholder = unsafe { libc::fcntl(http.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LISTEN_FD) };
    if placeholder < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel created this descriptor above, and nothing else owns it.
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
    // The child writes its process ID into this buffer, because it must not allocate.
    let mut listen_pid = *b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0";
    let (netns, http) = (netns.as_fd().as_raw_fd(), http.as_raw_fd());
    // SAFETY: `getpid` takes no arguments and cannot fail.
    let parent = unsafe { libc::getpid() };

    let mut command = Command::new("/proc/self/exe");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0);
    // The pointer arrays are created before the fork for the same reason.
    let mut pointers = ExecPointers::new(&argv, &envp);
    let setup = move || {
        let pointers = &mut pointers;
        // SAFETY: between fork and exec this makes only async-signal-safe calls, without
        // allocations and locks. The calling function owns the strings behind the pointers, and the
        // child has a copy of its memory.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::setns(netns, libc::CLONE_NEWNET) != 0
            {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before PR_SET_PDEATHSIG took effect.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            // `dup2` of descriptor 3 to itself would not clear its close-on-exec flag.
            let rc = if http == LISTEN_FD {
                libc::fcntl(LISTEN_FD, libc::F_SETFD, 0)
            } else {
                libc::dup2(http, LISTEN_FD)
            };
            if rc < 0 {
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
    // SAFETY: `setup` makes only async-signal-safe calls, as explained in its `unsafe` block.
    unsafe { command.pre_exec(setup) };
    let child = command.spawn();
    drop((argv, envp));
    child
}

/// Sends SIGTERM to `child`.
pub fn terminate(child: &Child) {
    // SAFETY: `kill` takes no pointer. The child is not reaped yet, so its process ID is still
    // valid.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

/// The pointer arrays for `execve`. The child fills in the first entry of `envp`.
struct ExecPointers {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

// SAFETY: only the forked child uses the pointers, and it has one thread.
unsafe impl Send for ExecPointers {}
// SAFETY: as above.
unsafe impl Sync for ExecPointers {}

impl ExecPointers {
    fn new(argv: &[CString], envp: &[CString]) -> Self {
        let null = std::ptr::null();
        let pointers_to = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let mut pointers = Self {
            argv: pointers_to(argv),
            envp: [vec![null], pointers_to(envp)].concat(),
        };
        pointers.argv.push(null);
        pointers.envp.push(null);
        pointers
    }
}
