//! Pooled memory that packets are received into.
//!
//! A [`Buffer`] has address space for [`PACKETS`] packets of any size. Pages that were never
//! written use no memory. The first [`SMALL_LEN`] bytes of all packets share a dense area at the
//! front; only larger packets touch the area behind it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest number of packets per buffer.
pub const PACKETS: usize = 32;
/// Bytes per packet in the dense area: enough for a packet of ordinary size and its headers.
pub const SMALL_LEN: usize = 2048;
/// Bytes for the rest of a larger packet: 64 KiB of IP and all headers before it.
pub const REST_LEN: usize = 66 << 10;
/// Bytes per packet in the area for large packets. The first bytes are moved in front of the rest.
const LARGE_LEN: usize = SMALL_LEN + REST_LEN;
const DENSE_AREA: usize = PACKETS * SMALL_LEN;
const LEN: usize = DENSE_AREA + PACKETS * LARGE_LEN;

/// Largest number of unused buffers in a pool; further ones are unmapped.
const MAX_POOLED: usize = 8;
/// A pooled buffer that used more bytes than this of its large area returns those pages.
const MAX_POOLED_LARGE_BYTES: usize = 256 << 10;

struct Mapping(*mut u8);

// SAFETY: the memory is plain and private, and only the one `Buffer` that owns it accesses it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
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
        // With huge pages, one small packet would use two megabytes. A kernel without huge pages
        // returns an error, which has the same result.
        // SAFETY: the mapping was created above with this length.
        unsafe { libc::madvise(base, LEN, libc::MADV_NOHUGEPAGE) };
        Ok(Self(base.cast()))
    }

    /// Returns the pages of the large area to the kernel. They read as zeros afterwards.
    fn release_large(&self) {
        let large = self.0.wrapping_add(DENSE_AREA);
        // SAFETY: the area lies inside the mapping, and no reference to it remains.
        unsafe { libc::madvise(large.cast(), LEN - DENSE_AREA, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of `mmap`, and the owner is dropped.
        unsafe { libc::munmap(self.0.cast(), LEN) };
    }
}

/// A pool of unused buffers. Clones share it.
#[derive(Clone, Default)]
pub struct BufferPool(Arc<Mutex<Vec<Mapping>>>);

impl BufferPool {
    /// Returns an unused buffer of the pool, or a new one.
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

/// Memory for packets. Dropping it returns it to its pool.
pub struct Buffer {
    /// `Some` until drop.
    mapping: Option<Mapping>,
    /// Upper bound of the bytes that were written to the large area.
    large: usize,
    pool: BufferPool,
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

    /// Returns the whole buffer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `self` owns the mapping. It is readable, initialised by the kernel, and lives as
        // long as `self`. Without a mapping the length is zero.
        unsafe { std::slice::from_raw_parts(self.base(), self.len()) }
    }

    /// Returns the whole buffer for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `&mut self` is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len()) }
    }

    /// Returns the offset and length of both areas of packet `n`: its first [`SMALL_LEN`] bytes,
    /// and the following [`REST_LEN`] bytes.
    pub(super) fn slots(n: usize) -> [(usize, usize); 2] {
        let rest = DENSE_AREA + n * LARGE_LEN + SMALL_LEN;
        [(n * SMALL_LEN, SMALL_LEN), (rest, REST_LEN)]
    }

    /// Makes the received `len` bytes of packet `n` contiguous and returns their offset.
    pub(super) fn make_contiguous(&mut self, n: usize, len: usize) -> usize {
        let [(dense, _), (rest, _)] = Self::slots(n);
        if len <= SMALL_LEN {
            return dense;
        }
        self.large += len;
        let start = rest - SMALL_LEN;
        self.bytes_mut()
            .copy_within(dense..dense + SMALL_LEN, start);
        start
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mapping) = self.mapping.take() else {
            return;
        };
        if self.large > MAX_POOLED_LARGE_BYTES {
            mapping.release_large();
        }
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_POOLED {
            kept.push(mapping);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_fill_the_buffer() {
        let mut slots: Vec<_> = (0..PACKETS).flat_map(Buffer::slots).collect();
        slots.sort_unstable();
        for pair in slots.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        let (start, len) = slots[slots.len() - 1];
        assert_eq!(start + len, LEN);
    }

    #[test]
    fn large_packet_becomes_contiguous_small_one_stays() {
        let pool = BufferPool::default();
        let mut buffer = pool.take().unwrap();
        let [(dense, dense_len), (rest, _)] = Buffer::slots(3);
        buffer.bytes_mut()[dense..dense + dense_len].fill(1);
        buffer.bytes_mut()[rest..rest + 5].fill(2);
        assert_eq!(buffer.make_contiguous(3, SMALL_LEN), dense);
        let start = buffer.make_contiguous(3, SMALL_LEN + 5);
        let packet = &buffer.bytes()[start..start + SMALL_LEN + 5];
        assert!(packet[..SMALL_LEN].iter().all(|b| *b == 1));
        assert_eq!(packet[SMALL_LEN..], [2; 5]);
    }

    #[test]
    fn dropped_buffers_are_reused_up_to_the_pool_limit() {
        let pool = BufferPool::default();
        let first = pool.take().unwrap();
        let at = first.bytes().as_ptr();
        drop(first);
        assert_eq!(pool.take().unwrap().bytes().as_ptr(), at);
        let many: Vec<_> = (0..MAX_POOLED + 3).map(|_| pool.take().unwrap()).collect();
        drop(many);
        assert_eq!(pool.0.lock().unwrap().len(), MAX_POOLED);
    }
}
