//! The actors on the simulated plane: packets cross, links come and go, actors die, and every
//! packet is in a counter. No kernel, no privileges.

mod faults;
mod faulty;
mod members;
mod packets;
mod router;
