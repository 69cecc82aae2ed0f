//! A listening UNIX socket.
//!
//! The socket is bound under a temporary name and then renamed, so that clients never see it before
//! it listens. A socket on which another daemon answers is not replaced; one without a daemon is.
//! The file is removed at the end, if it is still the same one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, SockAddr, Type};

/// Why the socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers on the socket.
    #[error("another mcastor answers on {path}; stop it, or set another path ({setting})")]
    Taken {
        /// The path.
        path: PathBuf,
        /// The setting that has the path.
        setting: &'static str,
    },
    /// The path exists and is not a socket.
    #[error("{path} exists and is not a socket; remove it, or set another path ({setting})")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// The setting that has the path.
        setting: &'static str,
    },
    /// The kernel refused.
    #[error(
        "cannot create the socket {path}: {cause}; the folder must exist and be writable ({setting})"
    )]
    Refused {
        /// The path.
        path: PathBuf,
        /// The setting that has the path.
        setting: &'static str,
        /// The error of the kernel.
        cause: io::Error,
    },
}

/// The settings that have the path of the socket for commands.
pub const CONTROL_SETTING: &str = "[control] socket, or smcrouted -u";
/// The setting that has the path of the HTTP socket.
pub const HTTP_SETTING: &str = "[http] listen";

/// A bound socket. Dropping the last handle removes its file.
pub struct ListeningSocket {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

/// The file of a bound socket; dropping it removes the file, if it is still the same one.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl ListeningSocket {
    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Creates the socket, readable and writable only by its owner. Errors name `setting`.
    ///
    /// # Errors
    /// Another daemon answers on the socket, or the kernel refuses.
    pub fn bind(path: &Path, setting: &'static str) -> Result<Self, BindError> {
        use std::os::unix::fs::FileTypeExt;
        let refused = |cause| BindError::Refused {
            path: path.to_path_buf(),
            setting,
            cause,
        };
        if let Ok(existing) = fs::symlink_metadata(path) {
            if !existing.file_type().is_socket() {
                let path = path.to_path_buf();
                return Err(BindError::NotASocket { path, setting });
            }
            if UnixStream::connect(path).is_ok() {
                let path = path.to_path_buf();
                return Err(BindError::Taken { path, setting });
            }
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        // A random name: one that a killed process left behind does not matter.
        let temporary = tempfile::Builder::new()
            .prefix(".mcastor-")
            .make_in(folder.unwrap_or(Path::new(".")), private_listener)
            .map_err(refused)?;
        temporary.as_file().set_nonblocking(true).map_err(refused)?;
        let inode = fs::symlink_metadata(temporary.path())
            .map_err(refused)?
            .ino();
        let listener = temporary.persist(path).map_err(|e| refused(e.error))?;
        let path = path.to_path_buf();
        Ok(Self {
            listener,
            file: Arc::new(SocketFile { path, inode }),
        })
    }

    /// Returns a socket that another process has bound to this path. `inode` is that of its file.
    pub fn from_listener(listener: UnixListener, path: PathBuf, inode: u64) -> Self {
        Self {
            listener,
            file: Arc::new(SocketFile { path, inode }),
        }
    }

    /// Returns another handle of the socket.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listener: self.listener.try_clone()?,
            file: self.file.clone(),
        })
    }

    /// Returns the inode of the file.
    pub fn inode(&self) -> u64 {
        self.file.inode
    }

    /// Returns a listener of the async runtime.
    ///
    /// # Errors
    /// The runtime cannot register the descriptor.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.std_listener()?)
    }

    /// Returns another handle of the socket.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn std_listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

/// Listens on a new UNIX socket that only its owner may read and write. The mode is set before the
/// socket has a name: a later `chmod` of the path could reach a file that someone else put there.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let file = fs::File::from(OwnedFd::from(socket));
    // The file that bind creates has the mode of the descriptor.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let socket = socket2::Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    // The kernel lowers this to its own limit.
    socket.listen(4096)?;
    Ok(OwnedFd::from(socket).into())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a container, each start has the process ID 1.
    #[test]
    fn files_of_a_killed_start_do_not_prevent_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let left = folder.path().join(format!("socket.{}", std::process::id()));
        fs::write(&left, "").unwrap();
        let _killed = private_listener(&folder.path().join(".mcastor-1")).unwrap();
        let socket = ListeningSocket::bind(&path, CONTROL_SETTING).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_is_private_before_it_has_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = private_listener(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
    }
}
