//! Follows a container engine and resolves its names to interfaces.
//!
//! It connects only while a rule contains such a name. Engine and kernel are not synchronised: the
//! engine may report a container before its veth pair exists. If a pair is missing, everything is
//! read again shortly after.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::actors::messages::AliasesChanged;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::docker::{EngineClient, EngineError, veth_peers};
use crate::model::{Aliases, IfPattern};

/// Interval of attempts to connect to the engine.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// When everything is read again after a change, because an engine reports some changes before
/// its lists contain them.
const REREAD_AFTER_CHANGE: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];
/// Interval at which everything is read again.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);

/// The actor.
pub struct DockerWatch {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
}

impl DockerWatch {
    /// Returns an actor that follows the engine of `context.engine_socket`.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
        }
    }
}

impl Actor for DockerWatch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let context = self.context.clone();
        ctx.spawn(follow(context).into_actor(self));
    }
}

panics_on_demand!(DockerWatch);

impl Handler<Stop> for DockerWatch {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}

/// Why names of containers cannot be resolved at present.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("cannot find the interfaces of containers: {0}")]
    Links(#[from] rtnetlink::Error),
    #[error("cannot query the interfaces of the kernel: {0}")]
    Netlink(#[from] std::io::Error),
}

impl FollowError {
    /// Returns what happens next, or what the operator can do.
    fn remedy(&self, socket: &Path) -> String {
        match self {
            Self::Links(_) | Self::Netlink(_) => "trying again".into(),
            Self::Engine(_) if !socket.exists() => format!(
                "in a container, mount the socket: -v {0}:{0}:ro; elsewhere set [docker] socket",
                socket.display()
            ),
            Self::Engine(_) if is_denied(socket) => {
                "run as root, or in the group of the socket (docker run --group-add, \
                 SupplementaryGroups=)"
                    .into()
            }
            Self::Engine(_) => "check that the engine runs; trying again".into(),
        }
    }
}

/// Returns whether this process may not use the socket.
fn is_denied(socket: &Path) -> bool {
    let connected = std::os::unix::net::UnixStream::connect(socket);
    connected.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Follows the engine while a rule contains one of its names; reconnects after errors. Never
/// returns.
async fn follow(context: Arc<RouterContext>) {
    let mut wanted = context.engine_wanted.subscribe();
    let mut last_logged = None;
    loop {
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let socket = context.engine_socket.clone();
        let end = {
            let mut followed = pin!(listen(&context, &mut last_logged));
            let mut unwanted = wanted.clone();
            tokio::select! {
                error = &mut followed => Some(error),
                _ = unwanted.wait_for(|wanted| !*wanted) => None,
            }
        };
        context.catalog.engine_connected.set(0);
        match end {
            Some(error) => {
                // The names stay: an engine may restart and leave its containers running. If it
                // stops them, their interfaces disappear.
                let line = format!(
                    "docker: {}: {error}; names of containers are not resolved until the engine answers; {}",
                    socket.display(),
                    error.remedy(&socket)
                );
                // Logged once, not with every attempt.
                if last_logged.as_ref() != Some(&line) {
                    warn!("{line}");
                }
                last_logged = Some(line);
                // The names stay, see above.
                let names = Aliases {
                    engine_error: Some(format!(
                        "{}: {error}; {}",
                        socket.display(),
                        error.remedy(&socket)
                    )),
                    ..Aliases::clone(&context.aliases.load())
                };
                set_aliases(&context, names);
                sleep(RETRY_INTERVAL).await;
            }
            None => set_aliases(&context, Aliases::default()),
        }
    }
}

/// Longest wait for the engine at the start.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Resolves the names before the first forwarding table is made, if a rule contains one, so that the
/// flows that an earlier process left in the kernel have all their egresses. Waits at most a second:
/// [`DockerWatch`] reports an engine that does not answer.
pub async fn read_names_first(context: &RouterContext) {
    if !context.rib.load().patterns().any(IfPattern::is_engine_name) {
        return;
    }
    let read = async {
        let client = EngineClient::connect(&context.engine_socket.display().to_string()).await?;
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        let engine = client.read().await?;
        Ok::<_, FollowError>(engine.aliases(&veth_peers::read(&handle).await?).0)
    };
    match timeout(FIRST_READ_TIMEOUT, read).await {
        Ok(Ok(names)) => context.aliases.store(Arc::new(names)),
        // `DockerWatch` connects again, and reports the same error.
        Ok(Err(_)) => {}
        Err(_) => warn!(
            "docker: no answer at {} within {FIRST_READ_TIMEOUT:?}; starting without the names of \
             containers",
            context.engine_socket.display()
        ),
    }
}

/// Follows the engine until an error.
async fn listen(context: &RouterContext, last_logged: &mut Option<String>) -> FollowError {
    match try_listen(context, last_logged).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_listen(
    context: &RouterContext,
    last_logged: &mut Option<String>,
) -> Result<std::convert::Infallible, FollowError> {
    let socket = context.engine_socket.display().to_string();
    let client = EngineClient::connect(&socket).await?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = AbortOnDrop(tokio::spawn(connection));
    let mut changes = pin!(client.changes());
    info!("docker: following {} at {socket}", client.engine_name());
    context.catalog.engine_connected.set(1);
    let (mut refused, mut warned) = (false, false);
    let mut rereads = REREAD_AFTER_CHANGE.iter();
    loop {
        let engine = client.read().await?;
        let host = veth_peers::read(&handle).await?;
        refused |= host.is_refused;
        let rib = context.rib.load();
        if refused && !warned && rib.patterns().any(IfPattern::names_a_container) {
            warned = true;
            warn!(
                "docker: CAP_NET_ADMIN is missing: names with container: or label: are not resolved; names with network: do not need it"
            );
        }
        drop(rib);
        let (names, incomplete) = engine.aliases(&host);
        set_aliases(context, names);
        *last_logged = None;
        let wait = match rereads.next() {
            Some(soon) => *soon,
            None if incomplete && !refused => REREAD_AFTER_CHANGE[2],
            None => REREAD_INTERVAL,
        };
        match timeout(wait, changes.next()).await {
            Err(_) => continue,
            Ok(Some(change)) => change?,
            Ok(None) => return Err(EngineError::EventsEnded.into()),
        }
        rereads = REREAD_AFTER_CHANGE.iter();
        // Changes that arrived together are read together.
        while let Some(more) = changes.next().now_or_never() {
            more.ok_or(EngineError::EventsEnded)??;
        }
    }
}

/// A task that is aborted when its owner is dropped.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn set_aliases(context: &RouterContext, names: Aliases) {
    if **context.aliases.load() == names {
        return;
    }
    context.aliases.store(Arc::new(names));
    context.directory.do_send(AliasesChanged);
}
