//! `smcroutectl`: a client with the flags and output of the original.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::exit::FAILED;
use crate::smcroute::wire::{SmcrouteCommand, SmcrouteReplyLine, Verb, parse_reply_line};

/// Longest wait for a reply of the daemon.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Show and change the routes of a running smcrouted; compatible with smcroutectl
#[derive(Debug, Clone, Parser)]
#[command(
    name = "smcroutectl",
    disable_version_flag = true,
    disable_help_flag = true,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Commands, which can be abbreviated:\n  \
        add IIF [SOURCE[/LEN]] GROUP[/LEN] OIF...   remove IIF [SOURCE[/LEN]] GROUP[/LEN] [OIF...]\n  \
        join IIF [SOURCE[/LEN]] GROUP[/LEN]         leave IIF [SOURCE[/LEN]] GROUP[/LEN]\n  \
        show [routes|groups|interfaces|pending]     flush  reload  kill  help  version\n\
        eth+ matches all interfaces whose name starts with eth.\n\
        Example: smcroutectl add eth0 225.1.2.3 eth1 eth2\n\
        Exit codes: 0 success, 1 failure or invalid command."
)]
pub struct ClientArgs {
    /// Read commands from standard input, one per line
    #[arg(short = 'b')]
    batch: bool,
    /// Show more detail
    #[arg(short = 'd')]
    detail: bool,
    /// Show JSON
    #[arg(short = 'j')]
    json: bool,
    /// Name of the daemon
    #[arg(
        short = 'i',
        visible_short_alias = 'I',
        value_name = "NAME",
        default_value = "smcroute"
    )]
    name: String,
    /// Show headings without escape sequences
    #[arg(short = 'p')]
    plain: bool,
    /// Show no headings
    #[arg(short = 't')]
    terse: bool,
    /// Socket of the daemon [default: /run/NAME.sock]
    #[arg(short = 'u', value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Show the version
    #[arg(short = 'v')]
    version: bool,
    /// Show this help
    #[arg(short = 'h', long)]
    help: bool,
    /// Command and arguments; flags may also follow them
    words: Vec<String>,
}

/// The meaning of a command word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CommandWord {
    Help,
    Version,
    /// A request to the daemon, with its least number of arguments.
    Request(Verb, usize),
}

/// The command words. The first word that starts with the typed text is used, as in the original:
/// `r` means reload.
const WORDS: [(&str, CommandWord); 12] = [
    ("help", CommandWord::Help),
    ("version", CommandWord::Version),
    ("flush", CommandWord::Request(Verb::Flush, 0)),
    ("kill", CommandWord::Request(Verb::Kill, 0)),
    ("reload", CommandWord::Request(Verb::Reload, 0)),
    ("restart", CommandWord::Request(Verb::Reload, 0)),
    ("show", CommandWord::Request(Verb::Show, 0)),
    ("add", CommandWord::Request(Verb::Add, 3)),
    ("remove", CommandWord::Request(Verb::Remove, 2)),
    ("del", CommandWord::Request(Verb::Remove, 2)),
    ("join", CommandWord::Request(Verb::Join, 2)),
    ("leave", CommandWord::Request(Verb::Leave, 2)),
];

/// Runs `smcroutectl` with the arguments after the program name.
pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = std::iter::once(OsString::from("smcroutectl"));
    match ClientArgs::try_parse_from(name.chain(arguments)) {
        Ok(args) => run(args),
        Err(e) => {
            // A closed standard error leaves no other place for the message.
            let _ = e.print();
            ExitCode::from(FAILED)
        }
    }
}

/// Runs `smcroutectl`.
pub fn run(args: ClientArgs) -> ExitCode {
    let done = match (args.help, args.version, args.batch) {
        (true, _, _) => help(),
        (_, true, _) => version(),
        (_, _, true) => batch(&args),
        _ => run_command(&args, &args.words),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smcroutectl: {e}");
            ExitCode::from(FAILED)
        }
    }
}

fn help() -> Result<(), String> {
    let help = ClientArgs::command().render_help();
    write!(io::stdout(), "{help}").map_err(|e| e.to_string())
}

fn version() -> Result<(), String> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(io::stdout(), "mcastor v{version}, as smcroutectl").map_err(|e| e.to_string())
}

fn batch(args: &ClientArgs) -> Result<(), String> {
    let mut failed = 0;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let text = line.split('#').next().unwrap_or_default();
        let words: Vec<String> = text.split_whitespace().map(String::from).collect();
        if words.is_empty() {
            continue;
        }
        if let Err(e) = run_command(args, &words) {
            eprintln!("smcroutectl: {e}");
            failed += 1;
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(format!("failed commands: {n}")),
    }
}

/// Runs one command; without words, `show`.
fn run_command(args: &ClientArgs, words: &[String]) -> Result<(), String> {
    let (word, rest) = match words.split_first() {
        Some((word, rest)) => (word.as_str(), rest),
        None => ("show", words),
    };
    let found = WORDS.iter().find(|(name, _)| name.starts_with(word));
    let Some((name, command_word)) = found else {
        return Err(format!("unknown command {word:?}; see smcroutectl help"));
    };
    let verb = match command_word {
        CommandWord::Help => return help(),
        CommandWord::Version => return version(),
        CommandWord::Request(_, least) if rest.len() < *least => {
            return Err(format!(
                "Not enough arguments to command {name}; see smcroutectl help"
            ));
        }
        CommandWord::Request(Verb::Show, _) if args.json => Verb::ShowJson,
        CommandWord::Request(Verb::Show, _) if args.detail => Verb::ShowDetail,
        CommandWord::Request(verb, _) => *verb,
    };
    let command = SmcrouteCommand {
        verb,
        arguments: rest.to_vec(),
    };
    let reply = request(args, &command)?;
    let is_show = matches!(verb, Verb::Show | Verb::ShowDetail | Verb::ShowJson);
    match is_show && !reply.starts_with("Unknown or malformed") {
        true => print_tables(args, verb, &reply).map_err(|e| e.to_string()),
        false if reply.is_empty() => Ok(()),
        false => Err(reply.trim_end().to_string()),
    }
}

/// Sends `command` to the daemon and returns the reply, which ends with a NUL byte.
fn request(args: &ClientArgs, command: &SmcrouteCommand) -> Result<String, String> {
    let named = || format!("/run/{}.sock", args.name).into();
    let path = args.socket.clone().unwrap_or_else(named);
    let bytes = command.encode().map_err(|e| e.to_string())?;
    let shown = path.display();
    let mut stream = UnixStream::connect(&path).map_err(|e| {
        // The first part is the text of smcroutectl, which scripts may expect.
        let remedy = match e.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or as the user of smcrouted",
            _ => {
                "is smcrouted running, and does it use this socket (-i, -u)? `mcastor smcrouted` \
                     starts it; `mcastor add` and `mcastor show` are for `mcastor run`"
            }
        };
        format!("Failed connecting to daemon at {shown}: {e}; {remedy}")
    })?;
    let mut reply = Vec::new();
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.write_all(&bytes))
        .and_then(|()| {
            loop {
                let mut chunk = [0; 4096];
                let n = stream.read(&mut chunk)?;
                reply.extend_from_slice(&chunk[..n]);
                if n == 0 || reply.contains(&0) {
                    return Ok(());
                }
            }
        })
        .map_err(|e| format!("no reply from the daemon at {shown}: {e}"))?;
    match reply.iter().position(|b| *b == 0) {
        Some(end) => Ok(String::from_utf8_lossy(&reply[..end]).into_owned()),
        // After `kill`, the daemon may exit before it replies.
        None if command.verb == Verb::Kill => Ok(String::new()),
        None => Err(format!(
            "the daemon at {shown} closed the connection without a reply"
        )),
    }
}

/// Prints the tables of a `show` reply with headings in the requested style.
fn print_tables(args: &ClientArgs, verb: Verb, reply: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // JSON and empty replies are printed unchanged.
    if verb == Verb::ShowJson || reply.is_empty() {
        return out.write_all(reply.as_bytes());
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let width = columns.filter(|c| *c > 1).unwrap_or(80usize) - 1;
    for line in reply.lines() {
        match (parse_reply_line(line), args.terse, args.plain) {
            (SmcrouteReplyLine::Plain(line), _, _) => writeln!(out, "{line}")?,
            (_, true, _) => {}
            (SmcrouteReplyLine::Title(title), _, true) => {
                writeln!(out, "{:_<width$}\n{title}", "")?
            }
            (SmcrouteReplyLine::Heading(heading), _, true) => {
                let width = width.max(heading.len());
                writeln!(out, "{0:=<width$}\n{heading}\n{0:=<width$}", "")?;
            }
            (SmcrouteReplyLine::Title(title), _, _) => {
                writeln!(out, "\x1b[4m{:width$}\x1b[0m\n{title}", "")?;
            }
            (SmcrouteReplyLine::Heading(heading), _, _) => {
                writeln!(out, "\x1b[7m{heading:<width$}\x1b[0m")?;
            }
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_may_follow_the_command() {
        let read = |line: &str| {
            let words = std::iter::once("smcroutectl").chain(line.split_whitespace());
            ClientArgs::try_parse_from(words)
        };
        let args = read("kill -u x.sock").unwrap();
        assert_eq!(args.socket.as_deref(), Some("x.sock".as_ref()));
        assert_eq!(args.words, ["kill"]);
        let args = read("-p show -dt routes -i name -ux").unwrap();
        assert!(args.plain && args.detail && args.terse);
        assert_eq!(
            (&args.words[..], &args.name[..]),
            (&["show".into(), "routes".into()][..], "name")
        );
        let args = read("add a -b 225.1.1.1 -v -j b -h").unwrap();
        assert!(args.batch && args.version && args.json && args.help);
        assert_eq!(args.words, ["add", "a", "225.1.1.1", "b"]);
        assert_eq!(read("show -I name").unwrap().name, "name");
        assert_eq!(read("show -- -d").unwrap().words, ["show", "-d"]);
        assert!(read("add a -5 b").is_err());
        assert!(read("show -x").is_err());
        assert!(read("kill -u").is_err());
    }

    #[test]
    fn commands_can_be_abbreviated() {
        for (typed, name) in [
            ("s", "show"),
            ("r", "reload"),
            ("re", "reload"),
            ("rest", "restart"),
            ("rem", "remove"),
            ("d", "del"),
            ("h", "help"),
        ] {
            let found = WORDS.iter().find(|(name, _)| name.starts_with(typed));
            assert_eq!(found.map(|f| f.0), Some(name), "{typed}");
        }
    }
}
