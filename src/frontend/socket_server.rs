//! The accept loop of UNIX sockets.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::unix_socket::ListeningSocket;

/// Limit of concurrent clients. A further client replaces the one that has been idle longest.
const MAX_CLIENTS: usize = 32;
/// A client that has been idle for less time is not replaced.
const MIN_IDLE: Duration = Duration::from_millis(100);
/// Wait after an error of `accept`, such as the limit of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A client that is being served.
pub struct ClientState {
    idle_since: Cell<Instant>,
    /// Whether the client waits for an answer.
    answering: Cell<bool>,
    replaced: CancellationToken,
}

impl Default for ClientState {
    fn default() -> Self {
        Self {
            idle_since: Cell::new(Instant::now()),
            answering: Cell::new(false),
            replaced: CancellationToken::new(),
        }
    }
}

impl ClientState {
    /// Runs a command of the client. The client is not idle in the meantime.
    pub async fn answer<T>(&self, answer: impl Future<Output = T>) -> T {
        self.answering.set(true);
        let answer = answer.await;
        self.answering.set(false);
        self.idle_since.set(Instant::now());
        answer
    }
}

/// Serves the clients of a socket until dropped. `name` begins log lines. `serve_client` serves one
/// client until its connection ends.
pub async fn serve<F>(
    socket: ListeningSocket,
    name: &'static str,
    serve_client: impl Fn(UnixStream, Rc<ClientState>) -> F,
) where
    F: Future<Output = io::Result<()>> + 'static,
{
    let listener = match socket.listener() {
        Ok(listener) => listener,
        Err(e) => return error!("{name}: cannot listen: {e}"),
    };
    let mut clients: Vec<Rc<ClientState>> = Vec::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                wait_for_free_slot(&mut clients).await;
                let client = Rc::new(ClientState::default());
                clients.push(client.clone());
                let connection = serve_client(stream, client.clone());
                actix::spawn(async move {
                    let result = tokio::select! {
                        result = connection => result,
                        () = client.replaced.cancelled() => {
                            Err(io::Error::other("replaced by another client"))
                        }
                    };
                    if let Err(e) = result {
                        debug!("{name}: a connection ended: {e}");
                    }
                });
            }
            Err(e) => {
                warn!("{name}: cannot accept: {e}");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Waits until there are fewer than [`MAX_CLIENTS`]; replaces an idle client if necessary.
async fn wait_for_free_slot(clients: &mut Vec<Rc<ClientState>>) {
    loop {
        // The other references belong to the task of the client. With one left, the task has
        // ended.
        clients.retain(|client| Rc::strong_count(client) > 1);
        if clients.len() < MAX_CLIENTS {
            return;
        }
        let idle = (0..clients.len()).filter(|i| !clients[*i].answering.get());
        let longest = idle.min_by_key(|i| clients[*i].idle_since.get());
        match longest {
            Some(i) if clients[i].idle_since.get().elapsed() >= MIN_IDLE => {
                clients.swap_remove(i).replaced.cancel();
                return;
            }
            _ => sleep(MIN_IDLE / 10).await,
        }
    }
}
