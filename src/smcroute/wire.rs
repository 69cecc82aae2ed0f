//! The protocol of smcroute's control socket: encoding and decoding of commands.
//!
//! ```text
//! offset 0  u64  length of the command, including this header
//!        8  u16  command: a r j l F H k s S J
//!       10  u16  number of strings
//!       16       the strings, each terminated by NUL, then one more NUL
//! ```
//!
//! Numbers have the byte order of the machine. The reply is text up to a NUL: the output of a
//! `show` command, or an error. An empty reply means success.

/// Maximum length of a command, in bytes.
pub const MAX_COMMAND_LEN: usize = 1024;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 16;

/// The kind of a command.
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
    /// Remove the flows.
    Flush,
    /// Reload the configuration file.
    Reload,
    /// Terminate the daemon.
    Kill,
    /// Show a table.
    Show,
    /// Show a table with details.
    ShowDetail,
    /// Show a table as JSON.
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
        let matching = |(letter, verb): &(u8, Self)| (*verb == self).then_some(u16::from(*letter));
        LETTERS.iter().find_map(matching).unwrap_or_default()
    }
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmcrouteCommand {
    /// The kind.
    pub verb: Verb,
    /// The arguments.
    pub arguments: Vec<String>,
}

/// The reason why bytes are not a valid command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmcrouteWireError {
    /// The length is not that of any command.
    #[error("a command has {HEADER_LEN} to {MAX_COMMAND_LEN} bytes, not {0}")]
    Length(u64),
    /// The connection ended inside a command.
    #[error("the command ends after {0} bytes")]
    Truncated(usize),
    /// The number of strings differs from the number in the header.
    #[error("the command announces {announced} strings and contains {found}")]
    Strings {
        /// The number in the header.
        announced: u16,
        /// The number of strings in the command.
        found: usize,
    },
    /// A string is not UTF-8.
    #[error("an argument is not UTF-8")]
    NotText,
    /// The command is unknown. The text is that of smcroute.
    #[error("Unknown or malformed IPC message '{}' from client.", .0.escape_ascii())]
    Unknown(u8),
    /// The command is longer than [`MAX_COMMAND_LEN`].
    #[error("the command is {0} bytes long; at most {MAX_COMMAND_LEN} can be sent")]
    TooLong(usize),
}

/// Returns the length of the command at the start of `bytes`, or `None` if its length field is not
/// complete.
///
/// # Errors
/// Returns an error if the length is not that of any command.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, SmcrouteWireError> {
    let Some(length) = bytes.get(..8).and_then(|b| b.try_into().ok()) else {
        return Ok(None);
    };
    let length = u64::from_ne_bytes(length);
    match usize::try_from(length) {
        Ok(n) if (HEADER_LEN..=MAX_COMMAND_LEN).contains(&n) => Ok(Some(n)),
        _ => Err(SmcrouteWireError::Length(length)),
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    two.map_or(0, u16::from_ne_bytes)
}

impl SmcrouteCommand {
    /// Decodes one complete command.
    ///
    /// # Errors
    /// Returns the reason why `bytes` is not a valid command.
    pub fn decode(bytes: &[u8]) -> Result<Self, SmcrouteWireError> {
        match length(bytes)? {
            Some(n) if n == bytes.len() => {}
            _ => return Err(SmcrouteWireError::Truncated(bytes.len())),
        }
        let (letter, announced) = (number(bytes, 8), number(bytes, 10));
        let known = LETTERS.iter().find(|(l, _)| u16::from(*l) == letter);
        let verb = match known {
            Some((_, verb)) => *verb,
            None => return Err(SmcrouteWireError::Unknown(letter as u8)),
        };
        let mut strings: Vec<&[u8]> = bytes[HEADER_LEN..].split(|b| *b == 0).collect();
        // Each string ends with a NUL, and so does the list. A split at NUL thus gives two empty
        // slices at the end.
        let found = strings.len().saturating_sub(2);
        let terminated = strings.len() >= 2 && strings.iter().skip(found).all(|s| s.is_empty());
        if !terminated || found != usize::from(announced) {
            return Err(SmcrouteWireError::Strings { announced, found });
        }
        strings.truncate(found);
        let text = |s: &&[u8]| std::str::from_utf8(s).map(String::from);
        let arguments = strings.iter().map(text).collect::<Result<_, _>>();
        Ok(Self {
            verb,
            arguments: arguments.map_err(|_| SmcrouteWireError::NotText)?,
        })
    }

    /// Encodes the command.
    ///
    /// # Errors
    /// Returns an error if the command is longer than [`MAX_COMMAND_LEN`].
    pub fn encode(&self) -> Result<Vec<u8>, SmcrouteWireError> {
        let text: usize = self.arguments.iter().map(|a| a.len() + 1).sum();
        let length = HEADER_LEN + text + 1;
        if length > MAX_COMMAND_LEN {
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

/// A line of a reply to `show`. The last character of the line tells its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmcrouteReplyLine<'a> {
    /// The title of a table.
    Title(&'a str),
    /// The column headings of a table.
    Heading(&'a str),
    /// Any other line.
    Plain(&'a str),
}

/// Classifies a line of a reply to `show`.
pub fn parse_reply_line(line: &str) -> SmcrouteReplyLine<'_> {
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

    /// The commands of Debian's smcroutectl 2.5.6 on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn encoding_is_that_of_smcroutectl() {
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
            assert_eq!(command.encode().as_deref(), Ok(bytes));
            assert_eq!(SmcrouteCommand::decode(bytes).as_ref(), Ok(&command));
        }
    }

    #[test]
    fn invalid_commands_are_refused() {
        let good = command(Verb::Join, &["eth0", "225.1.2.3"])
            .encode()
            .unwrap();
        for len in 0..good.len() {
            assert!(SmcrouteCommand::decode(&good[..len]).is_err(), "{len}");
        }
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            SmcrouteCommand::decode(&bad).unwrap_err()
        };
        assert_eq!(with(8, b'z'), SmcrouteWireError::Unknown(b'z'));
        for count in [0, 1, 3, 255] {
            let announced = count.into();
            assert_eq!(
                with(10, count),
                SmcrouteWireError::Strings {
                    announced,
                    found: 2
                }
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
            SmcrouteWireError::Strings {
                announced: 2,
                found: 1
            }
        );
        assert_eq!(with(17, 0xff), SmcrouteWireError::NotText);
        let long = command(Verb::Add, &["eth0"; 300]);
        assert_eq!(long.encode(), Err(SmcrouteWireError::TooLong(1517)));
    }
}
