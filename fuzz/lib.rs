//! What several targets share: a place on the side that stays the same for all inputs of a target.
//! It decides nothing about what is right; each target says that itself.

pub mod session;
