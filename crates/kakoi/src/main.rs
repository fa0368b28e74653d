//! One binary that runs Kubernetes Pods, each in a user namespace of its own.
fn main() {}
