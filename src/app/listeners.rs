//! The listening sockets: opened by this process, passed by the service manager, or passed by the
//! process that this one replaces.

use std::fs::DirBuilder;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::frontend::http::HttpListener;
use crate::frontend::unix_socket::{BindError, CONTROL_SETTING, HTTP_SETTING, ListeningSocket};
use crate::settings::{DEFAULT_SOCKET, HttpAddress};
use crate::sys::activation::PassedListener;

/// Where a socket listens, and the inode of the file of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListeningPlace {
    address: String,
    inode: Option<u64>,
}

/// A listening socket of another process.
pub(super) type PassedSocket = (ListeningPlace, OwnedFd);

/// The address of a socket that the service manager has passed. No setting says this.
const ACTIVATED: &str = "socket activation";

/// The listening socket of the HTTP server.
pub(super) struct HttpSocket {
    pub(super) listener: HttpListener,
    pub(super) place: ListeningPlace,
    /// Removes the file of a UNIX socket when it is dropped.
    _file: Option<ListeningSocket>,
}

/// Opens the control socket, or continues the one that another process has at the same path.
pub(super) fn open_control(
    path: &Path,
    passed: &mut Option<PassedSocket>,
) -> Result<ListeningSocket, BindError> {
    let is_same = |(place, _): &mut PassedSocket| *place.address == *path.to_string_lossy();
    if let Some(passed) = passed.take_if(is_same).and_then(unix_socket) {
        return Ok(passed);
    }
    if path == Path::new(DEFAULT_SOCKET) {
        create_socket_folder(path);
    }
    ListeningSocket::bind(path, CONTROL_SETTING)
}

/// Returns a UNIX socket with its file; `None` for another socket.
fn unix_socket((place, socket): PassedSocket) -> Option<ListeningSocket> {
    let inode = place.inode?;
    let listener = socket.into();
    Some(ListeningSocket::from_listener(
        listener,
        place.address.into(),
        inode,
    ))
}

/// Removes the file of a socket that another process had, and this one does not continue.
pub(super) fn remove_former(passed: Option<PassedSocket>) {
    drop(passed.and_then(unix_socket));
}

/// Returns where the control socket listens.
pub(super) fn control_place(path: &Path, socket: &ListeningSocket) -> ListeningPlace {
    ListeningPlace {
        address: path.to_string_lossy().into_owned(),
        inode: Some(socket.inode()),
    }
}

/// Creates the folder of the default control socket, if it is missing. The service manager or the
/// container image creates it otherwise.
fn create_socket_folder(socket: &Path) {
    if let Some(folder) = socket.parent() {
        // Ignores a failure: creating the socket reports it.
        let _ = DirBuilder::new().mode(0o755).create(folder);
    }
}

/// Returns the listener of the HTTP server: that of the service manager, that of another process
/// for the same address, or a new one. A port that is in use is only logged, because the router
/// must forward without HTTP.
pub(super) fn open_http(
    address: Option<&HttpAddress>,
    activated: Option<PassedListener>,
    passed: &mut Option<PassedSocket>,
) -> Option<HttpSocket> {
    if let Some(activated) = activated {
        let place = ListeningPlace {
            address: ACTIVATED.into(),
            inode: None,
        };
        return Some(HttpSocket {
            listener: http_listener(activated),
            place,
            _file: None,
        });
    }
    let configured = address.map(describe);
    let is_same = |(place, _): &mut PassedSocket| {
        place.address == ACTIVATED || Some(&place.address) == configured.as_ref()
    };
    if let Some((place, socket)) = passed.take_if(is_same) {
        return continue_http(address, place, socket);
    }
    let address = address?;
    let unavailable = |cause: &dyn std::fmt::Display| {
        warn!(
            "http: cannot listen: {cause}; HTTP and its metrics are not available, \
             forwarding continues; [http] listen sets another address, or \"off\""
        );
    };
    let place = |inode| ListeningPlace {
        address: describe(address),
        inode,
    };
    match address {
        HttpAddress::Tcp(tcp) => {
            let listener = TcpListener::bind(tcp);
            let listener = listener.map_err(|e| unavailable(&format_args!("{tcp}: {e}")));
            Some(HttpSocket {
                listener: HttpListener::Tcp(listener.ok()?),
                place: place(None),
                _file: None,
            })
        }
        HttpAddress::Unix(path) => {
            let socket = ListeningSocket::bind(path, HTTP_SETTING).map_err(|e| unavailable(&e));
            let socket = socket.ok()?;
            let listener = socket.std_listener().map_err(|e| unavailable(&e)).ok()?;
            Some(HttpSocket {
                listener: HttpListener::Unix(listener),
                place: place(Some(socket.inode())),
                _file: Some(socket),
            })
        }
    }
}

/// Continues to listen on the socket of another process.
fn continue_http(
    address: Option<&HttpAddress>,
    place: ListeningPlace,
    socket: OwnedFd,
) -> Option<HttpSocket> {
    let passed = PassedListener::new(socket).ok()?;
    let file = match (&passed, address, place.inode) {
        (PassedListener::Unix(listener), Some(HttpAddress::Unix(path)), Some(inode)) => {
            let listener = listener.try_clone().ok()?;
            Some(ListeningSocket::from_listener(
                listener,
                path.clone(),
                inode,
            ))
        }
        _ => None,
    };
    Some(HttpSocket {
        listener: http_listener(passed),
        place,
        _file: file,
    })
}

fn http_listener(passed: PassedListener) -> HttpListener {
    match passed {
        PassedListener::Tcp(listener) => HttpListener::Tcp(listener),
        PassedListener::Unix(listener) => HttpListener::Unix(listener),
    }
}

fn describe(address: &HttpAddress) -> String {
    match address {
        HttpAddress::Tcp(address) => address.to_string(),
        HttpAddress::Unix(path) => path.display().to_string(),
    }
}

impl HttpSocket {
    /// Returns another descriptor of the socket, for another process.
    ///
    /// # Errors
    /// The process has too many open files.
    pub(super) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(match self.listener.try_clone()? {
            HttpListener::Tcp(listener) => listener.into(),
            HttpListener::Unix(listener) => listener.into(),
        })
    }
}
