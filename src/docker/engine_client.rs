//! Questions to a Docker Engine over its socket. Nothing is ever changed in it.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, Network as NetworkReply};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptions, ListNetworksOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

use super::aliases::{Container, Endpoint, EngineNetwork, EngineState};

/// How long the engine may take over an answer, in seconds.
const PATIENCE: u64 = 10;
/// Docker's own name for the option that names a bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Hexadecimal digits of a network's id in the name of its bridge.
const BRIDGE_DIGITS: usize = 12;

/// Why the engine cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing answers there, or not as an engine does.
    #[error("{}", with_causes(.0))]
    Docker(#[from] bollard::errors::Error),
    /// It told of nothing more.
    #[error("the engine went away")]
    Gone,
}

/// The libraries below say why only one by one.
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
        let docker = Docker::connect_with_socket(path, PATIENCE, API_DEFAULT_VERSION)?;
        Ok(Self(docker.negotiate_version().await?))
    }

    /// What there is now.
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

    /// Something for each change of containers and networks, those of the last second too.
    pub fn changes(&self) -> impl Stream<Item = Result<(), EngineError>> + use<> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let kinds = ["container", "network"].map(String::from).to_vec();
        // Health checks run commands in containers all the time, and change nothing here.
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

fn network_of(told: NetworkReply) -> Option<EngineNetwork> {
    let id = told.id?;
    let named = told.options.and_then(|mut o| o.remove(BRIDGE_NAME));
    let bridge = (told.driver.as_deref() == Some("bridge")).then(|| {
        let digits = id.get(..BRIDGE_DIGITS).unwrap_or(&id);
        named.unwrap_or_else(|| format!("br-{digits}"))
    });
    Some(EngineNetwork {
        name: told.name?,
        bridge: bridge.and_then(|name| name.parse().ok()),
        id,
    })
}

fn container_of(told: ContainerSummary) -> Option<Container> {
    let running = matches!(
        told.state,
        Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
    );
    if !running {
        return None;
    }
    let names = told.names.unwrap_or_default();
    let names = names.iter().map(|n| n.trim_start_matches('/'));
    // `/app/alias` is how a linked container calls it.
    let names = names.filter(|n| !n.contains('/')).map(String::from);
    let networks = told.network_settings.and_then(|s| s.networks);
    let endpoints = networks.into_iter().flatten().filter_map(|(_, endpoint)| {
        Some(Endpoint {
            network: endpoint.network_id?,
            mac: endpoint.mac_address?.parse().ok()?,
        })
    });
    Some(Container {
        names: names.collect(),
        labels: told.labels.unwrap_or_default().into_iter().collect(),
        endpoints: endpoints.collect(),
    })
}
