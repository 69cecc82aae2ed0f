//! System calls. This is the only module with `unsafe` code; a `SAFETY:` comment justifies each
//! block.
#![allow(unsafe_code)]

pub mod activation;
pub mod boot_clock;
pub mod bpf_burst;
pub mod buffer;
pub mod burst_limit;
pub mod capabilities;
pub mod confinement;
pub mod datagram;
pub mod fanout;
pub mod files;
pub mod filter;
pub mod forced_versions;
pub mod group_filter;
pub mod host_groups;
pub mod ifaddr;
pub mod ingress_claims;
pub mod kernel_release;
pub mod limits;
pub mod link_properties;
pub mod link_sender;
pub mod membership_keeper;
pub mod memberships;
pub mod memory;
mod message_batch;
pub mod message_socket;
pub mod multicast;
mod netlink;
pub mod netns;
pub mod off_thread;
pub mod offload;
pub mod packet;
pub mod poll;
pub mod port_reservation;
pub mod privileges;
pub mod process_usage;
pub mod receive;
pub mod ring;
pub mod router_processes;
mod shared_mapping;
pub mod spawn;
pub mod thread_priority;
pub mod transmit;
pub mod upgrade_launcher;
