//! Tests of [`Downstream`](super::Downstream) against the tables and rules of RFC 9776 and
//! RFC 9777.
//!
//! Source `a` is 10.9.0.1 or 2001:db8::a:1, source `b` is the next address, and so on. The group
//! is `G`. With the default timers, the group membership interval is 270 s and the last member
//! query time is 2 s.

mod virtual_link;

mod compatibility;
mod election;
mod host_model;
mod leaving;
mod limits;
mod tables;
