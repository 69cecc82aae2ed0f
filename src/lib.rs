//! `mcastor`: a multicast router in user space.
pub mod cli;
pub mod model;
pub mod settings;
