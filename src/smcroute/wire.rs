//! The protocol of smcroute's socket, both ways.
//!
//! ```text
//! offset 0  u64  length of the whole command
//!        8  u16  command: a r j l F H k s S J
//!       10  u16  number of strings
//!       16       the strings, each ended by NUL, then one more NUL
//! ```
//!
//! Numbers are in the byte order of the machine. The answer is an error text, or what is
//! shown, up to a NUL; nothing before the NUL is success.

/// The longest command, in bytes.
pub const LONGEST_COMMAND: usize = 1024;

/// Bytes before the strings.
pub const HEADER: usize = 16;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Add a route.
    Add,
    /// Remove a route, or egresses of one.
    Remove,
    /// Join a group.
    Join,
    /// Leave a group.
    Leave,
    /// End the flows.
    Flush,
    /// Read the file again.
    Reload,
    /// End the daemon.
    Kill,
    /// Show something.
    Show,
    /// Show it in detail.
    ShowDetail,
    /// Show it as JSON.
    ShowJson,
}

const LETTERS: [(u8, Verb); 10] = [
    (b'a', Verb::Add),
    (b'r', Verb::Remove),
    (b'j', Verb::Join),
    (b'l', Verb::Leave),
    (b'F', Verb::Flush),
    (b'H', Verb::Reload),
    (b'k', Verb::Kill),
    (b's', Verb::Show),
    (b'S', Verb::ShowDetail),
    (b'J', Verb::ShowJson),
];

impl Verb {
    fn letter(self) -> u16 {
        let of = |(letter, verb): &(u8, Self)| (*verb == self).then_some(u16::from(*letter));
        LETTERS.iter().find_map(of).unwrap_or_default()
    }
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmcrouteCommand {
    /// What.
    pub verb: Verb,
    /// With what.
    pub arguments: Vec<String>,
}

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmcrouteWireError {
    /// The length is impossible.
    #[error("a command has {HEADER} to {LONGEST_COMMAND} bytes, not {0}")]
    Length(u64),
    /// The connection ended inside a command.
    #[error("the command ends after {0} bytes")]
    CutShort(usize),
    /// The strings do not fill the command as its header says.
    #[error("the command says {said} strings and holds {held}")]
    Strings {
        /// What the header says.
        said: u16,
        /// What there is.
        held: usize,
    },
    /// A string is not text.
    #[error("an argument is not UTF-8")]
    NotText,
    /// No such command.
    #[error("Unknown or malformed IPC message '{}' from client.", .0.escape_ascii())]
    Unknown(u8),
    /// A command too long to be sent.
    #[error("the command is {0} bytes long; at most {LONGEST_COMMAND} can be sent")]
    TooLong(usize),
}

/// How long the command at the start of `bytes` is; `None` while too few are there to tell.
///
/// # Errors
/// A length that no command has.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, SmcrouteWireError> {
    let Some(length) = bytes.get(..8).and_then(|b| b.try_into().ok()) else {
        return Ok(None);
    };
    let length = u64::from_ne_bytes(length);
    match usize::try_from(length) {
        Ok(n) if (HEADER..=LONGEST_COMMAND).contains(&n) => Ok(Some(n)),
        _ => Err(SmcrouteWireError::Length(length)),
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    two.map_or(0, u16::from_ne_bytes)
}

impl SmcrouteCommand {
    /// Reads one whole command.
    ///
    /// # Errors
    /// What is wrong with it; nothing of it may be carried out.
    pub fn read(bytes: &[u8]) -> Result<Self, SmcrouteWireError> {
        match length(bytes)? {
            Some(n) if n == bytes.len() => {}
            _ => return Err(SmcrouteWireError::CutShort(bytes.len())),
        }
        let (letter, said) = (number(bytes, 8), number(bytes, 10));
        let known = LETTERS.iter().find(|(l, _)| u16::from(*l) == letter);
        let verb = match known {
            Some((_, verb)) => *verb,
            None => return Err(SmcrouteWireError::Unknown(letter as u8)),
        };
        let mut strings: Vec<&[u8]> = bytes[HEADER..].split(|b| *b == 0).collect();
        // Each string ends with NUL and the list with another: two empty pieces at the end.
        let held = strings.len().saturating_sub(2);
        let well = strings.len() >= 2 && strings.iter().skip(held).all(|s| s.is_empty());
        if !well || held != usize::from(said) {
            return Err(SmcrouteWireError::Strings { said, held });
        }
        strings.truncate(held);
        let text = |s: &&[u8]| std::str::from_utf8(s).map(String::from);
        let arguments = strings.iter().map(text).collect::<Result<_, _>>();
        Ok(Self {
            verb,
            arguments: arguments.map_err(|_| SmcrouteWireError::NotText)?,
        })
    }

    /// The bytes of the command.
    ///
    /// # Errors
    /// It is longer than a command may be.
    pub fn write(&self) -> Result<Vec<u8>, SmcrouteWireError> {
        let text: usize = self.arguments.iter().map(|a| a.len() + 1).sum();
        let length = HEADER + text + 1;
        if length > LONGEST_COMMAND {
            return Err(SmcrouteWireError::TooLong(length));
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend((length as u64).to_ne_bytes());
        bytes.extend(self.verb.letter().to_ne_bytes());
        bytes.extend((self.arguments.len() as u16).to_ne_bytes());
        bytes.extend([0; 4]);
        for argument in &self.arguments {
            bytes.extend(argument.bytes().filter(|b| *b != 0));
            bytes.push(0);
        }
        bytes.push(0);
        Ok(bytes)
    }
}

/// A line of what is shown, as its last character tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmcrouteReplyLine<'a> {
    /// The title of a table.
    Title(&'a str),
    /// The heading of its columns.
    Heading(&'a str),
    /// Anything else.
    Plain(&'a str),
}

/// Tells titles and headings from the rest.
pub fn shown(line: &str) -> SmcrouteReplyLine<'_> {
    match (line.strip_suffix('_'), line.strip_suffix('=')) {
        (Some(title), _) => SmcrouteReplyLine::Title(title),
        (_, Some(heading)) => SmcrouteReplyLine::Heading(heading),
        _ => SmcrouteReplyLine::Plain(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(verb: Verb, arguments: &[&str]) -> SmcrouteCommand {
        SmcrouteCommand {
            verb,
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }
    }

    /// As Debian's smcroutectl 2.5.6 writes them on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn commands_are_those_of_smcroutectl() {
        for (command, bytes) in [
            (
                command(Verb::Show, &["routes"]),
                &b"\x18\0\0\0\0\0\0\0s\0\x01\0\0\0\0\0routes\0\0"[..],
            ),
            (
                command(Verb::Flush, &[]),
                b"\x11\0\0\0\0\0\0\0F\0\0\0\0\0\0\0\0",
            ),
            (
                command(Verb::Leave, &["eth0", "1.2.3.4", "225.1.2.3"]),
                b"\x28\0\0\0\0\0\0\0l\0\x03\0\0\0\0\0eth0\x001.2.3.4\x00225.1.2.3\0\0",
            ),
        ] {
            assert_eq!(command.write().as_deref(), Ok(bytes));
            assert_eq!(SmcrouteCommand::read(bytes).as_ref(), Ok(&command));
        }
    }

    #[test]
    fn lies_are_refused() {
        let good = command(Verb::Join, &["eth0", "225.1.2.3"]).write().unwrap();
        for cut in 0..good.len() {
            assert!(SmcrouteCommand::read(&good[..cut]).is_err(), "{cut}");
        }
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            SmcrouteCommand::read(&bad).unwrap_err()
        };
        assert_eq!(with(8, b'z'), SmcrouteWireError::Unknown(b'z'));
        for count in [0, 1, 3, 255] {
            let said = count.into();
            assert_eq!(
                with(10, count),
                SmcrouteWireError::Strings { said, held: 2 }
            );
        }
        assert_eq!(
            with(7, 0xff),
            SmcrouteWireError::Length(u64::from_ne_bytes(if cfg!(target_endian = "little") {
                [good.len() as u8, 0, 0, 0, 0, 0, 0, 0xff]
            } else {
                [0, 0, 0, 0, 0, 0, 0, 0xff]
            }))
        );
        assert_eq!(
            with(good.len() - 1, b'x'),
            SmcrouteWireError::Strings { said: 2, held: 1 }
        );
        assert_eq!(with(17, 0xff), SmcrouteWireError::NotText);
        let long = command(Verb::Add, &["eth0"; 300]);
        assert_eq!(long.write(), Err(SmcrouteWireError::TooLong(1517)));
    }
}
