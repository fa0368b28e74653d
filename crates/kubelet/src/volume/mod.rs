//! Volumes: what each must hold (planned), and putting it there (applied, repeatable, undone at the Pod's end).

pub(crate) mod atomic;
pub(crate) mod claim;
pub(crate) mod fs_group;
pub(crate) mod host_path;
pub(crate) mod mount;
pub(crate) mod nfs;
pub(crate) mod payload;
pub(crate) mod plan;
pub(crate) mod setup;
pub(crate) mod sub_path;
