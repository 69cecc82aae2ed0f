//! Actors of the data path. They run on worker threads and answer no questions that take longer
//! than a batch.

pub mod forwarder;
pub mod interface;
