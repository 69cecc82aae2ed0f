//! `smcroutectl`, by its flags.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::FAILED;
use crate::smcroute::wire::{Command, Shown, Verb, shown};

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Ask and change a running smcrouted, as smcroutectl does
#[derive(Debug, Clone, Parser)]
#[command(
    name = "smcroutectl",
    disable_version_flag = true,
    disable_help_flag = true,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Commands, which any beginning of shortens:\n  \
        add IIF [SOURCE[/LEN]] GROUP[/LEN] OIF...   remove IIF [SOURCE[/LEN]] GROUP[/LEN] [OIF...]\n  \
        join IIF [SOURCE[/LEN]] GROUP[/LEN]         leave IIF [SOURCE[/LEN]] GROUP[/LEN]\n  \
        show [routes|groups|interfaces|pending]     flush  reload  kill  help  version\n\
        eth+ stands for all interfaces whose name begins with eth.\n\
        Exit codes: 0 done, 1 refused or not understood."
)]
pub struct ClientArgs {
    /// Read commands from standard input, one a line
    #[arg(short = 'b')]
    batch: bool,
    /// Show more
    #[arg(short = 'd')]
    detail: bool,
    /// Show JSON
    #[arg(short = 'j')]
    json: bool,
    /// Name of the daemon
    #[arg(short = 'i', value_name = "NAME", default_value = "smcroute")]
    name: String,
    /// Plain headings
    #[arg(short = 'p')]
    plain: bool,
    /// No headings
    #[arg(short = 't')]
    terse: bool,
    /// Socket of the daemon [default: /run/NAME.sock]
    #[arg(short = 'u', value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Show the version
    #[arg(short = 'v')]
    version: bool,
    /// Show this text
    #[arg(short = 'h', long)]
    help: bool,
    /// Command and arguments; flags may stand behind them too
    words: Vec<String>,
}

/// What a command word asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Help,
    Version,
    /// A command with at least so many arguments.
    Ask(Verb, usize),
}

/// The first that begins with what was typed counts: `r` is reload, as ever.
const WORDS: [(&str, Word); 12] = [
    ("help", Word::Help),
    ("version", Word::Version),
    ("flush", Word::Ask(Verb::Flush, 0)),
    ("kill", Word::Ask(Verb::Kill, 0)),
    ("reload", Word::Ask(Verb::Reload, 0)),
    ("restart", Word::Ask(Verb::Reload, 0)),
    ("show", Word::Ask(Verb::Show, 0)),
    ("add", Word::Ask(Verb::Add, 3)),
    ("remove", Word::Ask(Verb::Remove, 2)),
    ("del", Word::Ask(Verb::Remove, 2)),
    ("join", Word::Ask(Verb::Join, 2)),
    ("leave", Word::Ask(Verb::Leave, 2)),
];

/// `smcroutectl` called by that name, with its arguments.
pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = std::iter::once(OsString::from("smcroutectl"));
    match ClientArgs::try_parse_from(name.chain(arguments)) {
        Ok(args) => run(args),
        Err(e) => {
            // Where standard error is gone there is nobody to tell.
            let _ = e.print();
            ExitCode::from(FAILED)
        }
    }
}

/// Runs it.
pub fn run(args: ClientArgs) -> ExitCode {
    let done = match (args.help, args.version, args.batch) {
        (true, _, _) => help(),
        (_, true, _) => version(),
        (_, _, true) => batch(&args),
        _ => one(&args, &args.words),
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
        if let Err(e) = one(args, &words) {
            eprintln!("smcroutectl: {e}");
            failed += 1;
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(format!("commands that failed: {n}")),
    }
}

fn one(args: &ClientArgs, words: &[String]) -> Result<(), String> {
    let (word, rest) = match words.split_first() {
        Some((word, rest)) => (word.as_str(), rest),
        None => ("show", words),
    };
    let found = WORDS.iter().find(|(name, _)| name.starts_with(word));
    let Some((name, meant)) = found else {
        return Err(format!("no command {word:?}; see smcroutectl help"));
    };
    let verb = match meant {
        Word::Help => return help(),
        Word::Version => return version(),
        Word::Ask(_, least) if rest.len() < *least => {
            return Err(format!(
                "Not enough arguments to command {name}; see smcroutectl help"
            ));
        }
        Word::Ask(Verb::Show, _) if args.json => Verb::ShowJson,
        Word::Ask(Verb::Show, _) if args.detail => Verb::ShowDetail,
        Word::Ask(verb, _) => *verb,
    };
    let command = Command {
        verb,
        arguments: rest.to_vec(),
    };
    let answer = ask(args, &command)?;
    let is_show = matches!(verb, Verb::Show | Verb::ShowDetail | Verb::ShowJson);
    match is_show && !answer.starts_with("Unknown or malformed") {
        true => tables(args, verb, &answer).map_err(|e| e.to_string()),
        false if answer.is_empty() => Ok(()),
        false => Err(answer.trim_end().to_string()),
    }
}

/// The answer up to its NUL.
fn ask(args: &ClientArgs, command: &Command) -> Result<String, String> {
    let named = || format!("/run/{}.sock", args.name).into();
    let path = args.socket.clone().unwrap_or_else(named);
    let bytes = command.write().map_err(|e| e.to_string())?;
    let shown = path.display();
    let mut stream = UnixStream::connect(&path)
        .map_err(|e| format!("Failed connecting to daemon at {shown}: {e}"))?;
    let mut answer = Vec::new();
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.write_all(&bytes))
        .and_then(|()| {
            loop {
                let mut piece = [0; 4096];
                let n = stream.read(&mut piece)?;
                answer.extend_from_slice(&piece[..n]);
                if n == 0 || answer.contains(&0) {
                    return Ok(());
                }
            }
        })
        .map_err(|e| format!("the daemon at {shown} does not answer: {e}"))?;
    match answer.iter().position(|b| *b == 0) {
        Some(end) => Ok(String::from_utf8_lossy(&answer[..end]).into_owned()),
        // A daemon that is told to end may do so before it answers.
        None if command.verb == Verb::Kill => Ok(String::new()),
        None => Err(format!("the daemon at {shown} hung up without an answer")),
    }
}

fn tables(args: &ClientArgs, verb: Verb, answer: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // Of nothing there is no table.
    if verb == Verb::ShowJson || answer.is_empty() {
        return out.write_all(answer.as_bytes());
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let width = columns.filter(|c| *c > 1).unwrap_or(80usize) - 1;
    for line in answer.lines() {
        match (shown(line), args.terse, args.plain) {
            (Shown::Plain(line), _, _) => writeln!(out, "{line}")?,
            (_, true, _) => {}
            (Shown::Title(title), _, true) => writeln!(out, "{:_<width$}\n{title}", "")?,
            (Shown::Heading(heading), _, true) => {
                let width = width.max(heading.len());
                writeln!(out, "{0:=<width$}\n{heading}\n{0:=<width$}", "")?;
            }
            (Shown::Title(title), _, _) => {
                writeln!(out, "\x1b[4m{:width$}\x1b[0m\n{title}", "")?;
            }
            (Shown::Heading(heading), _, _) => {
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
    fn flags_may_stand_behind_the_command() {
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
        assert_eq!(read("show -- -d").unwrap().words, ["show", "-d"]);
        assert!(read("add a -5 b").is_err());
        assert!(read("show -x").is_err());
        assert!(read("kill -u").is_err());
    }

    #[test]
    fn commands_are_shortened_as_ever() {
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
