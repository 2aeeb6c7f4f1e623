//! The entry point of `adl-init`, and what a program without libc must bring itself.
//!
//! All that it does is in the library; here is what can't be there, because the library is also
//! linked into test programs, which have an allocator and an entry point of their own.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "entry point, allocator and memory functions")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;

use linked_list_allocator::Heap;

/// Where the kernel starts the program: no stack frame, no return address.
///
/// # Safety
/// Only the kernel may jump here.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    adl_init::sys::exit(adl_init::run())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A message would have no reader. The end of PID 1 is the end of the sandbox, which the host
    // sees at once.
    adl_init::sys::exit(70)
}

/// The heap: a fixed range of zero pages, of which only those that were used take memory.
/// In this order, so that what is used first lies on one page with the book-keeping: each page
/// that is written after a fork costs a fault, here and in the job.
#[repr(C)]
struct Allocator {
    heap: UnsafeCell<Heap>,
    arena: UnsafeCell<[u8; ARENA]>,
}

/// Six times the longest frame: the frame itself, a copy while it is taken out of the receive
/// buffer, the lists in it; the rest is for the stacks and requests of children, and for a child
/// with memory of its own that walks a tree 65,536 names deep.
const ARENA: usize = 6 * adl_protocol::limits::MAX_FRAME;

// SAFETY: the process has one thread, and its signals have no handlers.
unsafe impl Sync for Allocator {}

#[global_allocator]
static ALLOCATOR: Allocator =
    Allocator { heap: UnsafeCell::new(Heap::empty()), arena: UnsafeCell::new([0; ARENA]) };

// SAFETY: `Heap` hands out parts of the arena that don't overlap and are aligned as asked. There
// is one thread, so the reference to it is the only one for as long as it lives.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.arena.get().addr();
        adl_init::sys::check_may_allocate(&(start..start + ARENA));
        // SAFETY: see above.
        let heap = unsafe { &mut *self.heap.get() };
        if heap.size() == 0 {
            // SAFETY: once, and the arena is used for nothing else.
            unsafe { heap.init(self.arena.get().cast(), ARENA) };
        }
        heap.allocate_first_fit(layout).map_or(core::ptr::null_mut(), core::ptr::NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = core::ptr::NonNull::new(pointer) {
            // SAFETY: see above; the caller promises that this came from `alloc` with `layout`.
            unsafe { (*self.heap.get()).deallocate(pointer, layout) };
        }
    }
}

/// Copies forwards.
///
/// # Safety
/// As `memcpy(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the calling convention.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies in the direction that is safe.
///
/// # Safety
/// As `memmove(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's promise; the end of `to` does not reach into what is still to be
        // read when copying forwards.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise, backwards; the direction flag is clear again after it.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// Fills.
///
/// # Safety
/// As `memset(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the low byte is what memset writes.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares.
///
/// # Safety
/// As `memcmp(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller's promise: `count` bytes can be read at both. Volatile, or the
        // compiler may see memcmp in this loop and call it.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// Compares for equality.
///
/// # Safety
/// As `bcmp(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, count) }
}

/// Measures a string.
///
/// # Safety
/// As `strlen(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise: there is a NUL, and all before it can be read. Volatile for
    // the same reason as in memcmp.
    while unsafe { string.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
