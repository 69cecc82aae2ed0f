//! Confinement of threads that process what strangers send: they can start no program, and open no
//! file or only those of /proc. This is a second line of defence, if a fault in a parser lets a
//! stranger run code in the thread.
//!
//! Landlock (Linux 5.13) denies files, and with them programs. A seccomp filter denies system calls
//! that such a thread never makes. Both apply to the calling thread and to the threads that it
//! starts. Other threads of the process are not confined, so a thread with arbitrary code could
//! still change their memory: confinement prevents simple attacks, not every one.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, path_beneath_rules,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The files that a confined thread may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// None.
    None,
    /// Those of /proc, for reading: settings of the kernel for an interface.
    ReadProc,
}

/// System calls that no confined thread makes.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
];

/// Further ones without files.
const DENIED_WITHOUT_FILES: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    libc::SYS_openat,
    libc::SYS_openat2,
];

/// Confines the calling thread. Returns whether Landlock takes part; older kernels do not have it.
///
/// # Errors
/// The kernel refuses.
pub fn confine_thread(files: FileAccess) -> io::Result<bool> {
    let status = restrict_files(files).map_err(io::Error::other)?;
    deny_calls(files)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn restrict_files(files: FileAccess) -> Result<RestrictionStatus, RulesetError> {
    let paths: &[&str] = match files {
        FileAccess::None => &[],
        FileAccess::ReadProc => &["/proc"],
    };
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V3))?
        .create()?
        .add_rules(path_beneath_rules(paths, read))?
        .restrict_self()
}

fn deny_calls(files: FileAccess) -> io::Result<()> {
    let without_files = match files {
        FileAccess::None => DENIED_WITHOUT_FILES,
        FileAccess::ReadProc => &[],
    };
    let denied = DENIED.iter().chain(without_files);
    let rules: BTreeMap<i64, Vec<_>> = denied.map(|call| (*call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let (others, denied) = (
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
    );
    let filter = SeccompFilter::new(rules, others, denied, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;

    fn confined<T: Send>(files: FileAccess, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                confine_thread(files).expect("this kernel has seccomp");
                work()
            });
            thread.join().unwrap()
        })
    }

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().map(|e| e.raw_os_error().unwrap_or_default())
    }

    #[test]
    fn confined_thread_opens_no_file_and_starts_no_program() {
        confined(FileAccess::None, || {
            assert_eq!(errno(File::open("/etc/passwd")), Some(libc::EPERM));
            assert_eq!(errno(File::open("/proc/self/status")), Some(libc::EPERM));
            assert!(errno(Command::new("/bin/true").status()).is_some());
            assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
            let inherited = std::thread::spawn(|| errno(File::open("/etc/passwd")));
            assert_eq!(inherited.join().unwrap(), Some(libc::EPERM));
        });
        assert!(File::open("/etc/passwd").is_ok());
    }

    #[test]
    fn files_of_proc_may_be_readable_alone() {
        confined(FileAccess::ReadProc, || {
            assert!(std::fs::read("/proc/sys/net/ipv4/conf/all/force_igmp_version").is_ok());
            assert!(errno(Command::new("/bin/true").status()).is_some());
            // Without Landlock, the filter alone cannot tell files apart.
            if restrict_files(FileAccess::None)
                .is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
            {
                assert_eq!(errno(File::open("/etc/passwd")), Some(libc::EACCES));
            }
        });
    }
}
