//! Where packets leave this host that a container sends beyond its network. Does no I/O.

use super::aliases::{EngineNetwork, EngineState};
use crate::model::IfName;

/// Where packets leave that a container sends beyond its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkExit {
    /// The host forwards them by its own routes, and translates their source to its own.
    HostRoutes,
    /// They leave on this interface: the parent of a macvlan, or the bridge of a network that leads
    /// nowhere else.
    Interface(IfName),
}

/// Why the exit of a network is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkExitError {
    /// The engine has no network of this name.
    #[error("the container engine has no network {name}; it has {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The names of its networks.
        known: String,
    },
    /// Its packets leave on no interface of this host that is known.
    #[error("packets of a network with the driver {driver} leave on no known interface here")]
    NoInterface {
        /// The driver.
        driver: String,
    },
}

impl NetworkExit {
    /// Returns where packets leave that a container on a network of the engine sends beyond it.
    ///
    /// # Errors
    /// There is no such network, or they leave on no known interface.
    pub fn of(engine: &EngineState, network: &str) -> Result<Self, NetworkExitError> {
        let mut networks = engine.networks.iter();
        let Some(found) = networks.find(|n| n.is(network)) else {
            let known = engine.networks.iter().flat_map(|n| &n.names);
            let known: Vec<&str> = known.map(String::as_str).collect();
            return Err(NetworkExitError::Unknown {
                name: network.into(),
                known: known.join(", "),
            });
        };
        let EngineNetwork {
            driver,
            bridge,
            parent,
            is_internal,
            ..
        } = found;
        let interface = match (driver.as_str(), is_internal) {
            ("host", _) | ("bridge", false) => return Ok(Self::HostRoutes),
            ("bridge", true) => bridge,
            ("macvlan" | "ipvlan", _) => parent,
            _ => &None,
        };
        let driver = driver.clone();
        let interface = interface.clone().map(Self::Interface);
        interface.ok_or(NetworkExitError::NoInterface { driver })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_follows_from_the_driver() {
        let network = |driver: &str, is_internal| EngineNetwork {
            id: format!("id-{driver}-{is_internal}"),
            names: vec![format!("{driver}-{is_internal}")],
            driver: driver.into(),
            bridge: (driver == "bridge").then(|| "br-1".parse().unwrap()),
            parent: (driver == "macvlan").then(|| "eth1".parse().unwrap()),
            is_internal,
        };
        let networks = [
            network("bridge", false),
            network("bridge", true),
            network("macvlan", false),
            network("ipvlan", false),
            network("host", false),
            network("overlay", false),
        ];
        let engine = EngineState {
            networks: networks.into(),
            ..EngineState::default()
        };
        let on = |name: &str| Ok(NetworkExit::Interface(name.parse().unwrap()));
        let none = |driver: &str| {
            let driver = driver.into();
            Err(NetworkExitError::NoInterface { driver })
        };
        for (name, exit) in [
            ("bridge-false", Ok(NetworkExit::HostRoutes)),
            ("id-bridge-false", Ok(NetworkExit::HostRoutes)),
            ("bridge-true", on("br-1")),
            ("macvlan-false", on("eth1")),
            ("ipvlan-false", none("ipvlan")),
            ("host-false", Ok(NetworkExit::HostRoutes)),
            ("overlay-false", none("overlay")),
        ] {
            assert_eq!(NetworkExit::of(&engine, name), exit, "{name}");
        }
        let error = NetworkExit::of(&engine, "amt").unwrap_err().to_string();
        assert!(
            error.contains("no network amt; it has bridge-false, "),
            "{error}"
        );
    }
}
