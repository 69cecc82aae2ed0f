//! Replaces the running process by a new one, without the loss of a packet.
//!
//! ```text
//!  this process (outgoing)                       the new process (incoming)
//!    starts it, with one end of a connection
//!                                         <-----   Hello: it has read its settings
//!    Offer, and its listening sockets      ----->
//!    Capture, and its sockets: for each    ----->
//!    Prepare                               ----->  opens sockets, joins groups, builds the snapshot
//!                                         <-----   Ready
//!    stops to read its captures, and sends
//!    what it has read
//!    Go, with the position of each capture ----->  reads the same captures
//!                                         <-----   Forwarding
//!    accepts no more clients
//!    Counters                              ----->  serves clients
//!                                         <-----   TookOver
//!    ends, without leaving groups
//! ```
//!
//! Packets that arrive between the two readers wait in the capture sockets, which both processes
//! have open. The kernel sends no leave, because the new process has joined all groups before the
//! former one closes its sockets. If anything fails before `Go`, this process ends the new one and
//! reads on.

mod connection;
mod incoming;
mod learned;
mod messages;
mod outgoing;

pub use incoming::Predecessor;
pub(super) use incoming::{Inheritance, joins_applied};
pub(super) use outgoing::Outgoing;
