//! Giving up root, and detaching from the terminal. To be called before there are threads:
//! capabilities belong to the thread that has them.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{Gid, Group, Uid, User, daemon, initgroups, setgid, setuid};

/// Whom to become.
#[derive(Debug, Clone)]
pub struct Identity {
    name: CString,
    uid: Uid,
    gid: Gid,
}

impl Identity {
    /// Looks up `USER` or `USER:GROUP`.
    ///
    /// # Errors
    /// There is no such user or group.
    pub fn named(text: &str) -> Result<Self, String> {
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

    /// Gives a file to it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn owns(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
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

/// Goes on in the background, in a session of its own.
///
/// # Errors
/// What the kernel says.
pub fn detach() -> io::Result<()> {
    Ok(daemon(true, false)?)
}
