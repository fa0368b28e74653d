//! How registries are reached: `hosts.toml`, and the challenges with which a registry asks who is there.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    image::fuzz::hosts(text);
    image::fuzz::challenges(text);
});
