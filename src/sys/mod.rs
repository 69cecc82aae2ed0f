//! System calls: the only room with unsafe code. Each block says why it is sound.
#![allow(unsafe_code)]

pub mod activation;
pub mod buffer;
pub mod fanout;
pub mod filter;
pub mod ifaddr;
pub mod limits;
pub mod memberships;
pub mod multicast;
pub mod netns;
pub mod packet;
pub mod poll;
pub mod receive;
pub mod ring;
pub mod spawn;
pub mod transmit;
