//! What the process holds of the machine's memory.

/// Gives memory that was freed back to the machine. The allocator keeps it otherwise where
/// something still in use lies above it. Takes some milliseconds for each 100 MiB: only for
/// after what is rare and large.
pub fn release_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
