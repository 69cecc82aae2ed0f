//! How users and other programs query and control the router: the control socket, HTTP, and the
//! socket of smcroute. All three use [`query`].

mod background;
pub mod control;
mod discovery_views;
mod drop_views;
pub mod explain;
pub mod flow_views;
pub mod group_views;
pub mod http;
mod ingress_names;
pub mod query;
pub mod smcroute;
pub mod socket_server;
mod stream_views;
mod trace;
pub mod unix_socket;
pub mod views;
