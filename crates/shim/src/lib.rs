//! The per-Pod supervisor: a small single-threaded static program that makes the sandbox, launches, reaps, holds terminals and writes logs.
