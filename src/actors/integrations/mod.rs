//! Actors that follow other programs: a container engine, an MNAT server, AMT
//! relays and gateways.

pub mod amt;
pub mod discovery;
pub mod docker;
pub mod mnat;
pub mod streams;
pub mod webhook;
