//! Positions in the tables of a [`Fib`](super::Fib), used as identifiers.

/// Position of an egress in [`Fib::egresses`](super::Fib::egresses).
pub type EgressId = u32;

/// Position of an entry in [`Fib::entries`](super::Fib::entries).
pub type EntryId = u32;

/// Position of a path in [`Fib::paths`](super::Fib::paths).
pub type PathId = u32;

/// Position of a downstream interface in [`Fib::downstreams`](super::Fib::downstreams).
pub type DownstreamId = u32;
