//! A name server with a fixed list of records, over UDP.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ns::Ns;

const CNAME: u16 = 5;

/// A record: its type and its data.
#[derive(Clone)]
pub struct DnsRecord {
    kind: u16,
    data: Vec<u8>,
}

impl DnsRecord {
    /// Returns a record with this data.
    pub fn new(kind: u16, data: Vec<u8>) -> Self {
        Self { kind, data }
    }

    /// Returns an alias of a name.
    pub fn cname(name: &str) -> Self {
        Self::new(CNAME, encoded(name))
    }
}

/// The server. It ends when it is dropped.
pub struct DnsServer {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts to serve records, by name, at an address of a namespace.
    pub fn start(ns: &Ns, address: &str, records: Vec<(&str, DnsRecord)>) -> Self {
        let socket = ns.enter(|| UdpSocket::bind(address)).expect("port 53");
        let timeout = Some(Duration::from_millis(50));
        socket.set_read_timeout(timeout).expect("a timeout");
        let own = |(name, record): (&str, DnsRecord)| (name.to_owned(), record);
        let records: Vec<(String, DnsRecord)> = records.into_iter().map(own).collect();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = is_stopped.clone();
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Ordering::Acquire) {
                let Ok((len, client)) = socket.recv_from(&mut query) else {
                    continue;
                };
                if let Some(answer) = answer(&query[..len], &records) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self {
            is_stopped,
            thread: Some(thread),
        }
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns a name as labels.
fn encoded(name: &str) -> Vec<u8> {
    let mut labels = Vec::new();
    for label in name.split('.') {
        labels.push(label.len() as u8);
        labels.extend(label.as_bytes());
    }
    labels.push(0);
    labels
}

/// Returns the answer to a query, with the records behind a CNAME.
fn answer(query: &[u8], records: &[(String, DnsRecord)]) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let name_len = question.iter().position(|byte| *byte == 0)? + 1;
    let kind = u16::from_be_bytes([*question.get(name_len)?, *question.get(name_len + 1)?]);
    let question = question.get(..name_len + 4)?;
    let mut name = question[..name_len].to_ascii_lowercase();
    let mut answers = Vec::new();
    let mut exists = false;
    loop {
        let of_name = records.iter().filter(|(n, _)| encoded(n) == name);
        let of_name: Vec<&DnsRecord> = of_name.map(|(_, record)| record).collect();
        exists |= !of_name.is_empty();
        let found = of_name.iter().filter(|r| r.kind == kind || r.kind == CNAME);
        answers.extend(found.map(|record| (name.clone(), (*record).clone())));
        match of_name.iter().find(|r| r.kind == CNAME && kind != CNAME) {
            Some(alias) => name = alias.data.clone(),
            None => break,
        }
    }
    let code = if exists { 0 } else { 3 };
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80 | code, 0, 1]);
    message.extend((answers.len() as u16).to_be_bytes());
    message.extend([0, 0, 0, 0]);
    message.extend(question);
    for (name, record) in answers {
        message.extend(name);
        message.extend(record.kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend((record.data.len() as u16).to_be_bytes());
        message.extend(record.data);
    }
    Some(message)
}
