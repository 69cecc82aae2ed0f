//! What smcroute's users know: its file, its socket, its tables.
//!
//! - [`conf`] reads `smcroute.conf`, [`line`](mod@line) a line of it; [`phyint`] tells which options an
//!   interface has; [`mod@convert`] writes what it means as TOML.
//! - [`wire`] is the socket's protocol, both ways; [`crate::frontend::smcroute`] answers it, [`show`] draws its
//!   tables.
//!
//! The module is pure. docs/smcroute.md tells where it differs from smcroute.

pub mod conf;
pub mod convert;
pub mod line;
pub mod phyint;

pub mod show;
pub mod wire;
