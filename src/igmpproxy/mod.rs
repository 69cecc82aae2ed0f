//! `igmpproxy.conf`, the configuration of igmpproxy, and its conversion to TOML settings.
//!
//! [`conf`] parses the file, and [`convert`](mod@convert) writes the settings. The modules do no
//! I/O. docs/proxy.md describes the conversion.

pub mod conf;
pub mod convert;
