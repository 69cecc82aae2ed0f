//! Actors that follow other programs: a container engine and an MNAT server.

pub mod docker;
pub mod mnat;
