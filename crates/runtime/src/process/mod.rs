//! What a container's process is: its command line, environment, user, capabilities and stop signal, worked
//! out from the request and the image. Nothing here touches the kernel; only [`user`] reads two files.

pub(crate) mod capability;
pub(crate) mod command;
pub(crate) mod signal;
pub(crate) mod user;
