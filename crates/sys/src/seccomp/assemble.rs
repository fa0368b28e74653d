//! From rules to classic BPF: one program for all ABIs of the machine, each a binary search over its numbers.
//!
//! The kernel runs the filter for every system call that its cache does not answer, and once for each number when it
//! is installed; a search of depth 7 instead of a list of 400 comparisons keeps both short.

/// What happens to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Allow,
    Errno(u16),
    /// Allowed if one of the arguments is as given, else EPERM.
    If(Vec<Argument>),
    /// Allowed unless the argument is as given.
    IfNot(Argument),
}

/// A test of the low 32 bits of an argument. (None of the tested ones uses more.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Argument {
    index: u8,
    mask: u32,
    value: u32,
}

impl Argument {
    pub(super) fn equal(index: u8, value: u64) -> Self {
        Self::masked(index, 0xffff_ffff, value)
    }

    pub(super) fn masked(index: u8, mask: u64, value: u64) -> Self {
        let low = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap_or(0);
        Argument { index, mask: low(mask), value: low(value) }
    }
}

/// The rules of one ABI.
#[derive(Debug)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_…`
    pub(super) architecture: u32,
    /// By number, ascending.
    pub(super) rules: Vec<(u32, Rule)>,
    /// Numbers from here on are those of another ABI or of a newer kernel: ENOSYS, so that programs fall back.
    pub(super) first_unknown: u32,
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) operand: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const EPERM: u16 = 1;

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, operand: offset }
}

fn give(action: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, operand: action }
}

fn errno(number: u16) -> Instruction {
    give(RET_ERRNO | u32::from(number))
}

fn jump(length: usize) -> Instruction {
    Instruction { code: JUMP, if_true: 0, if_false: 0, operand: u32::try_from(length).unwrap_or(u32::MAX) }
}

/// The whole program. An architecture that is not in the list is no ABI of this machine.
pub(super) fn assemble(abis: &[Abi]) -> Vec<Instruction> {
    let mut code = vec![load(OFFSET_ARCHITECTURE)];
    for abi in abis {
        let block = block(abi);
        // Not equal: over the jump and the block.
        code.push(Instruction { code: JUMP_EQUAL, if_true: 1, if_false: 0, operand: abi.architecture });
        code.push(jump(block.len()));
        code.extend(block);
    }
    code.push(give(RET_KILL_PROCESS));
    code
}

fn block(abi: &Abi) -> Vec<Instruction> {
    let mut code = vec![load(OFFSET_NUMBER)];
    code.extend(search(&intervals(abi)));
    code
}

/// First numbers of runs with one rule each, ascending from 0; `None` is the default.
fn intervals(abi: &Abi) -> Vec<(u32, Option<Rule>)> {
    let mut list: Vec<(u32, Option<Rule>)> = vec![(0, None)];
    let mut put = |number: u32, rule: Option<Rule>| {
        if list.last().is_some_and(|(_, last)| *last == rule) {
            return;
        }
        if list.last().is_some_and(|(first, _)| *first == number) {
            list.pop();
        }
        list.push((number, rule));
    };
    let mut next = 0;
    for (number, rule) in &abi.rules {
        if *number > next {
            put(next, None);
        }
        put(*number, Some(rule.clone()));
        next = number + 1;
    }
    put(next, None);
    put(abi.first_unknown.max(next), Some(Rule::Errno(super::profile::ENOSYS)));
    list
}

fn search(intervals: &[(u32, Option<Rule>)]) -> Vec<Instruction> {
    let (left, right) = intervals.split_at(intervals.len() / 2);
    let (Some((pivot, _)), false) = (right.first(), left.is_empty()) else {
        return leaf(intervals.first().and_then(|(_, rule)| rule.as_ref()));
    };
    let (below, above) = (search(left), search(right));
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    if let Ok(length) = u8::try_from(below.len()) {
        code.push(Instruction { code: JUMP_GREATER_OR_EQUAL, if_true: length, if_false: 0, operand: *pivot });
    } else {
        code.push(Instruction { code: JUMP_GREATER_OR_EQUAL, if_true: 0, if_false: 1, operand: *pivot });
        code.push(jump(below.len()));
    }
    code.extend(below);
    code.extend(above);
    code
}

fn leaf(rule: Option<&Rule>) -> Vec<Instruction> {
    match rule {
        None => vec![errno(EPERM)],
        Some(Rule::Allow) => vec![give(RET_ALLOW)],
        Some(Rule::Errno(number)) => vec![errno(*number)],
        Some(Rule::If(tests)) => {
            let mut code: Vec<Instruction> =
                tests.iter().flat_map(|test| test_argument(*test, RET_ALLOW)).collect();
            code.push(errno(EPERM));
            code
        }
        Some(Rule::IfNot(test)) => {
            let mut code: Vec<Instruction> = test_argument(*test, RET_ERRNO | u32::from(EPERM)).into();
            code.push(give(RET_ALLOW));
            code
        }
    }
}

/// Gives `action` if the argument is as the test says, else goes on. Both machines are little endian.
fn test_argument(Argument { index, mask, value }: Argument, action: u32) -> [Instruction; 4] {
    [
        load(OFFSET_ARGUMENTS + 8 * u32::from(index)),
        Instruction { code: AND, if_true: 0, if_false: 0, operand: mask },
        Instruction { code: JUMP_EQUAL, if_true: 0, if_false: 1, operand: value },
        give(action),
    ]
}
