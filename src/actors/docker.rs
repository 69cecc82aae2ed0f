//! Follows a container engine and tells routing what its names mean.
//!
//! It connects only while some rule holds such a name. Between engine and kernel there is no
//! order: a container may be told of before its cable is there, so where one is missing all is
//! read again shortly after.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::context::{DeathGuard, RouterContext, panics_on_demand};
use super::routing::NamesChanged;
use crate::docker::{EngineClient, EngineError, veth_peers};
use crate::model::Aliases;

/// Between two attempts to reach the engine.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// When all is read again after a change: engines tell of some before their lists hold them.
const AFTERWARDS: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];
/// When all is read again in any case.
const READ_ANEW_EVERY: Duration = Duration::from_secs(30);

/// The actor.
pub struct DockerWatch {
    // Its end is the actor's.
    _vital: DeathGuard,
    context: Arc<RouterContext>,
}

impl DockerWatch {
    /// Follows the engine whose socket the context names.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            _vital: death_guard,
            context,
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

/// Why names of containers mean nothing at present.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("cannot find the interfaces of containers: {0}")]
    Links(#[from] rtnetlink::Error),
    #[error("cannot ask the kernel for interfaces: {0}")]
    Netlink(#[from] std::io::Error),
}

impl Trouble {
    /// What may be done about it.
    fn help(&self, socket: &Path) -> String {
        match self {
            Self::Links(_) | Self::Netlink(_) => "trying again".into(),
            Self::Engine(_) if !socket.exists() => format!(
                "in a container mount it: -v {0}:{0}:ro; elsewhere set [docker] socket",
                socket.display()
            ),
            Self::Engine(_) => "trying again".into(),
        }
    }
}

/// For ever: waits until a name is wanted, follows the engine, and tries again.
async fn follow(context: Arc<RouterContext>) {
    let mut wanted = context.engine_wanted.subscribe();
    let mut said = None;
    loop {
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let socket = context.engine_socket.clone();
        let end = {
            let mut followed = pin!(listen(&context, &mut said));
            let mut unwanted = wanted.clone();
            tokio::select! {
                trouble = &mut followed => Some(trouble),
                _ = unwanted.wait_for(|wanted| !*wanted) => None,
            }
        };
        context.catalog.engine_connected.set(0);
        match end {
            Some(trouble) => {
                // The names stay as they were: an engine may restart and leave its containers
                // running. Where it does not, their interfaces vanish.
                let line = format!(
                    "docker: {}: {trouble}; names of containers wait; {}",
                    socket.display(),
                    trouble.help(&socket)
                );
                // Once, and not again every half second.
                if said.as_ref() != Some(&line) {
                    warn!("{line}");
                }
                said = Some(line);
                sleep(TRY_AGAIN).await;
            }
            None => tell(&context, Aliases::default()),
        }
    }
}

/// Tells routing of every change until there is trouble.
async fn listen(context: &RouterContext, said: &mut Option<String>) -> Trouble {
    match try_listen(context, said).await {
        Ok(never) => match never {},
        Err(trouble) => trouble,
    }
}

async fn try_listen(
    context: &RouterContext,
    said: &mut Option<String>,
) -> Result<std::convert::Infallible, Trouble> {
    let socket = context.engine_socket.display().to_string();
    let client = EngineClient::connect(&socket).await?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let _connection = Ends(tokio::spawn(connection));
    let mut changes = pin!(client.changes());
    info!("docker: following {socket}");
    context.catalog.engine_connected.set(1);
    let mut refused = false;
    let mut afterwards = AFTERWARDS.iter();
    loop {
        let engine = client.read().await?;
        let peers = veth_peers::read(&handle).await?;
        if peers.refused && !std::mem::replace(&mut refused, true) {
            warn!(
                "docker: CAP_NET_ADMIN is missing: container: and label: wait; network: needs none"
            );
        }
        let index = |name: &_| peers.indexes.get(name).copied();
        let (names, lacking) = engine.names(&peers.cables, index);
        tell(context, names);
        *said = None;
        let wait = match afterwards.next() {
            Some(soon) => *soon,
            None if lacking && !refused => AFTERWARDS[2],
            None => READ_ANEW_EVERY,
        };
        match timeout(wait, changes.next()).await {
            Err(_) => continue,
            Ok(Some(change)) => change?,
            Ok(None) => return Err(EngineError::Gone.into()),
        }
        afterwards = AFTERWARDS.iter();
        // What came together is read together.
        while let Some(more) = changes.next().now_or_never() {
            more.ok_or(EngineError::Gone)??;
        }
    }
}

/// A task that ends with its owner.
struct Ends<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn tell(context: &RouterContext, names: Aliases) {
    if **context.aliases.load() == names {
        return;
    }
    context.aliases.store(Arc::new(names));
    if let Some(routing) = context.routing.load_full() {
        // A control fact: as many as the engine has changes.
        routing.do_send(NamesChanged);
    }
}
