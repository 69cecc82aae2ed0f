//! A client of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Command, Outcome, Request, Response};
use crate::api::{self, ShowReply};

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens on the socket.
    #[error(
        "no mcastor answers on {path}: {cause}; is it running, and does it use this socket (--socket, [control] socket)?"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The error of the kernel.
        cause: io::Error,
    },
    /// The socket belongs to another user.
    #[error("not allowed to use {path}: run as the user that runs mcastor, or as root")]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the connection to {path} broke: {cause}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The error of the kernel.
        cause: io::Error,
    },
    /// The response is not one of this protocol.
    #[error("{path} sent an invalid response; is it the control socket of mcastor? {cause}")]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// The error in the response.
        cause: serde_json::Error,
    },
    /// The daemon refused the command.
    #[error("{0}")]
    Refused(String),
}

/// Sends a command to the daemon that listens on `path`. Returns its reply.
///
/// # Errors
/// There is no daemon, or it refuses the command.
pub fn send(path: &Path, command: Command) -> Result<ShowReply, ClientError> {
    let path_buf = || path.to_path_buf();
    let stream = UnixStream::connect(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: path_buf() },
        _ => ClientError::Unreachable {
            path: path_buf(),
            cause,
        },
    })?;
    let line = exchange(&stream, command).map_err(|cause| ClientError::Broken {
        path: path_buf(),
        cause,
    })?;
    let response: Response =
        serde_json::from_str(&line).map_err(|cause| ClientError::NotUnderstood {
            path: path_buf(),
            cause,
        })?;
    match response.outcome {
        Outcome::Result(shown) => Ok(shown),
        Outcome::Error(message) => Err(ClientError::Refused(message)),
    }
}

fn exchange(mut stream: &UnixStream, command: Command) -> io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut request = serde_json::to_vec(&Request {
        version: api::VERSION,
        command,
    })?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
