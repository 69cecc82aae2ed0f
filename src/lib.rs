//! `mcastor`: a multicast router in user space.
pub mod cli;
pub mod forward;
pub mod metrics;
pub mod model;
pub mod planes;
pub mod streams;
pub mod sys;
pub mod table;
pub mod wire;
