//! The actors on the simulated plane: forwarding, changes of links, restarts of actors, and
//! counters for every packet. Needs no privileges.

mod faults;
mod faulty;
mod members;
mod packets;
mod router;
