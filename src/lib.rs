//! `mcastor`: a multicast router in user space. This page is the map; ARCHITECTURE.md walks it.
//!
//! # The way of a packet
//!
//! ```text
//!  kernel        sys::filter    lets pass multicast that we did not send
//!     |          sys::receive   at low rates: packets one by one, into pooled buffers
//!     |          sys::ring      at high rates: blocks in memory shared with the kernel
//!     v
//!  capture       planes::packet::capture  whichever suits the rate (planes::packet::rate) -> pipeline::Batch
//!     |          actors::interface, on a worker thread
//!     v
//!  decide        pipeline::switch for each packet of the batch:
//!     |            forward::decide    (ingress of the Fib, flows, packet) -> Versions | DropReason:
//!     |                               one of the best rule, one of each proxy that hosts asked
//!     |            forward::finish   checksum finished, TTL set, in place
//!     |            forward::segment   UDP GSO cut into datagrams
//!     |            forward::loop_guard  stops what was forwarded a moment ago
//!     |            forward::translate   other source, group, port, IP version
//!     |          -> Slots, a list for each egress, and one Load: the bytes
//!     v
//!  Transmit      one message for each batch and egress, same thread: Arc<Load>, Vec<Slot>
//!     |
//!     v
//!  send          actors::forwarder
//!     |            pipeline::egress     EgressQueue: fragments, retries, counts
//!     |            sys::transmit      sendmmsg; the kernel writes the link header
//!     v
//!  kernel        the last forwarder drops the Load, and its memory is free again
//! ```
//!
//! # The way of a change
//!
//! ```text
//!  links          netlink            --LinksChanged--+
//!  add, join ...  control::server                    |
//!                 -> actors::questions ----ApplyChange-----+--> actors::routing: Rib, Links -> Fib
//!  reload         app: settings -> Rib ---Replace----+       |                   |
//!  (or SIGHUP)                                            Publish               SetJoins
//!                                                            v                   v
//!                                                   actors::supervisor       actors::joins
//!                                                   starts, swaps,       sys::memberships
//!                                                   stops
//! ```
//!
//! # The way of a report
//!
//! ```text
//!  host           IGMP or MLD, captured like any packet
//!     |           pipeline::switch -> Messages
//!     v
//!  actors::membership   wire::membership -> membership::Downstream, one an interface and IP version
//!     |                 -> queries back to the hosts
//!     v Wanted
//!  actors::routing      table::MembershipDatabase -> Fib, and membership::MembershipUnion -> actors::joins
//! ```
//!
//! # The arrows
//!
//! A room may use those to its left, and none to its right:
//!
//! ```text
//! model -> wire -> membership | table -> forward -> planes -> actors -> app -> cli
//! ```
//!
//! - [`sys`] is the only room with unsafe code. It knows [`model`] and [`wire`]. Planes reach it,
//!   and those that need sockets of their own: [`actors::links`], [`actors::joins`], [`app`],
//!   [`demo`], and `send` and `recv` of [`cli`].
//! - [`metrics`] knows [`model`] and the reasons of [`forward`]; actors count in it.
//! - [`settings`] becomes [`table::Rib`] in [`app`]; nothing else reads it.
//! - [`api`] is what is shown and what can be changed. [`control`] and [`http`] carry it; they stand
//!   beside the actors and reach them through [`actors::questions`] only.
//! - [`mnat`] is what is said to the server of multicast NAT, and what its mappings mean: pure but for
//!   its `client` and `files`. [`actors::mnat`] drives it; its routes go to routing.
//! - [`smcroute`] is what smcroute's users know: its file, which [`settings`] reads, its tables, and
//!   its socket, which stands beside [`control`] and goes through [`actors::questions`] likewise.
//!   `smcrouted` and `smcroutectl` are guises in [`cli`].
//! - [`streams`] and [`demo`] are for test streams, and are no part of the router.
//!
//! `model`, `wire`, `membership`, `table` and `forward` are pure: no socket, no clock, no actor.
//!
//! # What always holds
//!
//! - No message for each packet, no lock and no allocation for each packet. Messages carry batches.
//! - A batch stays on the thread that captured it.
//! - Packets are decided against an immutable [`table::Fib`]. Only routing makes one; only the
//!   supervisor puts one in force. A flow remembers its verdicts, and only within one snapshot.
//! - Bad settings and refused changes leave what is in force as it is.
//! - A packet is never copied, unless segmentation or fragmentation cuts it, its IP version
//!   changes, or it leaves in two versions.
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
pub mod docker;
pub mod forward;
pub mod http;
pub mod membership;
pub mod metrics;
pub mod mnat;
pub mod model;
pub mod pipeline;
pub mod planes;
pub mod settings;
pub mod smcroute;
pub mod streams;
pub mod sys;
pub mod table;
pub mod wire;
