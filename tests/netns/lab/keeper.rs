//! The processes that hold membership sockets (`mcastor keep-memberships`).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the keepers in a network namespace, whose file is at `namespace`.
pub fn keepers_in(namespace: &Path) -> Vec<u32> {
    let inode = |path: &Path| std::fs::metadata(path).map(|file| file.ino()).ok();
    let Some(wanted) = inode(namespace) else {
        return Vec::new();
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_keeper = |pid: &u32| {
        let folder = Path::new("/proc").join(pid.to_string());
        let words = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).nth(1) == Some(b"keep-memberships")
            && inode(&folder.join("ns/net")) == Some(wanted)
    };
    pids.filter(is_keeper).collect()
}

/// Ends the keepers in a network namespace, which would hold it for minutes.
pub fn end_keepers_in(namespace: &Path) {
    for pid in keepers_in(namespace) {
        // SAFETY: `kill` takes no pointer.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
}
