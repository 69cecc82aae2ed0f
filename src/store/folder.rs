//! The folder of the stored state: its lock and its file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::codec::{self, MAX_FILE, StateError, StoredState};
use crate::model::{BootTime, ClockReading};
use crate::sys::boot_clock;
use crate::sys::files::{lock_private, private_folder, read_private, replace_private};

/// The file with the state.
const STATE_FILE: &str = "learned";

/// The file that the owner of the folder holds locked. It holds the id of the process, the boot, and
/// when the process was last alive.
const LOCK_FILE: &str = "lock";

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// Another process uses it.
    #[error(
        "{} is in use by another mcastor{}; stop that one, or give this one a folder of its own: dir in [state], or dir = \"off\"",
        .folder.display(),
        .process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The id of the process, as far as it is known.
        process: Option<u32>,
    },
    /// A system call failed.
    #[error("{}: {cause}", .folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// The error.
        cause: io::Error,
    },
}

/// Why the stored state is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Its content cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// State of a former process.
#[derive(Debug)]
pub struct LoadedState {
    /// The state.
    pub state: StoredState,
    /// When the former process was last known to be alive.
    pub alive_at: BootTime,
}

/// The folder, locked for this process.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    lock: Flock<File>,
    boot_id: String,
    /// When the former owner was last alive in this boot.
    former_alive_at: Option<BootTime>,
}

impl StateFolder {
    /// Creates the folder if it is missing, and locks it.
    ///
    /// # Errors
    /// Another process uses it, or a system call failed.
    pub fn open(path: &Path) -> Result<Self, StateFolderError> {
        let folder = path.to_path_buf();
        let opened = private_folder(path)
            .and_then(|()| lock_private(&path.join(LOCK_FILE)))
            .and_then(|locked| Ok((locked, boot_clock::boot_id()?)));
        match opened {
            Ok(((lock, former), boot_id)) => Ok(Self {
                path: folder,
                lock,
                former_alive_at: OwnerLine::parse(&former)
                    .filter(|owner| owner.boot == boot_prefix(&boot_id))
                    .map(|owner| owner.alive_at),
                boot_id,
            }),
            Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => {
                let process = OwnerLine::parse(&cause.to_string()).map(|owner| owner.process);
                Err(StateFolderError::InUse { folder, process })
            }
            Err(cause) => Err(StateFolderError::Io { folder, cause }),
        }
    }

    /// Returns the path of the file with the state.
    pub fn state_file(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }

    /// Returns the identity of this boot of the machine.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Reads the stored state. None if there is none.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn load(&self, clock: &ClockReading) -> Result<Option<LoadedState>, LoadError> {
        let bytes = match read_private(&self.state_file(), MAX_FILE) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                return Err(StateError::TooLarge.into());
            }
            Err(e) => return Err(e.into()),
        };
        let state = codec::decode(&bytes, &self.boot_id, clock.boot)?;
        let former = self.former_alive_at.filter(|at| *at <= clock.boot);
        let alive_at = former.map_or(state.written_at, |at| at.max(state.written_at));
        Ok(Some(LoadedState { state, alive_at }))
    }

    /// Replaces the stored state.
    ///
    /// # Errors
    /// The error of the system call that failed. The former state stays.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        replace_private(&self.state_file(), bytes)
    }

    /// Notes that this process is alive, so that the next one knows how long it was gone.
    ///
    /// # Errors
    /// The error of the system call that failed.
    pub fn note_alive(&self, now: BootTime) -> io::Result<()> {
        let line = OwnerLine {
            process: std::process::id(),
            boot: boot_prefix(&self.boot_id).to_owned(),
            alive_at: now,
        };
        self.lock.write_all_at(line.text().as_bytes(), 0)
    }
}

/// Returns the part of a boot id that is written into the lock file.
fn boot_prefix(boot_id: &str) -> &str {
    boot_id.split('-').next().unwrap_or_default()
}

/// The content of the lock file.
#[derive(Debug, PartialEq, Eq)]
struct OwnerLine {
    process: u32,
    boot: String,
    alive_at: BootTime,
}

impl OwnerLine {
    /// Returns the text. Its length is constant, so that it can be written in place.
    fn text(&self) -> String {
        let (process, boot) = (self.process, &self.boot);
        format!("{process:<10} {boot:<8} {:020}\n", self.alive_at.as_ms())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            process: words.next()?.parse().ok()?,
            boot: words.next()?.to_owned(),
            alive_at: BootTime::from_ms(words.next()?.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Records;

    #[test]
    fn second_owner_is_refused_while_the_first_lives() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let first = StateFolder::open(&path).unwrap();
        first.note_alive(BootTime::from_ms(7)).unwrap();
        let refused = StateFolder::open(&path).unwrap_err().to_string();
        let process = format!("(process {})", std::process::id());
        assert!(
            refused.contains(&process) && refused.contains("[state]"),
            "{refused}"
        );
        drop(first);
        let second = StateFolder::open(&path).unwrap();
        assert_eq!(second.former_alive_at, Some(BootTime::from_ms(7)));
    }

    #[test]
    fn loaded_state_says_when_the_former_process_was_alive() {
        let parent = tempfile::tempdir().unwrap();
        let folder = StateFolder::open(parent.path()).unwrap();
        let clock = boot_clock::read().unwrap();
        assert!(folder.load(&clock).unwrap().is_none());
        let written_at = BootTime::from_ms(clock.boot.as_ms().saturating_sub(1));
        let state = StoredState {
            boot_id: folder.boot_id().into(),
            written_at,
            records: Records::default(),
        };
        folder.write(&codec::encode(&state).unwrap()).unwrap();
        let loaded = folder.load(&clock).unwrap().unwrap();
        assert_eq!((loaded.state, loaded.alive_at), (state, written_at));
        folder.note_alive(clock.boot).unwrap();
        drop(folder);
        let folder = StateFolder::open(parent.path()).unwrap();
        assert_eq!(folder.load(&clock).unwrap().unwrap().alive_at, clock.boot);
        std::fs::write(folder.state_file(), "garbage").unwrap();
        assert!(folder.load(&clock).is_err());
    }
}
