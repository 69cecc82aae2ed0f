//! Memory that this process shares with the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A mapping of a file descriptor, for reading and writing. Dropping it ends the mapping.
pub(super) struct SharedMapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping belongs to no thread. The owners say who accesses which bytes.
unsafe impl Send for SharedMapping {}
// SAFETY: as above.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps the first `len` bytes.
    pub(super) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    /// Returns the address of its first byte, which is at the start of a page.
    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of `mmap`. References to the bytes borrow the owner.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
