//! The server of multicast NAT: `mcastor mnat-server`.
//!
//! ```text
//!  clients ─ TLS, HTTP/2 ─▶ front ─ requests ─▶ machine ─ transactions ─▶ store
//!                             ▲                   │                         │
//!                             └──── answers ◀─────┴──── committed ◀─────────┘
//! ```
//!
//! [`machine`], [`assignments`], [`slots`], [`pool`] and [`changes`] are pure: time and randomness
//! are arguments. An answer is sent when the store has committed the changes that it shows.

pub mod assignments;
pub mod certificates;
pub mod changes;
mod connection;
pub mod machine;
mod pacing;
pub mod pool;
mod request_body;
pub mod rest;
pub mod service;
mod site;
pub mod slots;
pub mod store;
pub mod tls;
