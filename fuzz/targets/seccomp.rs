//! Seccomp profiles of the node (`Localhost`): a document that is taken becomes a program that the kernel would take.
//! The kernel's own rules (`bpf_check_classic`) are checked here: every jump lands in the program, and it ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sys::seccomp::{Document, compile_document};

/// Most instructions of a program (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

const CLASS: u16 = 0x07;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;
const ALWAYS: u16 = 0x00;

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return };
    for (capabilities, kernel) in [(0, "4.8.0"), (u64::MAX, "6.12.1-amd64")] {
        if let Ok(compiled) = compile_document(&document, capabilities, kernel) {
            check(&compiled.program);
        }
    }
});

fn check(program: &[u8]) {
    assert_eq!(program.len() % 8, 0);
    let count = program.len() / 8;
    assert!((1..=LONGEST).contains(&count), "a program of {count} instructions");
    for (at, instruction) in program.chunks(8).enumerate() {
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let operand = u32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        let lands = |by: usize| assert!(at + by + 1 < count, "instruction {at} jumps out of the program");
        match (code & CLASS, code & 0xf0) {
            (JUMP, ALWAYS) => lands(usize::try_from(operand).unwrap_or(usize::MAX)),
            (JUMP, _) => {
                lands(instruction[2].into());
                lands(instruction[3].into());
            }
            _ => {}
        }
    }
    let last = program.chunks(8).next_back().map(|last| u16::from_ne_bytes([last[0], last[1]]));
    assert_eq!(last.map(|code| code & CLASS), Some(RETURN), "the program does not end with a decision");
}
