//! Linux: clone, pidfd, mounts and ID-mapped mounts, cgroups v1 and v2, seccomp, capabilities, ptys; owned descriptors in, typed errors out.
//!
//! Only this crate and `shim` contain `unsafe`. Nothing here decides what a container may do; it offers the kernel's
//! operations in a form that can't leak a descriptor or lose an error.

pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod idmap;
pub mod limit;
pub mod memory;
pub mod mount;
pub mod path;
pub mod process;
pub mod pty;
pub mod seccomp;
pub mod socket;
