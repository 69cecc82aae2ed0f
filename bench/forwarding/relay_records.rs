//! A name server with an AMTRELAY record (RFC 8777) for the source of each flow.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mcastor::sys::netns::NetNs;

use crate::Outcome;

/// Length of the header of a message.
const HEADER: usize = 12;

/// The server. Dropping it ends it.
pub struct RelayRecords {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RelayRecords {
    /// Serves the relay that `relay_of` returns for a source.
    pub fn start(
        netns: &NetNs,
        address: SocketAddr,
        relay_of: impl Fn(Ipv4Addr) -> Ipv4Addr + Send + 'static,
    ) -> Outcome<Self> {
        let socket = netns.run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, client)) = socket.recv_from(&mut query) else {
                    continue;
                };
                if let Some(answer) = answer(&query[..len], &relay_of) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for RelayRecords {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns the answer to a question about the records of an IPv4 source.
fn answer(query: &[u8], relay_of: &impl Fn(Ipv4Addr) -> Ipv4Addr) -> Option<Vec<u8>> {
    let question = query.get(HEADER..)?;
    let name_len = question.iter().position(|byte| *byte == 0)? + 1;
    let question = question.get(..name_len + 4)?;
    let mut octets = [0; 4];
    let mut rest = question;
    for octet in octets.iter_mut().rev() {
        let (len, label) = rest.split_first()?;
        let (label, after) = label.split_at_checked(usize::from(*len))?;
        *octet = std::str::from_utf8(label).ok()?.parse().ok()?;
        rest = after;
    }
    let mut message = query[..2].to_vec();
    // A response without an error: one question, one answer.
    message.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    message.extend(question);
    // The name of the question, type 260, class IN, an hour. The data: precedence 10, no discovery
    // needed, an IPv4 address.
    message.extend([0xc0, HEADER as u8, 1, 4, 0, 1, 0, 0, 14, 16, 0, 6, 10, 0x81]);
    message.extend(relay_of(octets.into()).octets());
    Some(message)
}
