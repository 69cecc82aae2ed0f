//! `mcastor`: a multicast router in user space. ARCHITECTURE.md explains this overview in detail.
//!
//! # Path of a packet
//!
//! ```text
//!  kernel        sys::filter    passes multicast that this router did not send
//!     |          sys::receive   low rates: single packets, into pooled buffers
//!     |          sys::ring      high rates: blocks in memory shared with the kernel
//!     v
//!  capture       planes::packet::capture  uses the source that suits the rate
//!     |                                   (planes::packet::rate) -> pipeline::Batch
//!     |          actors::data::interface, on a worker thread
//!     v
//!  decide        pipeline::switch, for each packet of the batch:
//!     |            forward::decide      (ingress of the Fib, flows, packet)
//!     |                                 -> variants of the packet | DropReason:
//!     |                                 one for the best rule, one for each proxy with members
//!     |            forward::finish      completes the checksum and sets the TTL, in place
//!     |            forward::segment     splits a UDP GSO packet into datagrams
//!     |            forward::loop_guard  drops packets that were forwarded a moment ago
//!     |            forward::translate   changes source, group, port or IP version
//!     |          -> a list of packets for each egress, and one shared buffer with their bytes
//!     v
//!  transmit      one message for each batch and egress, on the same thread
//!     |
//!     v
//!  send          actors::data::forwarder
//!     |            pipeline::egress     EgressQueue: fragments, retries, counts
//!     |            sys::transmit        sendmmsg; the kernel writes the link header
//!     v
//!  kernel        the last forwarder drops the shared buffer, which frees its memory
//! ```
//!
//! # Path of a configuration change
//!
//! ```text
//!  links          netlink           --LinksChanged--+
//!  add, join ...  frontend::control                 |
//!                 -> frontend::query --ApplyChange--+--> actors::control::routing: Rib, Links -> Fib
//!  reload         app: settings -> Rib              |       |                   |
//!  (or SIGHUP)                      --ReplaceRules--+    Publish             SetJoins
//!                                                           v                   v
//!                                                  actors::supervisor     actors::control::joins
//!                                                  starts, replaces,      sys::memberships
//!                                                  stops actors
//! ```
//!
//! # Path of a membership report
//!
//! ```text
//!  host                       IGMP or MLD, captured like any packet
//!     |                       pipeline::switch -> Messages
//!     v                       actors::data::interface sends MembershipMessages
//!  actors::control::membership  wire::membership -> membership::Downstream, per interface
//!     |                       and protocol -> queries to the hosts
//!     v
//!  actors::control::routing   table::MembershipDatabase -> Fib
//!                             membership::MembershipUnion -> actors::control::joins
//! ```
//!
//! # Dependencies
//!
//! A module may use the modules to its left, and none to its right:
//!
//! ```text
//! model -> wire -> membership -> amt | discovery | table -> forward | merge -> pipeline -> planes
//!       -> actors -> frontend -> app -> cli
//! ```
//!
//! - [`sys`] is the only module with unsafe code. It uses [`model`] and [`wire`]. Its users are the
//!   planes and the modules that need sockets of their own: [`actors::control::links`],
//!   [`actors::control::joins`], [`app`], [`demo`], and [`traffic`].
//! - [`metrics`] uses [`model`] and the drop reasons of [`forward`]. Actors update its counters.
//! - [`settings`] is converted to a [`table::Rib`] in [`app`]. No other module reads it.
//! - [`api`] declares the views and changes that clients can request. [`frontend`] serves them on
//!   the control socket, over HTTP and on the socket of smcroute, and reaches the actors only
//!   through [`frontend::query`].
//! - [`mnat`] holds the protocol of the multicast NAT server and the meaning of its mappings. It is
//!   free of I/O except for `client` and `files`. [`actors::integrations::mnat`] drives it and
//!   passes its routes to routing.
//! - [`amt`] holds gateways and relays of AMT as state machines. Their interfaces are no links of the
//!   kernel: [`planes::tunnel`] receives and sends their packets, and [`actors::integrations::amt`]
//!   drives them.
//! - [`discovery`] relays discovery protocols between links as a state machine, which
//!   [`actors::integrations::discovery`] drives.
//! - [`merge`] merges two paths of one stream. [`pipeline`] asks it about each packet of a merge.
//! - [`store`] keeps what the membership and mnat actors learned, for the next process.
//! - [`smcroute`] implements the interfaces of smcroute: its configuration file, which [`settings`]
//!   reads, its tables, and the messages of its socket. The commands `smcrouted` and `smcroutectl`
//!   are in [`cli`].
//! - [`igmpproxy`] converts the configuration file of igmpproxy to settings.
//! - [`probe`], [`traffic`] and [`demo`] generate and check test streams. The router does not use
//!   them.
//!
//! `model`, `wire`, `membership`, `table` and `forward` use no sockets, clocks or actors.
//!
//! # Invariants
//!
//! - No message, lock or allocation is made for a single packet. Messages carry batches.
//! - A batch stays on the thread that captured it.
//! - Packets are decided against an immutable [`table::Fib`]. Only routing builds one, and only the
//!   supervisor distributes it. A flow caches its decisions for the lifetime of one snapshot.
//! - Invalid settings and refused changes leave the active configuration unchanged.
//! - A packet is copied only when it is segmented or fragmented, when its IP version changes, when a
//!   merge holds it, or when it leaves in two variants.
//! - Each received packet is sent or counted under one [`forward::DropReason`] for each path.
//! - Counters live outside the actors, in [`metrics::Catalog`].
//! - Packets that this router sends carry its mark. Outgoing packets with it are not captured.
//! - Data messages use `try_send` and are refused when a mailbox is full. Only control messages use
//!   `do_send`, which ignores the limit.
//! - No input from a file, a socket or the network makes the process panic.

pub mod actors;
pub mod amt;
pub mod api;
pub mod app;
pub mod cli;
pub mod demo;
pub mod discovery;
pub mod docker;
pub mod doctor;
pub mod forward;
pub mod frontend;
pub mod igmpproxy;
pub mod membership;
pub mod merge;
pub mod metrics;
pub mod mnat;
pub mod mnat_server;
pub mod model;
pub mod pipeline;
pub mod planes;
pub mod probe;
pub mod settings;
pub mod smcroute;
pub mod store;
pub mod streams;
pub mod sys;
pub mod table;
pub mod traffic;
pub mod wire;
