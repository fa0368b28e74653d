//! The image store as a whole: layouts, archives, registries good and bad, full disks, kills.
//! Needs root, for layers have owners and devices.

mod disk;
mod hostile;
mod layers;
mod layouts;
mod real_registry;
mod support;
