//! Writes the joinfile of an ingress.

use std::io;
use std::path::Path;

use crate::mnat::{Channel, joinfile};
use crate::sys::files::replace_or_overwrite;

/// Writes a joinfile. A reader sees the former joins or the new ones. If the file cannot be
/// replaced, because it is a mount point, a reader may see other subsets of them, but always the
/// joins that both have.
///
/// # Errors
/// The error of the system call that failed.
pub(super) fn write_joins(path: &Path, joins: &[Channel]) -> io::Result<()> {
    let steps = |former: &[u8]| joinfile::overwrite_steps(former, joins.iter().copied());
    replace_or_overwrite(path, &joinfile::render(joins.iter().copied()), steps)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::sys::files::overwrite;

    /// A reader in a tight loop beside a writer in place.
    #[test]
    fn reader_of_a_file_written_in_place_misses_no_common_join() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mounted.sgs");
        let join = |n: usize| {
            let source = format!("10.0.{}.{}", n / 200, n % 200 + 1);
            Channel::parse(Some(&source), "232.1.1.1").unwrap()
        };
        // More than a page, so that a write and a read overlap.
        let odd: Vec<Channel> = (0..600).filter(|n| n % 3 < 2).map(join).collect();
        let even: Vec<Channel> = (0..600).filter(|n| n % 3 > 0).map(join).collect();
        let common: Vec<Channel> = (0..600).filter(|n| n % 3 == 1).map(join).collect();
        fs::write(&path, joinfile::render(odd.iter().copied())).unwrap();
        let done = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) {
                    let file = joinfile::parse(&fs::read(&path).unwrap());
                    let missing = common.iter().filter(|join| !file.joins.contains(join));
                    assert_eq!((missing.count(), file.fault_count), (0, 0));
                    reads += 1;
                }
                reads
            });
            for joins in [&even, &odd].into_iter().cycle().take(400) {
                let steps = |former: &[u8]| joinfile::overwrite_steps(former, joins.clone());
                overwrite(&path, steps).unwrap();
                if reader.is_finished() {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        println!("{reads} reads beside 400 writes");
        assert!(reads > 0);
    }
}
