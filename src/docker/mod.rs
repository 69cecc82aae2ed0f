//! Interface aliases from a container engine: resolves `container:NAME`, `network:NAME` and
//! `label:KEY=VALUE` to interfaces of this host.
//!
//! - `network:NAME` is the bridge of a network.
//! - `container:NAME` is the host end of each veth pair that leads into the container.
//! - `label:KEY=VALUE` is the same for each container with the label.
//!
//! [`engine_client`] queries the engine over its socket, and [`podman`] what only Podman's own API
//! has. [`veth_peers`] queries the kernel for the
//! other ends of veth pairs. [`aliases`] combines both and does no I/O. [`network_exit`] says where
//! packets of a network leave the host.

pub mod aliases;
pub mod engine_client;
pub mod network_exit;
pub mod podman;
pub mod veth_peers;

pub use aliases::{
    Container, Endpoint, EngineNetwork, EngineState, HostInterfaces, MacAddr, VethPeer,
};
pub use engine_client::{EngineClient, EngineError};
pub use network_exit::{NetworkExit, NetworkExitError};
pub use podman::PodmanError;
