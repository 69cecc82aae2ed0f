//! The side of the control socket that answers.
//!
//! Lifecycle: bound under a name of its own, made private, then moved to its place in one
//! step, so that nobody ever finds it half made; a socket that another daemon answers on is
//! left alone, a dead one is replaced; removed at the end if it is still ours.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Command, LONGEST_REQUEST, Outcome, Request, Response};
use crate::actors::World;
use crate::actors::questions::{self, AskError};
use crate::api::{self, Shown};

/// Clients served at once. For one more, the one that has been silent longest goes.
const MOST_CLIENTS: usize = 32;
/// A client is not hung up on for another before it was silent for so long.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);
/// How long a client may be silent, or slow to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another mcastor answers on {0}; stop it, or give this one another socket ([control] socket)"
    )]
    Taken(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0} exists and is not a socket; remove it, or give another path ([control] socket)")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error(
        "cannot make the control socket {path}: {cause}; the folder must exist and be writable ([control] socket)"
    )]
    Refused {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// A bound control socket; dropping it removes its file.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Server {
    /// Makes the socket, readable and writable by its owner only. Must be called inside the
    /// runtime.
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
            if StdStream::connect(path).is_ok() {
                return Err(BindError::Taken(path.to_path_buf()));
            }
        }
        let mut making = path.as_os_str().to_owned();
        making.push(format!(".{}", std::process::id()));
        let making = PathBuf::from(making);
        let listener = UnixListener::bind(&making).map_err(refused)?;
        let placed = fs::set_permissions(&making, fs::Permissions::from_mode(0o600))
            .and_then(|()| Ok(fs::metadata(&making)?.ino()))
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

    /// Answers clients until dropped.
    pub async fn serve(self, world: Arc<World>) {
        let mut clients: Vec<Rc<Client>> = Vec::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    make_room(&mut clients).await;
                    let client = Rc::new(Client::default());
                    clients.push(client.clone());
                    let world = world.clone();
                    actix::spawn(async move {
                        let ended = tokio::select! {
                            ended = converse(stream, &world, &client) => ended,
                            () = client.hang_up.cancelled() => {
                                Err(io::Error::other("another one took its place"))
                            }
                        };
                        if let Err(e) = ended {
                            debug!("control: a client left: {e}");
                        }
                    });
                }
                Err(e) => {
                    // Out of descriptors: others give some back.
                    warn!("control: cannot accept: {e}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A client being served; its task holds the second reference.
struct Client {
    /// When we last waited for it to send or read something.
    silent_since: Cell<Instant>,
    /// It waits for us.
    answering: Cell<bool>,
    hang_up: CancellationToken,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            silent_since: Cell::new(Instant::now()),
            answering: Cell::new(false),
            hang_up: CancellationToken::new(),
        }
    }
}

impl Client {
    fn is_answered(&self, answering: bool) {
        self.answering.set(answering);
        self.silent_since.set(Instant::now());
    }
}

/// Waits until there is a place for one more.
async fn make_room(clients: &mut Vec<Rc<Client>>) {
    loop {
        clients.retain(|client| Rc::strong_count(client) > 1);
        if clients.len() < MOST_CLIENTS {
            return;
        }
        let silent = (0..clients.len()).filter(|i| !clients[*i].answering.get());
        let longest = silent.min_by_key(|i| clients[*i].silent_since.get());
        match longest {
            Some(i) if clients[i].silent_since.get().elapsed() >= LEAST_PATIENCE => {
                clients.swap_remove(i).hang_up.cancel();
                return;
            }
            _ => sleep(LEAST_PATIENCE / 10).await,
        }
    }
}

async fn converse(stream: UnixStream, world: &World, client: &Client) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(LONGEST_REQUEST));
    loop {
        let (outcome, last) = match timeout(PATIENCE, lines.next()).await {
            Err(_) | Ok(None) => return Ok(()),
            Ok(Some(Ok(line))) => {
                client.is_answered(true);
                let outcome = answer(&line, world).await;
                client.is_answered(false);
                (outcome, false)
            }
            Ok(Some(Err(LinesCodecError::MaxLineLengthExceeded))) => {
                let error = format!("a request has at most {LONGEST_REQUEST} bytes");
                (Outcome::Error(error), true)
            }
            Ok(Some(Err(LinesCodecError::Io(e)))) => return Err(e),
        };
        let mut bytes = serde_json::to_vec(&Response {
            version: api::VERSION,
            outcome,
        })?;
        bytes.push(b'\n');
        timeout(PATIENCE, write.write_all(&bytes)).await??;
        if last {
            return Ok(());
        }
    }
}

async fn answer(line: &str, world: &World) -> Outcome {
    let request = match Request::parse(line) {
        Ok(request) => request,
        Err(e) => return Outcome::Error(e),
    };
    let done = |done: Result<String, AskError>| done.map(Shown::Done);
    let outcome = match request.command {
        Command::Show(what) => questions::show(world, what).await,
        Command::Change(change) => done(questions::change(world, change).await),
        Command::Flush => done(questions::flush(world).await),
        Command::Reload => done(questions::reload(world).await),
        Command::Panic(actor) => done(questions::panic(world, actor).await),
        Command::Stop => done(questions::stop(world).await),
    };
    match outcome {
        Ok(shown) => Outcome::Result(shown),
        Err(e) => Outcome::Error(e.to_string()),
    }
}
