//! The allocator of the process: mimalloc, asked in the way that suits it.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// What every block of mimalloc of at least this size is aligned to (its `MI_MAX_ALIGN_SIZE`); smaller ones are aligned to
/// a word.
const ALIGNED_BYTES: usize = 16;
const WORD_BYTES: usize = size_of::<usize>();

/// Asks for an alignment only where a block has none by itself. Mimalloc takes a block of the next larger size for whoever
/// names one and wants a size that is no power of two, as most objects' are: a slower way, and up to a third more room.
pub struct Allocator;

fn is_aligned_anyway(layout: &Layout) -> bool {
    layout.align() <= WORD_BYTES || layout.align() <= ALIGNED_BYTES && layout.size() >= ALIGNED_BYTES
}

// SAFETY: blocks come from mimalloc and go back to it, whose own promises are those of `GlobalAlloc`; what it is not told of
// alignment, it keeps for every block, as said above.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match is_aligned_anyway(&layout) {
            // SAFETY: any size may be asked for.
            true => unsafe { mi::mi_malloc(layout.size()) }.cast(),
            // SAFETY: a layout's alignment is a power of two.
            false => unsafe { mi::mi_malloc_aligned(layout.size(), layout.align()) }.cast(),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match is_aligned_anyway(&layout) {
            // SAFETY: as for `alloc`.
            true => unsafe { mi::mi_zalloc(layout.size()) }.cast(),
            // SAFETY: as for `alloc`.
            false => unsafe { mi::mi_zalloc_aligned(layout.size(), layout.align()) }.cast(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller has the block from here.
        unsafe { mi::mi_free(block.cast()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let is_small = size < ALIGNED_BYTES && layout.align() > WORD_BYTES;
        match is_aligned_anyway(&layout) && !is_small {
            // SAFETY: the caller has the block from here, and it was aligned as it is now.
            true => unsafe { mi::mi_realloc(block.cast(), size) }.cast(),
            // SAFETY: the same, with its alignment, which is a power of two.
            false => unsafe { mi::mi_realloc_aligned(block.cast(), size, layout.align()) }.cast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_aligned_and_keeps_what_it_holds() {
        for (align, size) in (0..8).flat_map(|power| (1..200).map(move |size| (1_usize << power, size))) {
            let layout = Layout::from_size_align(size, align).unwrap();
            for grown in [1, size / 2 + 1, size, size + 1, 5 * size] {
                // SAFETY: sizes are not zero, and each block is given back once, with the layout that it has.
                unsafe {
                    let block = Allocator.alloc_zeroed(layout);
                    assert!(
                        block.addr().is_multiple_of(align) && (0..size).all(|at| *block.add(at) == 0),
                        "{layout:?}"
                    );
                    block.write_bytes(7, size);
                    let block = Allocator.realloc(block, layout, grown);
                    assert!(block.addr().is_multiple_of(align), "{layout:?} to {grown}");
                    assert!((0..size.min(grown)).all(|at| *block.add(at) == 7));
                    Allocator.dealloc(block, Layout::from_size_align(grown, align).unwrap());
                }
            }
        }
    }
}
