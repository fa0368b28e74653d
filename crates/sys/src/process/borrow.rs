//! A child that borrows this process's memory, as vfork(2) does: nothing is copied, and the thread that starts it waits
//! until it has become another program or ended. All other threads run on.
//!
//! libc's `vfork` can't be born into a cgroup, and its `clone` neither; so this is `clone3` with `CLONE_VM` and
//! `CLONE_VFORK`, and the child on a stack of its own.

use std::ffi::c_void;
use std::io;
use std::os::fd::RawFd;

use super::{Child, CloneArgs, CloneOptions};

/// The child's stack; it runs a few small functions. Below it lies a page that can't be touched.
const STACK: usize = 64 << 10;
const GUARD: usize = 4 << 10;

/// Starts `run` in a child and returns when the child has exec'ed or exited.
///
/// # Safety
/// `run` makes system calls only: it takes no lock, allocates nothing, and changes no memory that this process uses.
///
/// # Errors
/// The kernel's answer to `clone3`, or that there is no memory for the stack.
pub(super) unsafe fn start<F: Fn() -> Never>(options: CloneOptions<'_>, run: &F) -> io::Result<Child> {
    let stack = Stack::new()?;
    let mut pidfd: RawFd = -1;
    let mut args = options.args(&mut pidfd)?;
    args.flags |= u64::try_from(libc::CLONE_VM | libc::CLONE_VFORK).unwrap_or_default();
    (args.stack, args.stack_size) = stack.place();
    // A handler of this process must not run in the child, on memory that both have.
    let mask = block_signals()?;
    // SAFETY: the arguments are valid, the stack is large enough and lives until the child has let go of it.
    let pid = unsafe { clone_on_stack(&mut args, enter::<F>, std::ptr::from_ref(run).cast()) };
    restore_signals(&mask);
    if let Ok(errno @ 1..) = i32::try_from(-pid) {
        return Err(io::Error::from_raw_os_error(errno));
    }
    // SAFETY: the kernel stored a new descriptor that nothing else owns.
    Ok(unsafe { Child::new(pid, pidfd) })
}

/// What never comes to be.
pub(super) enum Never {}

/// The child's first function.
unsafe extern "C" fn enter<F: Fn() -> Never>(run: *const c_void) -> ! {
    // SAFETY: `start` passes a reference to an `F` that outlives the child's use of this memory.
    let run = unsafe { &*run.cast::<F>() };
    match run() {}
}

/// `clone3`; the child calls `enter(run)` on its stack. Answers the PID, or a negative errno.
///
/// # Safety
/// `args` names a stack that ends on a multiple of 16 and shares memory with `CLONE_VFORK`; `enter` accepts `run`.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_on_stack(
    args: &mut CloneArgs,
    enter: unsafe extern "C" fn(*const c_void) -> !,
    run: *const c_void,
) -> libc::c_long {
    let mut result = libc::SYS_clone3;
    // SAFETY: only the child leaves the straight path, and it has another stack; the kernel changes rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") std::ptr::from_mut(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") run,
            in("r13") enter,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_on_stack(
    args: &mut CloneArgs,
    enter: unsafe extern "C" fn(*const c_void) -> !,
    run: *const c_void,
) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: only the child leaves the straight path, and it has another stack.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            inlateout("x0") std::ptr::from_mut(args) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            in("x20") run,
            in("x21") enter,
        );
    }
    result
}

/// Memory for the child, given back when dropped.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new mapping wherever the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), GUARD + STACK, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self(base);
        // SAFETY: inside the mapping that was just made.
        let usable = unsafe {
            libc::mprotect(base.wrapping_byte_add(GUARD), STACK, libc::PROT_READ | libc::PROT_WRITE)
        };
        if usable == 0 { Ok(stack) } else { Err(io::Error::last_os_error()) }
    }

    /// The lowest usable address and the size.
    fn place(&self) -> (u64, u64) {
        ((self.0 as u64).saturating_add(GUARD as u64), STACK as u64)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; with `CLONE_VFORK` the child no longer uses it.
        unsafe { libc::munmap(self.0, GUARD + STACK) };
    }
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: all-zero bytes are a valid sigset_t.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut old = all;
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: two valid sets.
    let errno = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) };
    if errno == 0 { Ok(old) } else { Err(io::Error::from_raw_os_error(errno)) }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: a valid set; it was this thread's mask before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}
