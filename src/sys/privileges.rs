//! Giving up root, and detaching from the terminal. To be called before there are threads:
//! capabilities belong to the thread that has them.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::Path;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Gid, Group, Uid, User, dup2_stderr, dup2_stdin, dup2_stdout, fork, initgroups,
    setgid, setsid, setuid,
};
/// Whom to become.
#[derive(Debug, Clone)]
pub struct UserIdentity {
    name: CString,
    uid: Uid,
    gid: Gid,
}

impl UserIdentity {
    /// Looks up `USER` or `USER:GROUP`.
    ///
    /// # Errors
    /// There is no such user or group.
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

    /// Writes a file and gives it to it. The folder may be its own, and hold a link to a file
    /// of somebody else: links are not followed.
    ///
    /// # Errors
    /// What the kernel says, of a link `ELOOP`; or it is no plain file.
    pub fn write_owned_file(&self, path: &Path, text: &str) -> io::Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        // Emptied only when it is known to be a file, and nobody else's by a second name.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(flags)
            .open(path)?;
        let found = file.metadata()?;
        if !found.is_file() || found.nlink() > 1 {
            return Err(io::Error::other("not a plain file of one name"));
        }
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        fchown(&file, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Gives a socket to it; a link in its place is left alone.
    ///
    /// # Errors
    /// It is no socket, or what the kernel says.
    pub fn own_socket(&self, path: &Path) -> io::Result<()> {
        if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
            return Err(io::Error::other(format!(
                "{} is not a socket",
                path.display()
            )));
        }
        lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Becomes it, and keeps the right to capture and to shape sockets, and no other.
    ///
    /// # Errors
    /// What the kernel says; the process is then in between and must end.
    pub fn assume(&self) -> io::Result<()> {
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

/// A start in the background: whoever started us waits to hear how it went.
#[derive(Debug)]
pub struct DaemonStart(PipeWriter);

/// Goes on in the background, in a session of its own. Whoever called goes on waiting until
/// [`DaemonStart::done`], and ends as this process does where it ends before. Standard error is
/// still that of the terminal, so that faults of the start are seen.
///
/// # Errors
/// What the kernel says.
pub fn daemonize() -> io::Result<DaemonStart> {
    let (mut said, tell) = io::pipe()?;
    // SAFETY: there are no other threads yet, so nothing is locked or half done in the child.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            setsid()?;
            return Ok(DaemonStart(tell));
        }
    };
    drop(tell);
    let code = match said.read(&mut [0]) {
        Ok(1) => 0,
        // It ended.
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
    /// Lets whoever started us end with 0, and lets go of the terminal.
    ///
    /// # Errors
    /// There is no `/dev/null`.
    pub fn done(mut self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let gone = null.and_then(|null| {
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            Ok(dup2_stderr(&null)?)
        });
        // Who started us may have been killed meanwhile.
        let _ = self.0.write_all(&[0]);
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn me() -> UserIdentity {
        UserIdentity {
            name: CString::default(),
            uid: Uid::effective(),
            gid: Gid::effective(),
        }
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("other"), "precious").unwrap();
        symlink(at("other"), at("link")).unwrap();
        let e = me().write_owned_file(&at("link"), "1").unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
        symlink(at("new"), at("dangling")).unwrap();
        assert!(me().write_owned_file(&at("dangling"), "1").is_err());
        assert!(!at("new").exists());
        std::fs::hard_link(at("other"), at("second")).unwrap();
        assert!(me().write_owned_file(&at("second"), "1").is_err());
        assert_eq!(std::fs::read_to_string(at("other")).unwrap(), "precious");
        std::fs::write(at("pid"), "12345\n").unwrap();
        me().write_owned_file(&at("pid"), "6\n").unwrap();
        assert_eq!(std::fs::read_to_string(at("pid")).unwrap(), "6\n");

        let _socket = UnixListener::bind(at("socket")).unwrap();
        me().own_socket(&at("socket")).unwrap();
        symlink(at("socket"), at("to-socket")).unwrap();
        assert!(me().own_socket(&at("to-socket")).is_err());
        assert!(me().own_socket(&at("other")).is_err());
    }
}
