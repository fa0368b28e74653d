//! Seccomp: the default profile, compiled once for a set of capabilities, and installing a compiled program.
//!
//! A compiled program is bytes (`struct sock_filter`, 8 bytes each) that can be kept, sent in a memfd and installed by
//! another process. A profile of the node's (`Localhost`) is a JSON document of the OCI runtime specification. The
//! default profile covers every ABI of the machine: on `x86_64` also i386 (other numbers), while the
//! rare x32 answers ENOSYS; a filter for one ABI only would let a 32-bit program through.

mod assemble;
mod document;
mod oci;
mod profile;
mod table;

pub use document::{Compiled, Document, DocumentError, compile_document};
pub use oci::default_document;

use assemble::{Abi, Action};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Installs a compiled program for this thread with `SECCOMP_FILTER_FLAG_…`. Without `no_new_privs` it needs
/// `CAP_SYS_ADMIN`.
///
/// # Errors
/// The kernel's answer.
pub fn install(program: &[u8], flags: u32) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const u8,
    }
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let length = u16::try_from(program.len() / 8).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel reads `length` instructions of 8 bytes from `filter`.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The ABIs of the machine: OCI's name of the architecture, `AUDIT_ARCH_…`, and the column of the table. The machine's
/// own is the first.
#[cfg(target_arch = "x86_64")]
const ABIS: &[(&str, u32, Column)] =
    &[("SCMP_ARCH_X86_64", 0xc000_003e, |row| row.1), ("SCMP_ARCH_X86", 0x4000_0003, |row| row.2)];
#[cfg(target_arch = "aarch64")]
const ABIS: &[(&str, u32, Column)] = &[("SCMP_ARCH_AARCH64", 0xc000_00b7, |row| row.3)];

type Column = fn(&table::Row) -> i16;

/// Compiles the default profile for a container whose bounding set is `capabilities`.
pub fn compile_default(capabilities: u64) -> Vec<u8> {
    let abis: Vec<Abi> =
        ABIS.iter().map(|(_, architecture, column)| abi(*architecture, *column, capabilities)).collect();
    bytes(&assemble::assemble(&abis))
}

fn bytes(program: &[assemble::Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.if_true, instruction.if_false]);
        bytes.extend(instruction.operand.to_ne_bytes());
    }
    bytes
}

/// The system calls of an ABI: number and name.
fn numbers(column: Column) -> impl Iterator<Item = (u32, &'static str)> {
    table::TABLE.iter().filter_map(move |row| Some((u32::try_from(column(row)).ok()?, row.0)))
}

/// The first number that the table does not know.
fn first_unknown(column: Column) -> u32 {
    numbers(column).map(|(number, _)| number + 1).max().unwrap_or(0)
}

fn abi(architecture: u32, column: Column, capabilities: u64) -> Abi {
    let mut rules: Vec<_> = numbers(column)
        .filter_map(|(number, name)| Some((number, profile::rule_of(name, capabilities)?)))
        .collect();
    rules.sort_unstable_by_key(|(number, _)| *number);
    Abi {
        architecture,
        rules,
        default: profile::DEFAULT,
        first_unknown: first_unknown(column),
        unknown: Action::UNKNOWN,
    }
}

/// Compiled default profiles by set of capabilities, as memfds that are passed to launchers.
#[derive(Debug, Default)]
pub struct Profiles(Mutex<HashMap<u64, Arc<OwnedFd>>>);

impl Profiles {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The default profile for a bounding set; compiled when it is first asked for.
    ///
    /// # Errors
    /// The kernel's answer to `memfd_create`.
    pub fn runtime_default(&self, capabilities: u64) -> io::Result<Arc<OwnedFd>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = known.get(&capabilities) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(crate::process::sealed_data(c"seccomp", &compile_default(capabilities))?);
        known.insert(capabilities, Arc::clone(&program));
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "halves of numbers are wanted here")]

    use super::*;

    /// What a program answers for a system call, by interpreting it.
    pub(super) fn run(program: &[u8], architecture: u32, number: u32, arguments: [u64; 2]) -> u32 {
        let word = |offset: u32| match offset {
            0 => number,
            4 => architecture,
            16 => arguments[0] as u32,
            20 => (arguments[0] >> 32) as u32,
            24 => arguments[1] as u32,
            28 => (arguments[1] >> 32) as u32,
            _ => panic!("load from {offset}"),
        };
        let (mut accumulator, mut counter) = (0, 0);
        loop {
            let at = &program[counter * 8..][..8];
            let code = u16::from_ne_bytes([at[0], at[1]]);
            let operand = u32::from_ne_bytes([at[4], at[5], at[6], at[7]]);
            let branch = |taken: bool| usize::from(if taken { at[2] } else { at[3] });
            counter += 1;
            match code {
                0x20 => accumulator = word(operand),
                0x54 => accumulator &= operand,
                0x05 => counter += operand as usize,
                0x15 => counter += branch(accumulator == operand),
                0x25 => counter += branch(accumulator > operand),
                0x35 => counter += branch(accumulator >= operand),
                0x06 => return operand,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;
    pub(super) const X86_64: u32 = 0xc000_003e;
    pub(super) const I386: u32 = 0x4000_0003;

    fn number(name: &str, column: Column) -> u32 {
        let row = table::TABLE.iter().find(|row| row.0 == name).unwrap();
        u32::try_from(column(row)).unwrap()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_system_call_gets_its_rule_on_both_abis() {
        let capabilities = crate::capability::default_mask();
        let program = compile_default(capabilities);
        for (_, architecture, column) in ABIS {
            for row in table::TABLE.iter().filter(|row| column(row) >= 0) {
                let expected = match profile::rule_of(row.0, capabilities) {
                    Some(rule) if rule.checks.is_empty() => rule.otherwise.0,
                    Some(_) => continue,
                    None => EPERM,
                };
                let answer = run(&program, *architecture, number(row.0, *column), [0, 0]);
                assert_eq!(answer, expected, "{} on {architecture:#x}", row.0);
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn namespaces_mounts_and_foreign_abis_are_refused() {
        let program = compile_default(crate::capability::default_mask());
        let call = |name, argument| run(&program, X86_64, number(name, |row| row.1), [argument, 0]);
        assert_eq!(call("clone", 0x11), ALLOW);
        assert_eq!(call("clone", 0x1000_0011), EPERM, "CLONE_NEWUSER");
        assert_eq!(call("clone3", 0), ENOSYS);
        assert_eq!([call("mount", 0), call("unshare", 0), call("bpf", 0), call("setns", 0)], [EPERM; 4]);
        assert_eq!([call("socket", 2), call("socket", 40)], [ALLOW, EPERM]);
        assert_eq!([call("personality", 0xffff_ffff), call("personality", 0x4_0000)], [ALLOW, EPERM]);
        assert_eq!(run(&program, I386, number("mount", |row| row.2), [0, 0]), EPERM);
        assert_eq!(run(&program, X86_64, 0x4000_0000, [0, 0]), ENOSYS, "x32");
        assert_eq!(run(&program, X86_64, 9_999, [0, 0]), ENOSYS, "newer than this profile");
        assert_eq!(run(&program, 0x4000_0028, 1, [0, 0]), 0x8000_0000, "ARM on x86");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_capability_opens_what_it_is_for() {
        let program = compile_default(crate::capability::SYS_ADMIN);
        for name in ["mount", "unshare", "clone3", "setns"] {
            assert_eq!(run(&program, X86_64, number(name, |row| row.1), [0x1000_0000, 0]), ALLOW, "{name}");
        }
        assert_eq!(run(&program, X86_64, number("reboot", |row| row.1), [0, 0]), EPERM);
    }

    /// A profile that blocks a system call which the table does not know would not block it.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_table_knows_every_number() {
        let known: std::collections::BTreeSet<u32> = numbers(|row| row.1).map(|(number, _)| number).collect();
        let never_given = 335..424;
        let missing: Vec<u32> = (0..first_unknown(|row| row.1))
            .filter(|number| !never_given.contains(number) && !known.contains(number))
            .collect();
        assert_eq!(missing, Vec::<u32>::new(), "of x86_64");
    }

    #[test]
    fn the_table_is_sorted_and_covers_the_profile() {
        assert!(table::TABLE.is_sorted_by_key(|row| row.0));
        let conditional = profile::WITH_CAPABILITY.iter().flat_map(|(_, names)| *names);
        for name in profile::ALWAYS.iter().chain(conditional) {
            assert!(table::TABLE.iter().any(|row| row.0 == *name), "{name}");
        }
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let profiles = Profiles::new();
        let (first, second) = (profiles.runtime_default(0).unwrap(), profiles.runtime_default(0).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
    }
}
