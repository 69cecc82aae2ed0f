//! Pooled memory that packets are received into.
//!
//! A [`Buffer`] has room for [`PACKETS`] packets of any size. Room is address space: pages
//! nobody wrote to cost nothing, so packets of ordinary size stand densely at the front, and
//! only larger ones touch the area behind.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Most packets of one buffer.
pub const PACKETS: usize = 32;
/// Room for a packet of ordinary size, with its headers.
pub const DENSE: usize = 2048;
/// Room for the rest of a larger one: 64 KiB of IP and every header before it.
pub const REST: usize = 66 << 10;
/// A large packet, whole: its first bytes are moved in front of its rest.
const LARGE: usize = DENSE + REST;
const DENSE_AREA: usize = PACKETS * DENSE;
const LEN: usize = DENSE_AREA + PACKETS * LARGE;

/// Unused buffers kept; further ones go back to the system.
const KEPT: usize = 8;
/// A buffer with more than this in its large area gives those pages back.
const KEPT_LARGE: usize = 256 << 10;

struct Mapping(*mut u8);

// SAFETY: plain memory of our own, reached only through the one `Buffer` that owns it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would make one small packet cost two megabytes. Kernels without huge
        // pages refuse, which is as good.
        // SAFETY: the mapping just made.
        unsafe { libc::madvise(base, LEN, libc::MADV_NOHUGEPAGE) };
        Ok(Self(base.cast()))
    }

    /// Gives the pages of the large area back; they read as zeros afterwards.
    fn forget_large(&self) {
        let large = self.0.wrapping_add(DENSE_AREA);
        // SAFETY: the area lies inside the mapping, and nobody refers to it any more.
        unsafe { libc::madvise(large.cast(), LEN - DENSE_AREA, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what mmap returned, and the owner goes.
        unsafe { libc::munmap(self.0.cast(), LEN) };
    }
}

/// Buffers to take and give back. Clones share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Mapping>>>);

impl Pool {
    /// A buffer: one used before, or a new one.
    pub fn take(&self) -> io::Result<Buffer> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mapping = match kept {
            Some(mapping) => mapping,
            None => Mapping::new()?,
        };
        Ok(Buffer {
            mapping: Some(mapping),
            large: 0,
            pool: self.clone(),
        })
    }
}

/// Memory for packets; dropping it gives it back to its pool.
pub struct Buffer {
    /// There until dropped.
    mapping: Option<Mapping>,
    /// How much of the large area was written to, at most.
    large: usize,
    pool: Pool,
}

impl Buffer {
    fn base(&self) -> *mut u8 {
        self.mapping
            .as_ref()
            .map_or(std::ptr::NonNull::dangling().as_ptr(), |m| m.0)
    }

    fn len(&self) -> usize {
        self.mapping.as_ref().map_or(0, |_| LEN)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is ours, readable, zeroed by the kernel, and lives as long as
        // `self`; without one the length is zero.
        unsafe { std::slice::from_raw_parts(self.base(), self.len()) }
    }

    /// All of it, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `&mut self` is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len()) }
    }

    /// Where packet `n` is received: its first [`DENSE`] bytes, then [`REST`] more.
    pub(super) fn places(n: usize) -> [(usize, usize); 2] {
        [(n * DENSE, DENSE), (DENSE_AREA + n * LARGE + DENSE, REST)]
    }

    /// Makes packet `n`, of which `len` bytes were received, contiguous; returns its start.
    pub(super) fn settle(&mut self, n: usize, len: usize) -> usize {
        let [(dense, _), (rest, _)] = Self::places(n);
        if len <= DENSE {
            return dense;
        }
        self.large += len;
        let start = rest - DENSE;
        self.bytes_mut().copy_within(dense..dense + DENSE, start);
        start
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mapping) = self.mapping.take() else {
            return;
        };
        if self.large > KEPT_LARGE {
            mapping.forget_large();
        }
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(mapping);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_apart_and_inside() {
        let mut places: Vec<_> = (0..PACKETS).flat_map(Buffer::places).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        let (start, len) = places[places.len() - 1];
        assert_eq!(start + len, LEN);
    }

    #[test]
    fn a_large_packet_becomes_contiguous_and_a_small_one_stays() {
        let pool = Pool::default();
        let mut buffer = pool.take().unwrap();
        let [(dense, dense_len), (rest, _)] = Buffer::places(3);
        buffer.bytes_mut()[dense..dense + dense_len].fill(1);
        buffer.bytes_mut()[rest..rest + 5].fill(2);
        assert_eq!(buffer.settle(3, DENSE), dense);
        let start = buffer.settle(3, DENSE + 5);
        let packet = &buffer.bytes()[start..start + DENSE + 5];
        assert!(packet[..DENSE].iter().all(|b| *b == 1));
        assert_eq!(packet[DENSE..], [2; 5]);
    }

    #[test]
    fn what_is_dropped_is_taken_again_and_too_many_are_not_kept() {
        let pool = Pool::default();
        let first = pool.take().unwrap();
        let at = first.bytes().as_ptr();
        drop(first);
        assert_eq!(pool.take().unwrap().bytes().as_ptr(), at);
        let many: Vec<_> = (0..KEPT + 3).map(|_| pool.take().unwrap()).collect();
        drop(many);
        assert_eq!(pool.0.lock().unwrap().len(), KEPT);
    }
}
