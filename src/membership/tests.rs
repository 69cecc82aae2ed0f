//! Tests of [`Downstream`](super::Downstream) and [`Host`](super::Host) against the tables and
//! rules of RFC 9776 and RFC 9777.
//!
//! Source `a` is 10.9.0.1 or 2001:db8::a:1, source `b` is the next address, and so on. The group
//! is `G`. With the default timers, the group membership interval is 270 s and the last member
//! query time is 2 s.

mod virtual_host;
mod virtual_link;

mod compatibility;
mod election;
mod host_answers;
mod host_changes;
mod host_model;
mod host_of_downstream;
mod host_versions;
mod leaving;
mod limits;
mod restart;
mod tables;
