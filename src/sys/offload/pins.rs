//! The folder of an instance in a BPF file system: what is pinned there outlives the process.
//!
//! Each process pins its tables in a folder of their own, a *generation*. What forwards by these
//! tables is there too: the link of each interface, or the program where a filter of clsact has it.
//! A later process moves a link to its own generation when the link has the new program.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::clsact;
use crate::model::IfIndex;

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The folder is not in a BPF file system.
    #[error("{0} is not in a BPF file system")]
    NoBpfFs(PathBuf),
    /// The kernel refuses.
    #[error("cannot use {path}: {cause}")]
    Refused {
        /// The folder.
        path: PathBuf,
        /// The error of the kernel.
        cause: io::Error,
    },
}

impl PinError {
    fn refused(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |cause| Self::Refused { path, cause }
    }
}

/// The folder of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinFolder {
    path: PathBuf,
}

/// The longest part of a path that is in the name of a folder: names have at most 255 bytes.
const MAX_NAME: usize = 200;

impl PinFolder {
    /// Makes the folder below `root`. An instance is known by its network namespace and by the path
    /// of the socket on which it serves commands.
    ///
    /// # Errors
    /// `root` is in no BPF file system, or not writable.
    pub fn open(root: &Path, socket: &Path) -> Result<Self, PinError> {
        let mut existing = root.ancestors().filter(|path| path.exists());
        let existing = existing.next().unwrap_or(root);
        let is_bpffs = statfs(existing).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs {
            return Err(PinError::NoBpfFs(root.into()));
        }
        let path = root.join(instance_name(namespace()?, socket));
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&path);
        made.map_err(PinError::refused(&path))?;
        Ok(Self { path })
    }

    /// Returns the folders of all instances below `root`.
    pub fn all(root: &Path) -> io::Result<Vec<Self>> {
        let folders = match fs::read_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folders => folders?,
        };
        let path = |entry: io::Result<fs::DirEntry>| {
            Some(Self {
                path: entry.ok()?.path(),
            })
        };
        Ok(folders.filter_map(path).collect())
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether its instance is of the network namespace of this thread.
    pub fn is_of_this_namespace(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.split('-').next()?.parse().ok());
        namespace().is_ok_and(|own| number == Some(own))
    }

    /// Returns whether filters of clsact are among what is left.
    pub fn has_filters(&self) -> bool {
        let generations = self.generations();
        let mut programs = generations.iter().flat_map(PinGeneration::programs);
        programs.any(|(_, kind)| matches!(kind, PinnedProgram::Filter(_)))
    }

    /// Returns the generations, the oldest first.
    pub(super) fn generations(&self) -> Vec<PinGeneration> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let generation = |entry: fs::DirEntry| {
            Some(PinGeneration {
                number: entry.file_name().to_str()?.parse().ok()?,
                path: entry.path(),
            })
        };
        let mut all: Vec<_> = entries.filter_map(generation).collect();
        all.sort_by_key(|generation| generation.number);
        all
    }

    /// Makes the folder of a new generation.
    pub(super) fn add_generation(&self) -> Result<PinGeneration, PinError> {
        let number = self.generations().last().map_or(0, |last| last.number) + 1;
        let path = self.path.join(number.to_string());
        let mut builder = fs::DirBuilder::new();
        let made = builder.mode(0o700).create(&path);
        made.map_err(PinError::refused(&path))?;
        Ok(PinGeneration { path, number })
    }

    /// Removes everything that is pinned in the folder, and the folder. What is pinned nowhere else
    /// and is not in use leaves the kernel.
    ///
    /// # Errors
    /// The kernel refuses. The rest is removed.
    pub(super) fn remove(&self) -> io::Result<()> {
        for generation in self.generations() {
            generation.remove();
        }
        fs::remove_dir(&self.path)?;
        self.remove_if_empty();
        Ok(())
    }

    /// Removes the folder if nothing is in it, and the one that has those of all instances.
    pub(super) fn remove_if_empty(&self) {
        let _ = fs::remove_dir(&self.path);
        if let Some(root) = self.path.parent() {
            let _ = fs::remove_dir(root);
        }
    }
}

/// Returns the number of the network namespace of this thread.
fn namespace() -> Result<u64, PinError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let found = fs::metadata(path).map_err(PinError::refused(path))?;
    Ok(found.ino())
}

/// Returns the name of the folder of an instance. A BPF file system allows no dots in names.
fn instance_name(namespace: u64, socket: &Path) -> String {
    let socket = socket.to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let socket: Vec<char> = socket.chars().map(plain).collect();
    let end: String = socket[socket.len().saturating_sub(MAX_NAME)..]
        .iter()
        .collect();
    format!("{namespace}-{}", end.trim_start_matches('-'))
}

/// What keeps a program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinnedProgram {
    /// A tcx link.
    Link,
    /// A filter of clsact with this handle. Its program is pinned.
    Filter(u32),
}

/// The folder of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PinGeneration {
    path: PathBuf,
    number: u32,
}

impl PinGeneration {
    /// Returns the path of a table.
    pub(super) fn table(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the path of what keeps a program on an interface.
    pub(super) fn program(&self, index: IfIndex, kind: PinnedProgram) -> PathBuf {
        self.path.join(match kind {
            PinnedProgram::Link => format!("link-{index}"),
            PinnedProgram::Filter(handle) => format!("filter-{index}-{handle}"),
        })
    }

    /// Returns the interfaces with a program of this generation.
    pub(super) fn programs(&self) -> Vec<(IfIndex, PinnedProgram)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| program_of(&name)).collect()
    }

    /// Removes a program from its interface.
    pub(super) fn remove_program(&self, index: IfIndex, kind: PinnedProgram) {
        // Fails if it is gone.
        let _ = fs::remove_file(self.program(index, kind));
        if let PinnedProgram::Filter(handle) = kind {
            // Fails if the interface is gone.
            let _ = clsact::remove_filter(index, handle);
        }
    }

    /// Removes the programs and the tables, and the folder.
    pub(super) fn remove(&self) {
        for (index, kind) in self.programs() {
            self.remove_program(index, kind);
        }
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        // Fails if something else was put there.
        let _ = fs::remove_dir(&self.path);
    }
}

fn program_of(name: &str) -> Option<(IfIndex, PinnedProgram)> {
    let index = |text: &str| IfIndex::new(text.parse().ok()?);
    let mut parts = name.split('-');
    match (parts.next()?, parts.next()?, parts.next()) {
        ("link", number, None) => Some((index(number)?, PinnedProgram::Link)),
        ("filter", number, Some(handle)) => {
            let handle = handle.parse().ok()?;
            Some((index(number)?, PinnedProgram::Filter(handle)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_an_instance_has_no_dots() {
        let socket = Path::new("/run/mcastor/control.sock");
        let name = instance_name(4_026_531_840, socket);
        assert_eq!(name, "4026531840-run-mcastor-control-sock");
        let long = instance_name(1, Path::new(&format!("/{}", "a/".repeat(400))));
        assert!(long.starts_with("1-a-a"), "{long}");
        assert!(long.len() <= MAX_NAME + 2);
    }

    #[test]
    fn names_of_programs_are_read_back() {
        let generation = PinGeneration {
            path: "/x".into(),
            number: 1,
        };
        let index = IfIndex::new(12).unwrap();
        for kind in [PinnedProgram::Link, PinnedProgram::Filter(77)] {
            let path = generation.program(index, kind);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(program_of(name), Some((index, kind)));
        }
        for other in [
            "flows",
            "link-",
            "link-0",
            "link-1-2",
            "filter-1",
            "flow_index",
        ] {
            assert_eq!(program_of(other), None, "{other}");
        }
    }

    #[test]
    fn other_file_system_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = PinFolder::open(&folder.path().join("a/b"), Path::new("/s"));
        assert!(matches!(refused, Err(PinError::NoBpfFs(_))), "{refused:?}");
    }
}
