//! Linux: clone, pidfd, mounts and ID-mapped mounts, cgroups v1 and v2, seccomp, capabilities, ptys; owned descriptors in, typed errors out.
