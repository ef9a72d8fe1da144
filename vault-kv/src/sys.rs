//! Key memory: what of this crate needs `unsafe`.
//!
//! A [`Locked`] value lives in pages of its own that are locked into RAM (never swapped), left out of
//! core dumps, and overwritten with zeros when dropped. *ring* does not zeroize its keys, so its key
//! objects live in here too. Copies that pass over the stack while a key is built are overwritten by
//! [`without_traces`]; copies that passed through the heap (buffers of HTTP, JSON and TLS that nobody wipes) by
//! the [`ClearingAllocator`].
#![allow(
    unsafe_code,
    reason = "mmap, mlock and moving a value into those pages cannot be done without it"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::c_void,
    hint::black_box,
    num::NonZeroUsize,
    ops::Deref,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::mman::{self, MapFlags, ProtFlags};

/// Keeps this process's memory out of core dumps and away from other processes of the same user
/// (`PR_SET_DUMPABLE 0`, and no core file at all: `RLIMIT_CORE 0`). Elsewhere than on Linux it does nothing.
///
/// # Errors
/// When the kernel refuses, which it has no reason to do.
pub fn harden_process() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::resource::{Resource, setrlimit};
        nix::sys::prctl::set_dumpable(false)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    }
    Ok(())
}

/// The system's allocator, with memory cleared as it is freed: after [`clear_freed_memory`].
///
/// Secrets pass through buffers that their owners do not wipe: those of HTTP, JSON and TLS, and every vector
/// that grows. A program that embeds a vault should have this allocator:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: vault_kv::ClearingAllocator = vault_kv::ClearingAllocator;
///
/// vault_kv::clear_freed_memory();
/// ```
pub struct ClearingAllocator;

static CLEARING: AtomicBool = AtomicBool::new(false);

/// From here on, [`ClearingAllocator`] clears what is freed. There is no way back: a process that has had
/// secrets goes on having had them.
pub fn clear_freed_memory() {
    CLEARING.store(true, Ordering::Relaxed);
}

// SAFETY: every call goes to `System` with the caller's own guarantees. What is added writes only to a block that
// its owner gives back and nobody else has, within its size.
unsafe impl GlobalAlloc for ClearingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's guarantees are `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if CLEARING.load(Ordering::Relaxed) {
            // SAFETY: the caller owns the block and gives it up; it has `layout.size()` bytes.
            unsafe { block.write_bytes(0, layout.size()) };
            // The compiler knows that nobody reads a freed block, and must not conclude that nobody cares.
            black_box(block);
        }
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !CLEARING.load(Ordering::Relaxed) {
            // SAFETY: as above.
            return unsafe { System.realloc(block, layout, size) };
        }
        // A block that moves leaves its old content behind, so it is moved here.
        // SAFETY: the caller guarantees that `size` is not zero and does not overflow with this alignment.
        let moved =
            unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks have at least so many bytes, and the new one is nobody else's.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
            // SAFETY: the old block is the caller's to give up.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

/// Bytes of stack that are overwritten behind work on keys.
const STACK: usize = 64 << 10;

/// Bytes of stack that are overwritten behind a hash: more than it takes without optimisation, too.
const HASH_STACK: usize = 8 << 10;

/// Does `work`, which has keys on its stack, and overwrites the stack that it used.
pub(crate) fn without_traces<T>(work: impl FnOnce() -> T) -> T {
    let done = apart(work);
    zeroize::zeroize_stack::<STACK>();
    done
}

/// The same for a keyed hash of something secret, the last block of which stays on the stack otherwise. Costs some 0.1 µs.
pub(crate) fn hash_without_traces<T>(hash: impl FnOnce() -> T) -> T {
    let done = apart(hash);
    zeroize::zeroize_stack::<HASH_STACK>();
    done
}

/// In a frame of its own, below the caller's.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A value in locked, undumpable memory; its bytes are overwritten on drop.
pub(crate) struct Locked<T> {
    value: NonNull<T>,
    length: NonZeroUsize,
}

impl<T> Locked<T> {
    /// Moves `value` into pages of its own.
    ///
    /// When the pages cannot be locked (`RLIMIT_MEMLOCK`) it warns once and goes on.
    pub(crate) fn new(value: T) -> Self {
        const { assert!(align_of::<T>() <= 4096) };
        let length = NonZeroUsize::new(size_of::<T>()).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a new private anonymous mapping at an address that the kernel chooses touches no
        // memory that anybody else uses.
        let pages = unsafe {
            mman::mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        };
        let Ok(pages) = pages else {
            std::alloc::handle_alloc_error(Layout::new::<T>())
        };
        protect(pages, length);
        let target = pages.cast::<T>();
        // SAFETY: the mapping is at least `size_of::<T>()` bytes, page-aligned, writable and ours alone.
        unsafe { target.write(value) };
        Self {
            value: target,
            length,
        }
    }
}

fn protect(pages: NonNull<c_void>, length: NonZeroUsize) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    // SAFETY: the range was mapped by the caller just now and stays mapped; locking does not change it.
    let locked = unsafe { mman::mlock(pages, length.get()) };
    if let Err(error) = locked
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(
            %error,
            "key memory cannot be locked and may be swapped out; raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=) or turn swap off"
        );
    }
    #[cfg(target_os = "linux")]
    {
        // SAFETY: as above; the advice only leaves the range out of core dumps.
        let hidden = unsafe { mman::madvise(pages, length.get(), mman::MmapAdvise::MADV_DONTDUMP) };
        if let Err(error) = hidden {
            tracing::warn!(%error, "key memory cannot be left out of core dumps");
        }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a valid `T` there, and it lives until drop.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is valid, dropped exactly once here, and never used afterwards.
        unsafe { self.value.drop_in_place() };
        let bytes = self.value.cast::<u8>();
        for offset in 0..self.length.get() {
            // SAFETY: `offset` is inside the mapping, which is ours until the `munmap` below. Volatile,
            // so that the compiler keeps a write that nobody reads.
            unsafe { bytes.add(offset).write_volatile(0) };
        }
        // SAFETY: exactly the range that `new` mapped; nothing refers to it any more.
        let unmapped = unsafe { mman::munmap(self.value.cast(), self.length.get()) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: `Locked<T>` owns its `T` as a `Box<T>` does.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above; only `&T` is handed out.
unsafe impl<T: Sync> Sync for Locked<T> {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn holds_and_drops_its_value_once() {
        let probe = Arc::new(7);
        let locked = Locked::new((Arc::clone(&probe), [3u8; 5000]));
        assert_eq!(*locked.0, 7);
        assert_eq!(locked.1[4999], 3);
        assert_eq!(Arc::strong_count(&probe), 2);
        drop(locked);
        assert_eq!(Arc::strong_count(&probe), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_locked_and_left_out_of_dumps() {
        let locked = Locked::new([1u8; 32]);
        let address = ptr::from_ref(&*locked) as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut flags = None;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) = (
                    usize::from_str_radix(from, 16),
                    usize::from_str_radix(to, 16),
                )
            {
                inside = (from..to).contains(&address);
            }
            if inside && let Some(found) = line.strip_prefix("VmFlags:") {
                flags = Some(
                    found
                        .split_whitespace()
                        .map(str::to_owned)
                        .collect::<Vec<_>>(),
                );
            }
        }
        let flags = flags.expect("the page is mapped");
        assert!(flags.iter().any(|flag| flag == "dd"), "{flags:?}");
        assert!(flags.iter().any(|flag| flag == "lo"), "{flags:?}");
    }
}
