//! The side of the control socket that answers.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::socket::Socket;
use super::{Command, LONGEST_REQUEST, Outcome, Request, Response};
use crate::actors::RouterContext;
use crate::actors::questions::{self, AskError};
use crate::api::{self, ShowReply};

/// Clients served at once. For one more, the one that has been silent longest goes.
const MOST_CLIENTS: usize = 32;
/// A client is not hung up on for another before it was silent for so long.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);
/// How long a client may be silent, or slow to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// The side that answers.
pub struct Server(Socket);

impl Server {
    /// A server of clients of `socket`.
    pub fn new(socket: Socket) -> Self {
        Self(socket)
    }

    /// Answers clients until dropped.
    pub async fn serve(self, context: Arc<RouterContext>) {
        let listener = match self.0.listener() {
            Ok(listener) => listener,
            Err(e) => return error!("control: cannot listen: {e}"),
        };
        let mut clients: Vec<Rc<Client>> = Vec::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    make_room(&mut clients).await;
                    let client = Rc::new(Client::default());
                    clients.push(client.clone());
                    let context = context.clone();
                    actix::spawn(async move {
                        let ended = tokio::select! {
                            ended = converse(stream, &context, &client) => ended,
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

async fn converse(stream: UnixStream, context: &RouterContext, client: &Client) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(LONGEST_REQUEST));
    loop {
        let (outcome, last) = match timeout(PATIENCE, lines.next()).await {
            Err(_) | Ok(None) => return Ok(()),
            Ok(Some(Ok(line))) => {
                client.is_answered(true);
                let outcome = answer(&line, context).await;
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

async fn answer(line: &str, context: &RouterContext) -> Outcome {
    let request = match Request::parse(line) {
        Ok(request) => request,
        Err(e) => return Outcome::Error(e),
    };
    let done = |done: Result<String, AskError>| done.map(ShowReply::Done);
    let outcome = match request.command {
        Command::Show(what) => questions::show(context, what).await,
        Command::Change(change) => done(questions::change(context, change).await),
        Command::Flush => done(questions::flush(context).await),
        Command::Reload => done(questions::reload(context).await),
        Command::Panic(actor) => done(questions::panic(context, actor).await),
        Command::Stop => done(questions::stop(context).await),
    };
    match outcome {
        Ok(shown) => Outcome::Result(shown),
        Err(e) => Outcome::Error(e.to_string()),
    }
}
