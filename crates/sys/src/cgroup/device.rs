//! Which devices a group's processes may use: rules for v1 files, a BPF program for v2.
//!
//! Inside a user namespace this is the second line only: `mknod` is refused there anyway.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// One rule; later ones win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allow or deny.
    pub is_allowed: bool,
    /// `a`ll, `b`lock or `c`haracter.
    pub kind: char,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Letters of `r`ead, `w`rite, `m`knod.
    pub access: &'static str,
}

impl DeviceRule {
    /// Allows a character device. `access` as in [`DeviceRule::access`].
    pub const fn character(major: u32, minor: u32, access: &'static str) -> Self {
        DeviceRule { is_allowed: true, kind: 'c', major: Some(major), minor: Some(minor), access }
    }

    /// Allows a block device.
    pub const fn block(major: u32, minor: u32, access: &'static str) -> Self {
        DeviceRule { is_allowed: true, kind: 'b', major: Some(major), minor: Some(minor), access }
    }

    /// Allows everything.
    pub const ALL: Self = DeviceRule { is_allowed: true, kind: 'a', major: None, minor: None, access: "rwm" };
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(f, "{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

const fn any(kind: char) -> DeviceRule {
    DeviceRule { is_allowed: true, kind, major: None, minor: None, access: "m" }
}

const fn terminals(major: u32) -> DeviceRule {
    DeviceRule { is_allowed: true, kind: 'c', major: Some(major), minor: None, access: "rwm" }
}

/// What every container may use: making nodes (not opening them), the usual six, and terminals.
pub(super) const DEFAULT: &[DeviceRule] = &[
    any('c'),
    any('b'),
    DeviceRule::character(1, 3, "rwm"),
    DeviceRule::character(1, 5, "rwm"),
    DeviceRule::character(1, 7, "rwm"),
    DeviceRule::character(1, 8, "rwm"),
    DeviceRule::character(1, 9, "rwm"),
    DeviceRule::character(5, 0, "rwm"),
    DeviceRule::character(5, 1, "rwm"),
    DeviceRule::character(5, 2, "rwm"),
    terminals(136),
];

/// `struct bpf_insn`.
type Instruction = u64;

const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_ne_bytes([code, dst | (src << 4), o0, o1, i0, i1, i2, i3])
}

const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];

/// The program: the last rule that fits decides, so it tries them backwards; none denies.
///
/// `struct bpf_cgroup_dev_ctx`: access type (kind in the low 16 bits, access above), major, minor.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    const LOAD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
    const MOVE_REGISTER: u8 = 0xbf;
    const AND: u8 = 0x57;
    const RIGHT_SHIFT: u8 = 0x77;
    const SET: u8 = 0xb7;
    const JUMP_UNEQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),     // r2: kind
        instruction(RIGHT_SHIFT, 3, 0, 0, 16), // r3: access
        instruction(LOAD, 4, 1, 4, 0),         // r4: major
        instruction(LOAD, 5, 1, 8, 0),         // r5: minor
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        match rule.kind {
            'b' => tests.push((JUMP_UNEQUAL, 2, 1)),
            'c' => tests.push((JUMP_UNEQUAL, 2, 2)),
            _ => {}
        }
        let signed = |number: u32| i32::from_ne_bytes(number.to_ne_bytes());
        tests.extend(rule.major.map(|major| (JUMP_UNEQUAL, 4, signed(major))));
        tests.extend(rule.minor.map(|minor| (JUMP_UNEQUAL, 5, signed(minor))));
        let access = ACCESS
            .iter()
            .filter(|(letter, _)| rule.access.contains(*letter))
            .fold(0, |all, (_, bit)| all | bit);
        let result = [instruction(SET, 0, 0, 0, i32::from(rule.is_allowed)), instruction(EXIT, 0, 0, 0, 0)];
        // An allowing rule fits when nothing outside its access is asked; a denying one when anything inside is.
        let (mask, jump) = if rule.is_allowed { (7 & !access, JUMP_UNEQUAL) } else { (access, 0x15) };
        let length = tests.len() + 3 + result.len();
        for (index, (code_of, register, value)) in tests.into_iter().enumerate() {
            let over = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
            code.push(instruction(code_of, register, 0, over, value));
        }
        code.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        code.push(instruction(AND, 1, 0, 0, mask));
        code.push(instruction(jump, 1, 0, 2, 0));
        code.extend(result);
    }
    code.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Exclusive: attaching again replaces the program, and nothing below can override it.
const EXCLUSIVE: u32 = 0;

/// Lets the group's processes do with devices what the default and `rules` allow, and nothing else.
///
/// # Errors
/// The kernel's answer.
pub(super) fn attach(directory: impl AsFd, rules: &[DeviceRule]) -> io::Result<()> {
    let all: Vec<DeviceRule> = DEFAULT.iter().chain(rules).cloned().collect();
    let code = program(&all);
    let load = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: `load` points to `count` instructions and a string that outlive the call.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }?;
    // SAFETY: a new descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let number = |fd: i32| u32::try_from(fd).unwrap_or(u32::MAX);
    let attach = AttachAttributes {
        target: number(directory.as_fd().as_raw_fd()),
        program: number(program.as_raw_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        flags: EXCLUSIVE,
    };
    // SAFETY: two open descriptors.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }.map(drop)
}

/// # Safety
/// `attributes` must be what `command` reads.
unsafe fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the size is that of the structure.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_spelt_as_v1_wants_them() {
        assert_eq!(DeviceRule::character(1, 3, "rwm").to_string(), "c 1:3 rwm");
        assert_eq!(DeviceRule::ALL.to_string(), "a *:* rwm");
    }

    #[test]
    fn no_rule_is_no_device() {
        assert_eq!(program(&[]).len(), 8);
    }
}
