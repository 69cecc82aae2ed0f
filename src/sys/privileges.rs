//! Drops root privileges and detaches from the terminal. Call these functions before the process
//! creates threads: capabilities belong to a single thread.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::Path;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Gid, Group, Uid, User, dup2_stderr, dup2_stdin, dup2_stdout, fork, initgroups,
    setgid, setsid, setuid,
};

/// A user and group that the process can switch to.
#[derive(Debug, Clone)]
pub struct UserIdentity {
    name: CString,
    uid: Uid,
    gid: Gid,
}

impl UserIdentity {
    /// Looks up `USER` or `USER:GROUP`. Without `GROUP`, uses the primary group of the user.
    ///
    /// # Errors
    /// The user or group does not exist.
    pub fn lookup(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let found = User::from_name(user).map_err(|e| e.to_string())?;
        let found = found.ok_or_else(|| format!("there is no user {user}"))?;
        let gid = match group {
            None => found.gid,
            Some(group) => {
                let named = Group::from_name(group).map_err(|e| e.to_string())?;
                named
                    .ok_or_else(|| format!("there is no group {group}"))?
                    .gid
            }
        };
        let name = CString::new(user).map_err(|e| e.to_string())?;
        Ok(Self {
            name,
            uid: found.uid,
            gid,
        })
    }

    /// Replaces a file by one with this text that belongs to this user. Does not follow a link: the
    /// directory may belong to this user, who could have placed a link to a file of another user in
    /// it.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn write_owned_file(&self, path: &Path, text: &str) -> io::Result<()> {
        super::files::replace(path, text, Some((self.uid, self.gid)))
    }

    /// Makes this user the owner of a Unix socket. Does not follow a link.
    ///
    /// # Errors
    /// The path is not a socket, or the error of the system call.
    pub fn chown_socket(&self, path: &Path) -> io::Result<()> {
        if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
            return Err(io::Error::other(format!(
                "{} is not a socket",
                path.display()
            )));
        }
        lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Switches the process to this user and group. Keeps CAP_NET_ADMIN and CAP_NET_RAW, and drops
    /// all other capabilities.
    ///
    /// # Errors
    /// The error of the system call. Some privileges may then be dropped already, so the process
    /// must exit.
    pub fn drop_privileges(&self) -> io::Result<()> {
        let kept = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
        let kept = kept.into_iter().collect();
        set_keepcaps(true)?;
        initgroups(&self.name, self.gid)?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
        caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)?;
        set_keepcaps(false)?;
        Ok(())
    }
}

/// A start as a daemon that has not been reported yet. The original process waits for the report.
#[derive(Debug)]
pub struct DaemonStart(PipeWriter);

/// Continues in a child process with a session of its own.
///
/// The original process waits for [`DaemonStart::report_success`]. If the child exits before, the
/// original process exits with the same code. Standard error stays connected to the terminal, so
/// that errors during the start are visible.
///
/// # Errors
/// The error of the system call.
pub fn daemonize() -> io::Result<DaemonStart> {
    let (mut reader, writer) = io::pipe()?;
    // SAFETY: the process has no other threads yet, so the child inherits no held locks and no
    // partly changed data.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            setsid()?;
            return Ok(DaemonStart(writer));
        }
    };
    drop(writer);
    let code = match reader.read(&mut [0]) {
        Ok(1) => 0,
        // The child exited without a report.
        _ => loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => break code,
                _ => break 1,
            }
        },
    };
    std::process::exit(code)
}

impl DaemonStart {
    /// Lets the original process exit with 0, and detaches from the terminal.
    ///
    /// # Errors
    /// `/dev/null` cannot be opened or duplicated.
    pub fn report_success(mut self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let detached = null.and_then(|null| {
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            Ok(dup2_stderr(&null)?)
        });
        // Ignores a failure: the original process may have been killed.
        let _ = self.0.write_all(&[0]);
        detached
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn current_user() -> UserIdentity {
        UserIdentity {
            name: CString::default(),
            uid: Uid::effective(),
            gid: Gid::effective(),
        }
    }

    #[test]
    fn owner_changes_do_not_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("other"), "unchanged").unwrap();
        symlink(at("other"), at("link")).unwrap();
        current_user().write_owned_file(&at("link"), "1").unwrap();
        assert_eq!(std::fs::read_to_string(at("other")).unwrap(), "unchanged");

        let _socket = UnixListener::bind(at("socket")).unwrap();
        current_user().chown_socket(&at("socket")).unwrap();
        symlink(at("socket"), at("to-socket")).unwrap();
        assert!(current_user().chown_socket(&at("to-socket")).is_err());
        assert!(current_user().chown_socket(&at("other")).is_err());
    }
}
