//! Joinfiles on disk: detection of changes.
//!
//! The watcher polls the metadata of a file a few times a second. Polling works on every file
//! system. It detects writes in place, files that replace the old one, and directories that are
//! created later. A changed file is read once its metadata has stayed the same for [`SETTLE_TIME`].
//! A missing or empty file takes effect only after [`EMPTY_SETTLE_TIME`], because another program
//! may be about to write it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::joinfile::MAX_FILE_LEN;

/// How long the metadata of a changed file must stay the same before the file is read.
pub const SETTLE_TIME: Duration = Duration::from_millis(150);
/// How long a file must be empty or missing before that takes effect.
pub const EMPTY_SETTLE_TIME: Duration = Duration::from_secs(2);

/// The metadata that identifies one version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamp(path: &Path) -> Option<Stamp> {
    let m = fs::metadata(path).ok()?;
    Some(Stamp {
        device: m.dev(),
        inode: m.ino(),
        size: m.size(),
        modified: (m.mtime(), m.mtime_nsec()),
        changed: (m.ctime(), m.ctime_nsec()),
    })
}

/// The content of a watched file.
#[derive(Debug)]
pub enum FileContent {
    /// The bytes of the file, at most [`MAX_FILE_LEN`].
    Bytes(Vec<u8>),
    /// The file does not exist.
    Missing,
    /// The file cannot be read.
    Unreadable(io::Error),
}

/// Detects changes of one file.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    /// The metadata at the last report; the inner `None` means that the file is missing.
    reported: Option<Option<Stamp>>,
    /// Metadata that differs from the last report, and when it was first seen.
    changed: Option<(Option<Stamp>, Instant)>,
}

impl FileWatch {
    /// Returns a watcher that has not read the file yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            reported: None,
            changed: None,
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the content of the file if it changed. The first call always returns it.
    pub fn poll(&mut self, now: Instant) -> Option<FileContent> {
        let current = stamp(&self.path);
        let Some(reported) = self.reported else {
            return Some(self.report(current));
        };
        if reported == current {
            self.changed = None;
            return None;
        }
        match self.changed {
            Some((changed, since)) if changed == current => {
                let empty = current.is_none_or(|s| s.size == 0);
                let wait = if empty {
                    EMPTY_SETTLE_TIME
                } else {
                    SETTLE_TIME
                };
                (now.saturating_duration_since(since) >= wait).then(|| self.report(current))
            }
            _ => {
                self.changed = Some((current, now));
                None
            }
        }
    }

    fn report(&mut self, current: Option<Stamp>) -> FileContent {
        self.reported = Some(current);
        self.changed = None;
        match read(&self.path) {
            Ok(bytes) => FileContent::Bytes(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => FileContent::Missing,
            Err(e) => FileContent::Unreadable(e),
        }
    }
}

/// Reads at most [`MAX_FILE_LEN`] bytes of a regular file.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_LEN as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn bytes(content: Option<FileContent>) -> String {
        match content {
            Some(FileContent::Bytes(bytes)) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn writes_and_replaced_files_are_reported_once_stable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sgs");
        let start = Instant::now();
        let mut watch = FileWatch::new(path.clone());
        assert!(matches!(watch.poll(start), Some(FileContent::Missing)));
        assert!(watch.poll(start).is_none());
        fs::write(&path, "one\n").unwrap();
        assert!(watch.poll(start).is_none());
        assert_eq!(bytes(watch.poll(start + SETTLE_TIME)), "one\n");
        assert!(watch.poll(start + SETTLE_TIME * 2).is_none());
        // A write in place: truncated first, written later.
        let mut file = File::create(&path).unwrap();
        let truncated = start + SETTLE_TIME * 2;
        assert!(watch.poll(truncated).is_none());
        assert!(watch.poll(truncated + SETTLE_TIME * 2).is_none());
        file.write_all(b"two\n").unwrap();
        assert!(watch.poll(truncated + SETTLE_TIME * 3).is_none());
        assert_eq!(bytes(watch.poll(truncated + SETTLE_TIME * 4)), "two\n");
        // A file of the same length is renamed over it.
        let other = directory.path().join("b");
        fs::write(&other, "six\n").unwrap();
        fs::rename(&other, &path).unwrap();
        let moved = truncated + SETTLE_TIME * 5;
        assert!(watch.poll(moved).is_none());
        assert_eq!(bytes(watch.poll(moved + SETTLE_TIME)), "six\n");
        fs::remove_file(&path).unwrap();
        assert!(watch.poll(moved + SETTLE_TIME).is_none());
        assert!(watch.poll(moved + SETTLE_TIME * 2).is_none());
        let gone = watch.poll(moved + SETTLE_TIME + EMPTY_SETTLE_TIME);
        assert!(matches!(gone, Some(FileContent::Missing)));
    }

    #[test]
    fn directory_is_reported_as_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new(directory.path().to_path_buf());
        assert!(matches!(
            watch.poll(Instant::now()),
            Some(FileContent::Unreadable(_))
        ));
    }
}
