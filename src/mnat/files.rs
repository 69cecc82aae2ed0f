//! Joinfiles on disk: noticing that one changed, and writing one.
//!
//! A file is looked at a few times a second, which sees writes in place, new files under the old
//! name, and folders that come later, on every file system. What changed is read when it has
//! been still for a moment. A file that is empty or gone may be one that somebody is about to
//! write, so that takes longer to count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::joinfile::LONGEST_FILE;

/// How long a file must be still.
pub const STILL: Duration = Duration::from_millis(150);
/// How long it must be empty, or gone.
pub const STILL_EMPTY: Duration = Duration::from_secs(2);

/// What tells one state of a file from another.
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

/// What a file holds now.
#[derive(Debug)]
pub enum FileContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// There is none.
    Gone,
    /// It cannot be read.
    Unreadable(io::Error),
}

/// Looks at one file.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    /// The state that was told last.
    told: Option<Option<Stamp>>,
    /// A state that is new, and since when it is.
    fresh: Option<(Option<Stamp>, Instant)>,
}

impl FileWatch {
    /// A file not looked at yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            told: None,
            fresh: None,
        }
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks, and tells what the file holds where that changed. The first look always tells.
    pub fn look(&mut self, now: Instant) -> Option<FileContent> {
        let there = stamp(&self.path);
        let Some(told) = self.told else {
            return Some(self.tell(there));
        };
        if told == there {
            self.fresh = None;
            return None;
        }
        match self.fresh {
            Some((fresh, since)) if fresh == there => {
                let empty = there.is_none_or(|s| s.size == 0);
                let wait = if empty { STILL_EMPTY } else { STILL };
                (now.saturating_duration_since(since) >= wait).then(|| self.tell(there))
            }
            _ => {
                self.fresh = Some((there, now));
                None
            }
        }
    }

    fn tell(&mut self, there: Option<Stamp>) -> FileContent {
        self.told = Some(there);
        self.fresh = None;
        match read(&self.path) {
            Ok(bytes) => FileContent::Bytes(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => FileContent::Gone,
            Err(e) => FileContent::Unreadable(e),
        }
    }
}

/// As much of a file as is looked at.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file so that no reader finds it half written: beside it, then moved to its place.
/// Its folder is made where there is none. Where the file cannot be moved, as where the file itself is mounted, it is written in place.
///
/// # Errors
/// What the kernel says.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    if let Some(folder) = path.parent() {
        // Where that fails, so does what follows, and tells why.
        let _ = fs::create_dir_all(folder);
    }
    let moved = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    let Err(why) = moved else { return Ok(()) };
    // It may not have come to be.
    let _ = fs::remove_file(&beside);
    match OpenOptions::new().write(true).truncate(true).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()),
        Err(_) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seen: Option<FileContent>) -> String {
        match seen {
            Some(FileContent::Bytes(bytes)) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn writes_in_place_and_new_files_are_noticed_once_still() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sgs");
        let start = Instant::now();
        let mut watch = FileWatch::new(path.clone());
        assert!(matches!(watch.look(start), Some(FileContent::Gone)));
        assert!(watch.look(start).is_none());
        fs::write(&path, "one\n").unwrap();
        assert!(watch.look(start).is_none());
        assert_eq!(bytes(watch.look(start + STILL)), "one\n");
        assert!(watch.look(start + STILL * 2).is_none());
        // In place: cut first, written later.
        let mut file = File::create(&path).unwrap();
        let cut = start + STILL * 2;
        assert!(watch.look(cut).is_none());
        assert!(watch.look(cut + STILL * 2).is_none());
        file.write_all(b"two\n").unwrap();
        assert!(watch.look(cut + STILL * 3).is_none());
        assert_eq!(bytes(watch.look(cut + STILL * 4)), "two\n");
        // By rename, of the same length.
        let other = folder.path().join("b");
        fs::write(&other, "six\n").unwrap();
        fs::rename(&other, &path).unwrap();
        let moved = cut + STILL * 5;
        assert!(watch.look(moved).is_none());
        assert_eq!(bytes(watch.look(moved + STILL)), "six\n");
        fs::remove_file(&path).unwrap();
        assert!(watch.look(moved + STILL).is_none());
        assert!(watch.look(moved + STILL * 2).is_none());
        let gone = watch.look(moved + STILL + STILL_EMPTY);
        assert!(matches!(gone, Some(FileContent::Gone)));
    }

    #[test]
    fn a_folder_is_no_joinfile() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new(folder.path().to_path_buf());
        assert!(matches!(
            watch.look(Instant::now()),
            Some(FileContent::Unreadable(_))
        ));
    }

    #[test]
    fn a_file_is_moved_to_its_place_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sgs");
        write(&path, "one\n").unwrap();
        let first = fs::metadata(&path).unwrap().ino();
        write(&path, "two\n").unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&folder.path().join("new/a.sgs"), "x").unwrap();
        assert!(write(&path.join("a.sgs"), "x").is_err());
    }
}
