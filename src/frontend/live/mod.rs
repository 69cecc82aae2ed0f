//! What `/api/v1/events` reports: the state of a view as a JSON document, and once a second what has
//! changed in it.
//!
//! ```text
//! feed: reads the tables that a client watches, once for all clients
//!     -> rates: per second, from the counters of the reading before -> frame: all of it
//!     -> stream, one for each client: its page of the frame -> merge_patch: what has changed
//! ```
//!
//! Without a client, nothing is read. A client that reads slowly skips frames.

mod feed;
mod frame;
mod merge_patch;
mod rates;
mod stream;
mod table;

pub use feed::Feed;
pub use stream::EventStream;
