//! Sockets of the test streams: the sender and the receiver behind `mcastor send`, `mcastor recv`
//! and `mcastor demo`.
//!
//! The option types derive their command-line arguments, so that each default and range is defined
//! once. The packet format and the statistics are in [`probe`](crate::probe).

pub mod capture_file;
pub mod group_capture;
pub mod play;
pub mod receive;
pub mod receive_rtp;
pub mod rtp_stats;
pub mod send;
pub mod send_rtp;
pub mod stream;

pub use group_capture::GroupCapture;
pub use play::{PlayOptions, PlayReport, play};
pub use receive::{ReceiveEvent, ReceiveOptions, ReceiveReport, receive, receive_with};
pub use receive_rtp::{RtpReceiveReport, receive_rtp};
pub use rtp_stats::{RtpReceiverStats, RtpStreamReport};
pub use send::{SendOptions, SendReport, send, send_with};
pub use stream::StreamOptions;
