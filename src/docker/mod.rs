//! Names that a container engine gives: which interface of this host is meant by
//! `container:NAME`, `network:NAME` or `label:KEY=VALUE`.
//!
//! - `network:NAME` is the bridge of a network.
//! - `container:NAME` is the host's end of each cable (veth) that leads into a container.
//! - `label:KEY=VALUE` is that of each container with the label.
//!
//! [`client`] asks the engine over its socket, [`peers`] asks the kernel what is at the other
//! end of a cable, [`names`] puts the two together and is pure.

pub mod client;
pub mod names;
pub mod peers;

pub use client::{Client, EngineError};
pub use names::{Container, Endpoint, Engine, Mac, Network, Peer};
