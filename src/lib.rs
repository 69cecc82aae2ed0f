//! `mcastor`: a multicast router in user space.
pub mod forward;
pub mod model;
pub mod table;
pub mod wire;
