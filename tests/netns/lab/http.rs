//! A minimal HTTP client: one GET request, HTTP/1.0.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::ns::Ns;

/// A response.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines in lower case.
    pub head: String,
    /// Body as text.
    pub body: String,
}

/// Sends a GET request for `path` to `addr` from inside `ns`.
pub fn get(ns: &Ns, addr: SocketAddr, path: &str) -> std::io::Result<Answer> {
    request(
        ns,
        addr,
        &format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n"),
    )
}

/// Sends the text of a request to `addr` from inside `ns`.
pub fn request(ns: &Ns, addr: SocketAddr, text: &str) -> std::io::Result<Answer> {
    ns.enter(|| {
        let timeout = Duration::from_secs(5);
        let stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        exchange(stream, text)
    })
}

/// Sends the text of a request and reads until the server closes the connection.
pub fn exchange(mut stream: impl Read + Write, text: &str) -> std::io::Result<Answer> {
    stream.write_all(text.as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    Ok(Answer {
        status,
        head: head.to_lowercase(),
        body: body.into(),
    })
}
