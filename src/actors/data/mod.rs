//! Actors of the data path. They run on worker threads. No handler takes longer than the
//! processing of a batch.

mod batches;
mod foreign_sources;
pub mod forwarder;
pub mod interface;
mod monitored_streams;
mod stream_rates;
mod worker_forwarders;
