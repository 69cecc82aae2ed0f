//! Sockets of the test streams: the sender and the receiver behind `mcastor send`, `mcastor recv`
//! and `mcastor demo`.
//!
//! The option types derive their command-line arguments, so that each default and range is defined
//! once. The packet format and the statistics are in [`probe`](crate::probe).

pub mod receive;
pub mod send;
pub mod stream;

pub use receive::{ReceiveEvent, ReceiveOptions, ReceiveReport, receive, receive_with};
pub use send::{SendOptions, SendReport, send, send_with};
pub use stream::StreamOptions;
