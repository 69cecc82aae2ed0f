//! The server of the control socket.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::{Command, MAX_REQUEST, Outcome, Request, Response};
use crate::actors::RouterContext;
use crate::api::{self, ShowReply};
use crate::frontend::background;
use crate::frontend::explain;
use crate::frontend::query::{self, QueryError};
use crate::frontend::socket_server::{self, ClientState};
use crate::frontend::trace;
use crate::frontend::unix_socket::ListeningSocket;

/// How long a client may send nothing, or read nothing of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves clients until dropped.
pub async fn serve(socket: ListeningSocket, context: Arc<RouterContext>) {
    let serve_client = |stream, client| serve_client(stream, context.clone(), client);
    socket_server::serve(socket, "control", serve_client).await;
}

async fn serve_client(
    stream: UnixStream,
    context: Arc<RouterContext>,
    client: Rc<ClientState>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_REQUEST));
    loop {
        let (outcome, last) = match timeout(PATIENCE, lines.next()).await {
            Err(_) | Ok(None) => return Ok(()),
            Ok(Some(Ok(line))) => (client.answer(answer(&line, &context)).await, false),
            Ok(Some(Err(LinesCodecError::MaxLineLengthExceeded))) => {
                let error = format!("a request has at most {MAX_REQUEST} bytes");
                (Outcome::Error(error), true)
            }
            Ok(Some(Err(LinesCodecError::Io(e)))) => return Err(e),
        };
        let bytes = client.answer(encode(outcome)).await?;
        timeout(PATIENCE, write.write_all(&bytes)).await??;
        if last {
            return Ok(());
        }
    }
}

/// Encodes a response. A list of flows or streams or a trace can have many megabytes, so it is
/// encoded in the background.
async fn encode(outcome: Outcome) -> io::Result<Vec<u8>> {
    match outcome {
        Outcome::Result(
            ShowReply::Flows(_) | ShowReply::Drops(_) | ShowReply::Streams(_) | ShowReply::Trace(_),
        ) => {
            let encoded = background::run(|| encode_now(outcome)).await;
            encoded.unwrap_or_else(|| Err(io::Error::other("the reply could not be encoded")))
        }
        outcome => encode_now(outcome),
    }
}

fn encode_now(outcome: Outcome) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Response {
        version: api::VERSION,
        outcome,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

async fn answer(line: &str, context: &RouterContext) -> Outcome {
    let request = match Request::parse(line) {
        Ok(request) => request,
        Err(e) => return Outcome::Error(e),
    };
    let done = |done: Result<String, QueryError>| done.map(ShowReply::Done);
    let outcome = match request.command {
        Command::Show(query) => query::show(context, query).await,
        Command::Explain(packet) => {
            let view = explain::explain(context, packet).await;
            view.map(|view| ShowReply::Explain(Box::new(view)))
        }
        Command::Trace(query) => trace::trace(context, &query).map(ShowReply::Trace),
        Command::Change(change) => done(query::change(context, change).await),
        Command::Flush => done(query::flush(context).await),
        Command::Reload => done(query::reload(context).await),
        Command::Upgrade(query) => query::upgrade(context, query)
            .await
            .map(ShowReply::Upgraded),
        Command::Panic(actor) => done(query::panic(context, actor).await),
        Command::Stop => done(query::stop(context, false).await),
        Command::StopKeepForwarding => done(query::stop(context, true).await),
    };
    match outcome {
        Ok(reply) => Outcome::Result(reply),
        Err(e) => Outcome::Error(e.to_string()),
    }
}
