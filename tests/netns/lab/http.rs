//! A minimal HTTP client: one GET request, HTTP/1.0. A reader of event streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

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

/// A stream of server-sent events, whose data are merge patches (RFC 7396).
pub struct Events {
    reader: BufReader<TcpStream>,
    /// Status line and header lines in lower case.
    pub head: String,
    /// The document after the events that were read.
    pub state: Value,
}

impl Events {
    /// Opens the stream at `path` of `addr` from inside `ns`.
    #[track_caller]
    pub fn open(ns: &Ns, addr: SocketAddr, path: &str) -> Self {
        let stream = ns.enter(|| TcpStream::connect(addr)).expect("a connection");
        let timeout = Some(super::TIMEOUT);
        stream.set_read_timeout(timeout).expect("a timeout");
        let mut reader = BufReader::new(stream);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n");
        let sent = reader.get_mut().write_all(request.as_bytes());
        sent.expect("a request");
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a head") > 0, "{head}");
        }
        Self {
            reader,
            head: head.to_lowercase(),
            state: json!({}),
        }
    }

    /// Returns the data of the next event, and applies them to the state.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            let read = self.reader.read_line(&mut line).expect("an event");
            assert!(read > 0, "the stream has ended");
            // Other lines are comments, and the sizes of chunks.
            if let Some(data) = line.strip_prefix("data: ") {
                let patch: Value = serde_json::from_str(data).expect("JSON");
                apply_merge_patch(&mut self.state, &patch);
                return patch;
            }
        }
    }

    /// Reads events until the state fulfils a condition.
    #[track_caller]
    pub fn read_until(&mut self, what: &str, condition: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + super::TIMEOUT;
        while !condition(&self.state) {
            assert!(Instant::now() < deadline, "not {what}: {:#}", self.state);
            self.next();
        }
    }
}

/// Applies a merge patch as RFC 7396 section 2 defines it.
fn apply_merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        let target = target.as_object_mut().expect("an object");
        match value {
            Value::Null => _ = target.remove(name),
            value => {
                let inner = target.entry(name.clone()).or_insert(Value::Null);
                apply_merge_patch(inner, value);
            }
        }
    }
}
