//! A client of the control socket, which exchanges lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// One connection.
pub struct Control {
    reader: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the socket at `path`.
    pub fn new(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(super::TIMEOUT))?;
        let reader = BufReader::new(stream);
        Ok(Self { reader })
    }

    /// Sends raw bytes.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads the next line; it is empty after the peer closed the connection.
    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }

    /// Sends a command and returns its result, or the error of the answer.
    pub fn request(&mut self, command: &Value) -> Result<Value, String> {
        let message = json!({ "version": 1, "command": command });
        let line = self
            .send(format!("{message}\n").as_bytes())
            .and_then(|()| self.line())
            .map_err(|e| format!("{command}: {e}"))?;
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("{line:?}: {e}"))?;
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// As [`Self::request`]; panics on an error.
    #[track_caller]
    pub fn expect_ok(&mut self, command: &Value) -> Value {
        self.request(command)
            .unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// Returns the rows of `show <table>`.
    #[track_caller]
    pub fn show(&mut self, table: &str) -> Vec<Value> {
        let shown = self.expect_ok(&json!({ "show": table }));
        shown[table].as_array().expect("a list").clone()
    }
}
