//! The control socket, spoken to line by line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// One connection.
pub struct Control {
    reader: BufReader<UnixStream>,
}

impl Control {
    /// Connects.
    pub fn new(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(super::PATIENCE))?;
        let reader = BufReader::new(stream);
        Ok(Self { reader })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// The next line; empty where the other side hung up.
    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }

    /// A command and its result, or the error it was answered with.
    pub fn ask(&mut self, command: &Value) -> Result<Value, String> {
        let request = json!({ "version": 1, "command": command });
        let line = self
            .send(format!("{request}\n").as_bytes())
            .and_then(|()| self.line())
            .map_err(|e| format!("{command}: {e}"))?;
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("{line:?}: {e}"))?;
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer["result"].clone()),
        }
    }

    /// As [`Self::ask`]; an error is a failure.
    #[track_caller]
    pub fn must(&mut self, command: &Value) -> Value {
        self.ask(command)
            .unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// What `show` has of `what`.
    #[track_caller]
    pub fn show(&mut self, what: &str) -> Vec<Value> {
        let shown = self.must(&json!({ "show": what }));
        shown[what].as_array().expect("a list").clone()
    }
}
