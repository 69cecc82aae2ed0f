//! A UNIX socket for clients.
//!
//! Lifecycle: bound under a name of its own, private, then moved to its place in one
//! step, so that nobody ever finds it half made; a socket that another daemon answers on is
//! left alone, a dead one is replaced; removed at the end if it is still ours.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another mcastor answers on {0}; stop it, or give this one another socket ([control] socket, or smcrouted -u)"
    )]
    Taken(PathBuf),
    /// Something that is not a socket has that name.
    #[error(
        "{0} exists and is not a socket; remove it, or give another path ([control] socket, or smcrouted -u)"
    )]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error(
        "cannot make the control socket {path}: {cause}; the folder must exist and be writable ([control] socket, or smcrouted -u)"
    )]
    Refused {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// A bound socket; dropping it removes its file.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Makes the socket, readable and writable by its owner only.
    ///
    /// # Errors
    /// Another daemon answers there, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        use std::os::unix::fs::FileTypeExt;
        let refused = |cause| BindError::Refused {
            path: path.to_path_buf(),
            cause,
        };
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(BindError::NotASocket(path.to_path_buf()));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(BindError::Taken(path.to_path_buf()));
            }
        }
        let mut making = path.as_os_str().to_owned();
        making.push(format!(".{}", std::process::id()));
        let making = PathBuf::from(making);
        let listener = private_listener(&making).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let placed = fs::symlink_metadata(&making)
            .map(|made| made.ino())
            .and_then(|inode| fs::rename(&making, path).map(|()| inode));
        let inode = placed.map_err(|e| {
            let _ = fs::remove_file(&making);
            refused(e)
        })?;
        Ok(Self {
            listener,
            path: path.to_path_buf(),
            inode,
        })
    }

    /// What clients are accepted from, inside the runtime.
    ///
    /// # Errors
    /// The runtime takes no more descriptors.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

/// Listens on a new UNIX socket that its owner alone may read and write. It is so from the
/// beginning: a mode given later, by name, could be given to what somebody put in its place.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let file = fs::File::from(OwnedFd::from(socket));
    // What bind makes has the mode of the descriptor.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let socket = socket2::Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    // The kernel takes its own limit instead where that is less.
    socket.listen(4096)?;
    Ok(OwnedFd::from(socket).into())
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_from_the_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = private_listener(&path).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!(made.mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
    }
}
