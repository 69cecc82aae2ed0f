//! A read-only client for the socket of a Docker Engine, or of another engine with its API.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{
    ContainerSummary, ContainerSummaryStateEnum, Network as NetworkReply, PortSummary,
    PortSummaryTypeEnum,
};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptions, ListNetworksOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

use super::aliases::{
    BRIDGE_DRIVER, Container, Endpoint, EngineNetwork, EngineState, PublishedPort,
};
use super::podman::{self, PodmanError, PodmanNetwork};
use crate::model::IfName;
use crate::model::escape::quote;

/// Timeout of a request to the engine, in seconds.
const TIMEOUT_SECS: u64 = 10;
/// The network option of Docker that sets the name of a bridge.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// The network option that names the parent interface of a macvlan.
const PARENT_OPTION: &str = "parent";
/// The component in the version of an engine that is Podman.
const PODMAN_COMPONENT: &str = "Podman Engine";
/// The security option of an engine that runs without root.
const ROOTLESS_OPTION: &str = "name=rootless";
/// Number of hexadecimal digits of a network ID in the default name of its bridge.
const BRIDGE_ID_DIGITS: usize = 12;

/// An error of a request to the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The socket cannot be reached, or the reply is not that of an engine.
    #[error("{}", with_causes(.0))]
    Docker(#[from] bollard::errors::Error),
    /// Podman's own API fails.
    #[error("{0}")]
    Podman(#[from] PodmanError),
    /// The event stream ended.
    #[error("the engine closed the event stream")]
    EventsEnded,
}

/// Returns the message of an error and of its causes. The libraries report causes separately.
/// A part of the message may be a text of the engine.
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
    quote(&text)
}

/// A connection to an engine.
pub struct EngineClient {
    docker: Docker,
    path: String,
    is_podman: bool,
    is_rootless: bool,
}

impl EngineClient {
    /// Connects to the socket at `path` and agrees on a version of the API.
    pub async fn connect(path: &str) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_socket(path, TIMEOUT_SECS, API_DEFAULT_VERSION)?;
        let docker = docker.negotiate_version().await?;
        let components = docker.version().await?.components.unwrap_or_default();
        let podman = components.into_iter().find(|c| c.name == PODMAN_COMPONENT);
        if let Some(podman) = &podman {
            check_podman_version(&podman.version)?;
        }
        // The information of an engine has many fields, and only a hint depends on it. An engine
        // that answers in another form is taken for one with root.
        let options = docker.info().await.ok().and_then(|i| i.security_options);
        let is_rootless = |option: &String| option.starts_with(ROOTLESS_OPTION);
        Ok(Self {
            docker,
            path: path.into(),
            is_podman: podman.is_some(),
            is_rootless: options.iter().flatten().any(is_rootless),
        })
    }

    /// Returns the name of the engine.
    pub fn engine_name(&self) -> &'static str {
        if self.is_podman { "Podman" } else { "Docker" }
    }

    /// Reads the networks and the running containers.
    pub async fn read(&self) -> Result<EngineState, EngineError> {
        let networks = self.docker.list_networks(None::<ListNetworksOptions>);
        let networks = networks.await?.into_iter();
        let networks = if self.is_podman {
            let limit = Duration::from_secs(TIMEOUT_SECS);
            let details = podman::read_networks(&self.path, limit).await?;
            let network = |reply| podman_network_of(reply, &details);
            networks.filter_map(network).collect()
        } else {
            networks.filter_map(docker_network_of).collect()
        };
        let containers = self.docker.list_containers(None::<ListContainersOptions>);
        Ok(EngineState {
            networks,
            containers: containers
                .await?
                .into_iter()
                .filter_map(container_of)
                .collect(),
            is_rootless: self.is_rootless,
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
            // Podman's names of `die` and `destroy` in a filter.
            "died",
            "remove",
        ];
        let filters = HashMap::from([
            ("type".to_string(), kinds),
            ("event".to_string(), events.map(String::from).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new()
            .since(&now.saturating_sub(1).to_string())
            .filters(&filters)
            .build();
        let events = self.docker.events(Some(options));
        events.map(|event| event.map(drop).map_err(EngineError::from))
    }
}

/// Fails if Podman is too old.
fn check_podman_version(version: &str) -> Result<(), PodmanError> {
    let major = version
        .split('.')
        .next()
        .and_then(|n| n.parse::<u32>().ok());
    // An unknown form of the version is no reason to refuse.
    match major {
        Some(major) if major < podman::FIRST_VERSION => Err(PodmanError::Version(quote(version))),
        _ => Ok(()),
    }
}

fn docker_network_of(reply: NetworkReply) -> Option<EngineNetwork> {
    let id = reply.id?;
    let driver = reply.driver.unwrap_or_default();
    let mut options = reply.options.unwrap_or_default();
    let configured = options.remove(BRIDGE_NAME_OPTION);
    let parent = options.remove(PARENT_OPTION);
    let bridge = (driver == BRIDGE_DRIVER).then(|| {
        let digits = id.get(..BRIDGE_ID_DIGITS).unwrap_or(&id);
        configured.unwrap_or_else(|| format!("br-{digits}"))
    });
    Some(EngineNetwork {
        names: vec![reply.name?],
        driver: quote(&driver),
        bridge: bridge.and_then(|name| name.parse().ok()),
        parent: parent.and_then(|name| name.parse().ok()),
        is_internal: reply.internal.unwrap_or_default(),
        id,
    })
}

/// Adds the name and the bridge that Podman's own API has.
fn podman_network_of(reply: NetworkReply, details: &[PodmanNetwork]) -> Option<EngineNetwork> {
    let id = reply.id?;
    let driver = reply.driver.unwrap_or_default();
    let own = details.iter().find(|n| n.id == id);
    let interface = own.and_then(|n| n.network_interface.as_ref());
    let interface: Option<IfName> = interface.and_then(|name| name.parse().ok());
    // It is the bridge or the parent.
    let (bridge, parent) = match driver == BRIDGE_DRIVER {
        true => (interface, None),
        false => (None, interface),
    };
    let mut names = vec![reply.name?];
    names.extend(own.map(|n| n.name.clone()).filter(|n| !names.contains(n)));
    Some(EngineNetwork {
        names,
        bridge,
        parent,
        is_internal: reply.internal.unwrap_or_default(),
        driver: quote(&driver),
        id,
    })
}

/// Returns a port that other hosts reach; `None` if it is not published, or on loopback only.
fn published_port(port: PortSummary) -> Option<PublishedPort> {
    let address = port.ip.and_then(|ip| ip.parse::<IpAddr>().ok());
    let is_reachable = address.is_none_or(|address| !address.is_loopback());
    let is_tcp = match port.typ? {
        PortSummaryTypeEnum::TCP => true,
        PortSummaryTypeEnum::UDP => false,
        _ => return None,
    };
    let published = PublishedPort {
        private: port.private_port,
        public: port.public_port?,
        is_tcp,
    };
    is_reachable.then_some(published)
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
            addresses: [endpoint.ip_address, endpoint.global_ipv6_address]
                .into_iter()
                .flatten()
                .filter_map(|address| address.parse().ok())
                .collect(),
        })
    });
    Some(Container {
        names: names.collect(),
        labels: reply.labels.unwrap_or_default().into_iter().collect(),
        endpoints: endpoints.collect(),
        published: reply
            .ports
            .into_iter()
            .flatten()
            .filter_map(published_port)
            .collect(),
    })
}
