//! `mcastor`: a multicast router in user space.
pub mod actors;
pub mod api;
pub mod app;
pub mod cli;
pub mod control;
pub mod demo;
pub mod forward;
pub mod http;
pub mod metrics;
pub mod model;
pub mod planes;
pub mod settings;
pub mod streams;
pub mod sys;
pub mod table;
pub mod wire;
