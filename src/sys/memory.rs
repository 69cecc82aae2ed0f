//! Memory of the allocator.

/// Returns freed heap memory to the kernel (`malloc_trim(3)`; GNU libc only).
///
/// The allocator otherwise keeps free memory below blocks that are in use. The call takes some
/// milliseconds per 100 MiB, so use it only after rare, large allocations.
pub fn release_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes no pointer and is thread-safe (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
