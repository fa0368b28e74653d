//! Whole-system tests: the real `kubectl` against the real binary.
