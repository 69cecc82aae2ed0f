//! A read-only client for the socket of a Docker Engine.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, Network as NetworkReply};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptions, ListNetworksOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

use super::aliases::{Container, Endpoint, EngineNetwork, EngineState};

/// Timeout of a request to the engine, in seconds.
const TIMEOUT_SECS: u64 = 10;
/// The network option of Docker that sets the name of a bridge.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// Number of hexadecimal digits of a network ID in the default name of its bridge.
const BRIDGE_ID_DIGITS: usize = 12;

/// An error of a request to the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The socket cannot be reached, or the reply is not that of an engine.
    #[error("{}", with_causes(.0))]
    Docker(#[from] bollard::errors::Error),
    /// The event stream ended.
    #[error("the engine closed the event stream")]
    EventsEnded,
}

/// Returns the message of an error and of its causes. The libraries report causes separately.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text += &format!(": {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A connection to an engine.
pub struct EngineClient(Docker);

impl EngineClient {
    /// Connects to the socket at `path` and agrees on a version of the API.
    pub async fn connect(path: &str) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_socket(path, TIMEOUT_SECS, API_DEFAULT_VERSION)?;
        Ok(Self(docker.negotiate_version().await?))
    }

    /// Reads the networks and the running containers.
    pub async fn read(&self) -> Result<EngineState, EngineError> {
        let networks = self.0.list_networks(None::<ListNetworksOptions>).await?;
        let containers = self
            .0
            .list_containers(None::<ListContainersOptions>)
            .await?;
        Ok(EngineState {
            networks: networks.into_iter().filter_map(network_of).collect(),
            containers: containers.into_iter().filter_map(container_of).collect(),
        })
    }

    /// Returns a stream with an item for each change of a container or network. It starts with the
    /// changes of the last second.
    pub fn changes(&self) -> impl Stream<Item = Result<(), EngineError>> + use<> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let kinds = ["container", "network"].map(String::from).to_vec();
        // The list leaves out `exec_*` events, which health checks cause all the time.
        let events = [
            "start",
            "die",
            "rename",
            "pause",
            "unpause",
            "create",
            "destroy",
            "connect",
            "disconnect",
        ];
        let filters = HashMap::from([
            ("type".to_string(), kinds),
            ("event".to_string(), events.map(String::from).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new()
            .since(&now.saturating_sub(1).to_string())
            .filters(&filters)
            .build();
        let events = self.0.events(Some(options));
        events.map(|event| event.map(drop).map_err(EngineError::from))
    }
}

fn network_of(reply: NetworkReply) -> Option<EngineNetwork> {
    let id = reply.id?;
    let configured = reply.options.and_then(|mut o| o.remove(BRIDGE_NAME_OPTION));
    let bridge = (reply.driver.as_deref() == Some("bridge")).then(|| {
        let digits = id.get(..BRIDGE_ID_DIGITS).unwrap_or(&id);
        configured.unwrap_or_else(|| format!("br-{digits}"))
    });
    Some(EngineNetwork {
        name: reply.name?,
        bridge: bridge.and_then(|name| name.parse().ok()),
        id,
    })
}

fn container_of(reply: ContainerSummary) -> Option<Container> {
    let running = matches!(
        reply.state,
        Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
    );
    if !running {
        return None;
    }
    let names = reply.names.unwrap_or_default();
    let names = names.iter().map(|n| n.trim_start_matches('/'));
    // Skips names such as `/app/alias`, which are aliases in a linked container.
    let names = names.filter(|n| !n.contains('/')).map(String::from);
    let networks = reply.network_settings.and_then(|s| s.networks);
    let endpoints = networks.into_iter().flatten().filter_map(|(_, endpoint)| {
        Some(Endpoint {
            network: endpoint.network_id?,
            mac: endpoint.mac_address?.parse().ok()?,
        })
    });
    Some(Container {
        names: names.collect(),
        labels: reply.labels.unwrap_or_default().into_iter().collect(),
        endpoints: endpoints.collect(),
    })
}
