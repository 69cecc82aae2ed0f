//! Compatibility with smcroute: its configuration file, its control protocol and its tables.
//!
//! - [`conf`] parses `smcroute.conf`, and [`line`](mod@line) parses one line. [`phyint`] determines
//!   the options of each interface. [`mod@convert`] converts the configuration to TOML.
//! - [`wire`] encodes and decodes the commands of the control socket, and
//!   [`crate::frontend::smcroute`] executes them. [`show`] formats the tables of `show`.
//!
//! The modules do no I/O. docs/smcroute.md lists the differences from smcroute.

pub mod conf;
pub mod convert;
pub mod line;
pub mod phyint;
pub mod show;
pub mod toml_text;
pub mod wire;
