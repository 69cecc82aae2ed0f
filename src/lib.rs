//! `mcastor`: a multicast router in user space. This page is the map; ARCHITECTURE.md walks it.
//!
//! # The way of a packet
//!
//! ```text
//!  kernel        sys::filter    lets pass multicast that we did not send
//!     |          sys::ring      Block: frames in memory shared with the kernel
//!     v
//!  capture       planes::packet Block -> planes::Batch
//!     |          actors::interface, on a worker thread
//!     v
//!  decide        planes::switch for each packet of the batch:
//!     |            forward::decide    (ingress of the Fib, packet) -> Entry, TTL | DropReason
//!     |            forward::rewrite   checksum finished, TTL set, in place
//!     |            forward::segment   UDP GSO cut into datagrams
//!     |          -> Slots, a list for each egress, and one Load: the bytes
//!     v
//!  Transmit      one message for each batch and egress, same thread: Arc<Load>, Vec<Slot>
//!     |
//!     v
//!  send          actors::forwarder
//!     |            planes::egress     EgressQueue: fragments, retries, counts
//!     |            sys::transmit      sendmmsg; the kernel writes the link header
//!     v
//!  kernel        the last forwarder drops the Load, and the Block is the kernel's again
//! ```
//!
//! # The arrows
//!
//! A room may use those to its left, and none to its right:
//!
//! ```text
//! model -> wire -> table -> forward -> planes -> actors -> app -> cli
//! ```
//!
//! - [`sys`] is the only room with unsafe code. It knows [`model`] and [`wire`]. Planes reach it,
//!   and those that need sockets of their own: [`app`], [`demo`], and `send` and `recv` of [`cli`].
//! - [`metrics`] knows [`model`] and the reasons of [`forward`]; actors count in it.
//! - [`settings`] becomes [`table::Rib`] in [`app`]; nothing else reads it.
//! - [`api`] is what is shown. [`control`] and [`http`] carry it and stand beside the actors.
//! - [`streams`] and [`demo`] are for test streams, and are no part of the router.
//!
//! `model`, `wire`, `table` and `forward` are pure: no socket, no clock, no actor.
//!
//! # What always holds
//!
//! - No message for each packet, no lock and no allocation for each packet. Messages carry batches.
//! - A batch stays on the thread that captured it.
//! - Packets are decided against an immutable [`table::Fib`]. Only routing makes one; only the
//!   keeper puts one in force.
//! - A packet is never copied, unless segmentation or fragmentation cuts it.
//! - A packet that came in leaves or is counted under one [`forward::DropReason`] for each path.
//! - Counters live outside the actors: [`metrics::Catalog`].
//! - What we send bears our mark. Outgoing with the mark is ours and never taken in again.
//! - Data is offered (`try_send`, refused when full); only control facts are pressed (`do_send`).
//! - No input, of file, socket or wire, makes the process panic.

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
