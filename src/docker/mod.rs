//! Names that a container engine gives: which interface of this host is meant by
//! `container:NAME`, `network:NAME` or `label:KEY=VALUE`.
//!
//! - `network:NAME` is the bridge of a network.
//! - `container:NAME` is the host's end of each cable (veth) that leads into a container.
//! - `label:KEY=VALUE` is that of each container with the label.
//!
//! [`engine_client`] queries the engine over its socket, [`veth_peers`] queries the kernel what is at the other
//! end of a cable, [`aliases`] puts the two together and is pure.

pub mod aliases;
pub mod engine_client;
pub mod veth_peers;

pub use aliases::{Container, Endpoint, EngineNetwork, EngineState, MacAddr, VethPeer};
pub use engine_client::{EngineClient, EngineError};
