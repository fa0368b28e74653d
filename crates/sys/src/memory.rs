//! How the C library's allocator treats memory that is freed: a daemon that works in bursts should not stay as large as
//! its largest one.

/// Makes the allocator give memory back: few heaps, so that what one thread frees serves the others, and fixed
/// thresholds above which what is free goes back to the kernel. To be called once, before there are threads. Other C
/// libraries than glibc are left as they are.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in settings() {
        // SAFETY: it sets a number of the allocator, under the allocator's own lock; one that it refuses changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// The numbers of mallopt(3), sizes in bytes.
#[cfg(target_env = "gnu")]
fn settings() -> [(libc::c_int, libc::c_int); 4] {
    let processors = std::thread::available_parallelism().ok();
    let heaps = processors.and_then(|number| number.get().try_into().ok()).unwrap_or(MOST_HEAPS);
    [
        // One for each processor; the default is eight.
        (libc::M_ARENA_MAX, heaps.min(MOST_HEAPS)),
        // Larger blocks are mapped by themselves. It is the default, which would grow with each such block that is freed.
        (libc::M_MMAP_THRESHOLD, 128 * 1024),
        // What may be free at a heap's end; the default grows, too. Less of it would be given back and asked for again
        // by each answer that is made in pieces.
        (libc::M_TRIM_THRESHOLD, 1024 * 1024),
        // How much a heap grows by at least.
        (libc::M_TOP_PAD, 512 * 1024),
    ]
}

/// Heaps of a machine with very many processors.
#[cfg(target_env = "gnu")]
const MOST_HEAPS: libc::c_int = 8;

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #[test]
    fn the_allocator_takes_each_setting() {
        for (parameter, value) in super::settings() {
            // SAFETY: as in `give_back`.
            let taken = unsafe { libc::mallopt(parameter, value) };
            assert_eq!(taken, 1, "{parameter}");
        }
    }
}
