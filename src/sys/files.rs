//! Files that this program writes. Each is written whole or not at all.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid};
use tempfile::NamedTempFile;

/// Mode of the files, less the umask.
const MODE: u32 = 0o644;

/// Mode of files that only their owner may read.
const PRIVATE_MODE: u32 = 0o600;

/// The start of the names of temporary files. The rest is random.
const TEMPORARY: &str = ".mcastor-";

/// Largest number of bytes of a locked file that are shown.
const MAX_OWNER: u64 = 32;

/// Largest number of bytes of a locked file that are read.
const MAX_LOCK_TEXT: u64 = 64;

/// Largest number of bytes of a file that is written in place. The rest is lost.
const MAX_OVERWRITTEN: u64 = 16 << 20;

/// Returns the folder of a path.
fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Replaces a file by one with this text. Writes a new file with a random
/// name in the same folder, and renames it when it is on the disk. So a link in the place of the
/// file is replaced and not followed, and the former file stays if anything fails. The new file
/// belongs to `owner`, or else to this process.
///
/// # Errors
/// The error of the system call that failed.
pub fn replace(path: &Path, text: &str, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let file = create(path, owner, MODE)?;
    finish(file, path, text.as_bytes())
}

/// As [`replace`], with a file that only this process's user may read, and that is not needed after
/// the end of the machine: it is not forced to the disk.
///
/// # Errors
/// The error of the system call that failed.
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path, None, PRIVATE_MODE)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Creates a folder that only this process's user may enter, with its parents, or takes an existing
/// one of this user or of root and restricts its mode. A link in its place is refused.
///
/// # Errors
/// `PermissionDenied` if it belongs to another user. The error of the system call that failed
/// otherwise.
pub fn private_folder(path: &Path) -> io::Result<()> {
    if let Err(e) = DirBuilder::new().recursive(true).mode(0o700).create(path)
        && !path.is_dir()
    {
        return Err(e);
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = folder.metadata()?;
    refuse_other_owner(&metadata)?;
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => folder.set_permissions(Permissions::from_mode(0o700)),
    }
}

/// Opens a file for its lock, creates it if it is missing, and locks it. As long as it is open, no
/// other process locks it. Returns its former text as well.
///
/// # Errors
/// `ResourceBusy` if another process has locked it, with the text of the file. The error of the
/// system call that failed otherwise.
pub fn lock_private(path: &Path) -> io::Result<(Flock<File>, String)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_MODE)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    refuse_other_owner(&file.metadata()?)?;
    let mut text = String::new();
    // Ignores a failure: the text is only informative.
    let _ = (&mut file).take(MAX_LOCK_TEXT).read_to_string(&mut text);
    match try_lock(file) {
        Ok(lock) => Ok((lock, text)),
        Err((_, Errno::EWOULDBLOCK)) => Err(io::Error::new(io::ErrorKind::ResourceBusy, text)),
        Err((_, e)) => Err(e.into()),
    }
}

/// Reads a file of at most `limit` bytes that belongs to this process's user or to root. Follows no
/// link.
///
/// # Errors
/// `NotFound`; `FileTooLarge`; `PermissionDenied` if it belongs to another user. The error of the
/// system call that failed otherwise.
pub fn read_private(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    refuse_other_owner(&metadata)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > limit {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

fn refuse_other_owner(metadata: &Metadata) -> io::Result<()> {
    let owner = metadata.uid();
    if owner == 0 || owner == Uid::effective().as_raw() {
        return Ok(());
    }
    let text = format!("it belongs to the user {owner}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// As [`replace`], and returns the file, locked for its owner: as long as it is open, no other
/// process replaces it by this function. `text` names the owner.
///
/// # Errors
/// `ResourceBusy` if the former file is locked; it names the owner. The error of the system call
/// that failed otherwise.
pub fn replace_locked(path: &Path, text: &str) -> io::Result<Flock<File>> {
    let no_link = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let former = OpenOptions::new()
        .read(true)
        .custom_flags(no_link)
        .open(path);
    if let Ok(former) = former
        && let Err((former, Errno::EWOULDBLOCK)) = try_lock(former)
    {
        let mut owner = String::new();
        let _ = former.take(MAX_OWNER).read_to_string(&mut owner);
        let owner = owner.trim().escape_debug();
        let busy = format!("process {owner} uses it");
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, busy));
    }
    take_over_locked(path, text)
}

/// As [`replace_locked`], for the successor of the process that has locked the former file.
///
/// # Errors
/// The error of the system call that failed.
pub fn take_over_locked(path: &Path, text: &str) -> io::Result<Flock<File>> {
    let file = create(path, None, MODE)?;
    // The lock belongs to the open file, whatever its name.
    let lock = try_lock(file.as_file().try_clone()?).map_err(|(_, e)| e)?;
    finish(file, path, text.as_bytes())?;
    Ok(lock)
}

fn try_lock(file: File) -> Result<Flock<File>, (File, Errno)> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
}

fn create(path: &Path, owner: Option<(Uid, Gid)>, mode: u32) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder(path))?;
    if let Some((uid, gid)) = owner {
        fchown(file.as_file(), Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    Ok(file)
}

fn finish(mut file: NamedTempFile, path: &Path, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// As [`replace`], and writes in place where a file cannot be replaced: where it is a mount point,
/// or where no file can be created in its folder. Creates the folder if it is missing. `steps` is
/// that of [`overwrite`].
///
/// # Errors
/// The error of the system call that failed.
pub fn replace_or_overwrite(
    path: &Path,
    text: &str,
    steps: impl FnOnce(&[u8]) -> Vec<Vec<u8>>,
) -> io::Result<()> {
    // Ignores a failure here: the file cannot be created then, which returns the reason.
    let _ = std::fs::create_dir_all(folder(path));
    let replaced = create(path, None, MODE).map(|file| finish(file, path, text.as_bytes()));
    match replaced {
        Ok(Ok(_)) => Ok(()),
        // The folder does not permit new files.
        Err(cause) => overwrite(path, steps).map_err(|_| cause),
        Ok(Err(e)) if e.kind() == io::ErrorKind::ResourceBusy => overwrite(path, steps),
        Ok(Err(e)) => Err(e),
    }
}

/// Writes an existing regular file in place. `steps` returns the contents that the file has one
/// after another, for its former content. While a step is written, a reader may see any mixture of
/// two successive contents.
///
/// # Errors
/// The error of the system call that failed.
pub fn overwrite(path: &Path, steps: impl FnOnce(&[u8]) -> Vec<Vec<u8>>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut former = Vec::new();
    (&mut file).take(MAX_OVERWRITTEN).read_to_end(&mut former)?;
    for content in steps(&former) {
        file.write_all_at(&content, 0)?;
        file.set_len(content.len() as u64)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn locked_file_is_replaced_when_its_owner_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let first = replace_locked(&path, "7\n").unwrap();
        let refused = replace_locked(&path, "8\n").unwrap_err();
        assert_eq!(refused.to_string(), "process 7 uses it");
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
        drop(first);
        let _second = replace_locked(&path, "8\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "8\n");
        assert_eq!(names(folder.path()), ["pid"]);
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_replaced_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        replace(&at("file"), "one\n", None).unwrap();
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "one\n");
        fs::write(at("other"), "unchanged").unwrap();
        symlink(at("other"), at("link")).unwrap();
        replace(&at("link"), "two\n", None).unwrap();
        assert_eq!(fs::read_to_string(at("other")).unwrap(), "unchanged");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_file());
        fs::hard_link(at("other"), at("second")).unwrap();
        replace(&at("second"), "three\n", None).unwrap();
        assert_eq!(fs::read_to_string(at("other")).unwrap(), "unchanged");
        assert_eq!(names(folder.path()), ["file", "link", "other", "second"]);
    }

    #[test]
    fn private_files_are_for_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/state");
        private_folder(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        private_folder(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700);
        replace_private(&folder.join("file"), b"text").unwrap();
        assert_eq!(mode(&folder.join("file")), 0o600);
        assert_eq!(read_private(&folder.join("file"), 4).unwrap(), b"text");
        let too_large = read_private(&folder.join("file"), 3).unwrap_err();
        assert_eq!(too_large.kind(), io::ErrorKind::FileTooLarge);
        symlink(&folder, parent.path().join("link")).unwrap();
        assert!(private_folder(&parent.path().join("link")).is_err());
        symlink(folder.join("file"), folder.join("link")).unwrap();
        assert!(read_private(&folder.join("link"), 4).is_err());
        assert!(private_folder(&folder.join("file")).is_err());
    }

    #[test]
    fn lock_is_exclusive_and_shows_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (first, text) = lock_private(&path).unwrap();
        assert_eq!(text, "");
        first.write_all_at(b"7\n", 0).unwrap();
        let busy = lock_private(&path).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(busy.to_string(), "7\n");
        drop(first);
        assert_eq!(lock_private(&path).unwrap().1, "7\n");
    }

    #[test]
    fn missing_folder_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file");
        let write = |path: &Path, text| replace_or_overwrite(path, text, |_| Vec::new());
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert!(write(&path.join("file"), "x").is_err());
    }

    #[test]
    fn failed_write_keeps_the_former_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "former").unwrap();
        // /dev/full answers every write with ENOSPC.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let temporary = tempfile::Builder::new().tempfile_in(folder.path()).unwrap();
        let (_, temporary_path) = temporary.into_parts();
        let file = NamedTempFile::from_parts(full, temporary_path);
        let error = finish(file, &path, b"text").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "former");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn overwriting_keeps_the_inode_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "a long former text").unwrap();
        let inode = fs::metadata(at("file")).unwrap().ino();
        for text in ["short", "a text that is longer than the former one"] {
            let former = fs::read(at("file")).unwrap();
            let steps = |found: &[u8]| {
                assert_eq!(found, former);
                vec![b"first".to_vec(), text.into()]
            };
            overwrite(&at("file"), steps).unwrap();
            assert_eq!(fs::read_to_string(at("file")).unwrap(), text);
        }
        assert_eq!(fs::metadata(at("file")).unwrap().ino(), inode);
        symlink(at("file"), at("link")).unwrap();
        assert!(overwrite(&at("link"), |_| Vec::new()).is_err());
        assert!(overwrite(folder.path(), |_| Vec::new()).is_err());
    }
}
