//! The screen and the keyboard of `mcastor top`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};

use super::draw::{Palette, draw, page_len};
use super::snapshot::Reading;
use super::source;
use super::state::{Key, TopRequest, TopState};
use super::tables::View;
use crate::api::ExplainQuery;

/// Longest wait for a key or a reading before signals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// How long after the last letter of a search the router is asked.
const SEARCH_DELAY: Duration = Duration::from_millis(150);

/// What the threads that read from the router and from the keyboard send.
enum Answer {
    Terminal(Event),
    Tables(Box<Result<Reading, String>>),
    Explained(ExplainQuery, String),
}

/// What a key means besides [`Key`].
enum Input {
    Key(Key),
    Quit,
    Suspend,
}

/// Shows the state until the user quits or a signal arrives. `first` is the first reading.
pub(super) fn run(
    socket: PathBuf,
    view: View,
    first: Reading,
    started: Instant,
    interval: Duration,
) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (requests, to_read) = channel();
    let (to_show, answers) = channel();
    let keys = to_show.clone();
    // The router may take seconds to answer; keys are handled meanwhile.
    std::thread::spawn(move || read_repeatedly(&socket, started, interval, &to_read, &to_show));
    let mut state = TopState::new(view);
    state.read(Ok(first));
    // Also restores the terminal when the program panics.
    let mut terminal = ratatui::try_init()?;
    // When the terminal goes away, crossterm does not return from a read any more.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if keys.send(Answer::Terminal(event)).is_err() {
                break;
            }
        }
    });
    let result = show(&mut terminal, &mut state, &stop, &requests, &answers);
    let restored = ratatui::try_restore();
    result.and(restored)
}

fn show(
    terminal: &mut DefaultTerminal,
    state: &mut TopState,
    stop: &AtomicBool,
    requests: &Sender<TopRequest>,
    answers: &Receiver<Answer>,
) -> io::Result<()> {
    let palette = Palette {
        has_colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    terminal.draw(|frame| draw(frame, state, palette))?;
    while !stop.load(Ordering::Relaxed) {
        match answers.recv_timeout(TICK) {
            Ok(Answer::Tables(reading)) => state.read(*reading),
            Ok(Answer::Explained(query, text)) => state.explained(&query, text),
            Ok(Answer::Terminal(Event::Key(key))) => match input(key) {
                Some(Input::Quit) => return Ok(()),
                Some(Input::Suspend) => suspend(terminal)?,
                Some(Input::Key(key)) => {
                    let height = terminal.size()?.height;
                    match state.key(key, page_len(height)) {
                        Some(TopRequest::Quit) => return Ok(()),
                        // The thread ends with the program only.
                        Some(request) => drop(requests.send(request)),
                        None => {}
                    }
                }
                None => {}
            },
            // The size has changed.
            Ok(Answer::Terminal(_)) => {}
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        terminal.draw(|frame| draw(frame, state, palette))?;
    }
    Ok(())
}

/// Stops the program until the shell continues it (Ctrl-Z).
fn suspend(terminal: &mut DefaultTerminal) -> io::Result<()> {
    ratatui::try_restore()?;
    signal_hook::low_level::raise(SIGTSTP)?;
    *terminal = ratatui::try_init()?;
    terminal.clear()
}

/// Returns what a key event means here.
fn input(event: KeyEvent) -> Option<Input> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let has_control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(Input::Key(match event.code {
        KeyCode::Char('c') if has_control => return Some(Input::Quit),
        KeyCode::Char('z') if has_control => return Some(Input::Suspend),
        KeyCode::Char('f') if has_control => Key::PageDown,
        KeyCode::Char('b') if has_control => Key::PageUp,
        KeyCode::Char(_) if has_control => return None,
        KeyCode::Char(letter) => Key::Char(letter),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        _ => return None,
    }))
}

/// Reads the tables at each interval, and at once what is requested, until nobody receives it.
fn read_repeatedly(
    socket: &std::path::Path,
    started: Instant,
    interval: Duration,
    requests: &Receiver<TopRequest>,
    answers: &Sender<Answer>,
) {
    let mut next = Instant::now() + interval;
    let mut search = String::new();
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let answer = match requests.recv_timeout(wait) {
            Ok(TopRequest::Explain(query)) => {
                let text = source::explanation(socket, query.clone());
                Answer::Explained(query, text)
            }
            Ok(TopRequest::Search(words)) => {
                search = words;
                next = Instant::now() + SEARCH_DELAY;
                continue;
            }
            Ok(TopRequest::Quit) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(TopRequest::Refresh) | Err(RecvTimeoutError::Timeout) => {
                next = Instant::now() + interval;
                let reading = source::read(socket, &search, started).map_err(|e| e.to_string());
                Answer::Tables(Box::new(reading))
            }
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}
