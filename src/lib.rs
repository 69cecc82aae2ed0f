//! `mcastor`: a multicast router in user space.
pub mod model;
