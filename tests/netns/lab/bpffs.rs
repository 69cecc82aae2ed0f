//! A BPF file system of a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ns::Lab;

/// A mounted BPF file system. Dropping it unmounts it, and what is pinned in it leaves the kernel.
pub struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    /// Mounts one in the folder of the test.
    #[track_caller]
    pub fn mount(lab: &Lab) -> Self {
        let path = lab.file("bpf");
        std::fs::create_dir(&path).expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(&path)
            .output();
        let mount = mount.expect("mount");
        let error = String::from_utf8_lossy(&mount.stderr).into_owned();
        assert!(mount.status.success(), "mount: {error}");
        Self { path }
    }

    /// Returns the path at which it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a folder in it that does not exist.
    pub fn folder(&self) -> PathBuf {
        self.path.join("mcastor")
    }

    /// Returns the paths of what is pinned, and of the folders.
    pub fn pinned(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.folder(), &mut found);
        found.sort();
        found
    }
}

fn list(folder: &Path, found: &mut Vec<String>) {
    if !folder.exists() {
        return;
    }
    found.push(folder.display().to_string());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => list(&path, found),
            false => found.push(path.display().to_string()),
        }
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // A process that just ends may still use it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
