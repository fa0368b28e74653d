//! From rules to classic BPF: one program for all ABIs of the machine, each a binary search over its numbers.
//!
//! The kernel runs the filter for every system call that its cache does not answer, and once for each number when it
//! is installed; a search of depth 7 instead of a list of 400 comparisons keeps both short.

/// What the kernel does with a system call: a number of `SECCOMP_RET_…`, with its data in the low 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const ALLOW: Action = Action(0x7fff_0000);
    pub(super) const KILL_PROCESS: Action = Action(0x8000_0000);
    /// The numbers of another ABI or of a newer kernel are answered so, and programs fall back.
    pub(super) const UNKNOWN: Action = Action::errno(38);

    pub(super) const fn errno(number: u16) -> Action {
        Action(0x0005_0000 | number as u32)
    }
}

/// What happens to one system call: the first check that holds decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) checks: Vec<Check>,
    pub(super) otherwise: Action,
}

impl Rule {
    /// The same whatever the arguments are.
    pub(super) fn always(action: Action) -> Self {
        Rule { checks: Vec::new(), otherwise: action }
    }
}

/// Holds if every test does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) tests: Vec<Test>,
    pub(super) action: Action,
}

/// A test of an argument, all 64 bits of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) index: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// How an argument is compared with the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The bits of this mask are equal.
    Masked(u64),
    /// The bits of this mask are equal, and the upper half of the argument is not looked at.
    MaskedLow(u32),
}

/// The rules of one ABI.
#[derive(Debug)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_…`
    pub(super) architecture: u32,
    /// By number, ascending.
    pub(super) rules: Vec<(u32, Rule)>,
    /// What is done with a number that has no rule.
    pub(super) default: Action,
    /// Numbers from here on are those of a newer kernel.
    pub(super) first_unknown: u32,
    /// What is done with them. (Those of the rare x32 ABI are always answered with ENOSYS.)
    pub(super) unknown: Action,
}

/// The first number of x32, which shares its architecture with `x86_64`; nobody has as many others.
const FIRST_X32: u32 = 0x4000_0000;

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
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, operand: offset }
}

fn give(action: Action) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, operand: action.0 }
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
    code.push(give(Action::KILL_PROCESS));
    code
}

fn block(abi: &Abi) -> Vec<Instruction> {
    let mut code = vec![load(OFFSET_NUMBER)];
    code.extend(search(&intervals(abi)));
    code
}

/// First numbers of runs with one rule each, ascending from 0.
fn intervals(abi: &Abi) -> Vec<(u32, Rule)> {
    let mut list: Vec<(u32, Rule)> = Vec::new();
    let mut put = |number: u32, rule: Rule| {
        if list.last().is_some_and(|(first, _)| *first == number) {
            list.pop();
        }
        if list.last().is_none_or(|(_, last)| *last != rule) {
            list.push((number, rule));
        }
    };
    put(0, Rule::always(abi.default));
    let mut next = 0;
    for (number, rule) in &abi.rules {
        if *number > next {
            put(next, Rule::always(abi.default));
        }
        put(*number, rule.clone());
        next = number + 1;
    }
    put(next, Rule::always(abi.default));
    put(abi.first_unknown.max(next), Rule::always(abi.unknown));
    put(FIRST_X32, Rule::always(Action::UNKNOWN));
    list
}

fn search(intervals: &[(u32, Rule)]) -> Vec<Instruction> {
    let (left, right) = intervals.split_at(intervals.len() / 2);
    let (Some((pivot, _)), false) = (right.first(), left.is_empty()) else {
        return intervals.first().map_or_else(Vec::new, |(_, rule)| leaf(rule));
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

fn leaf(rule: &Rule) -> Vec<Instruction> {
    let mut code: Vec<Instruction> = rule.checks.iter().flat_map(check).collect();
    code.push(give(rule.otherwise));
    code
}

/// Gives the action if every test holds, else goes on behind. Built from the end, so that each test knows how far
/// the end is.
fn check(check: &Check) -> Vec<Instruction> {
    let mut code = vec![give(check.action)];
    for test in check.tests.iter().rev() {
        let mut block = test_argument(*test, u8::try_from(code.len()).unwrap_or(u8::MAX));
        block.append(&mut code);
        code = block;
    }
    code
}

/// Goes on if the test holds, else over the `rest` instructions behind it. (All machines are little endian.)
fn test_argument(Test { index, comparison, value }: Test, rest: u8) -> Vec<Instruction> {
    use Comparison as C;
    let low_half = OFFSET_ARGUMENTS + 8 * u32::from(index);
    let (low, high) = halves(value);
    let if_ = |code, operand, if_true, if_false| Instruction { code, if_true, if_false, operand };
    let and = |mask| Instruction { code: AND, if_true: 0, if_false: 0, operand: mask };
    let (load_low, load_high) = (load(low_half), load(low_half + 4));
    // The decisive comparison of the upper halves first; where they are equal, the lower ones decide.
    let ordered = |code, is_negated: bool| {
        let (yes, no) = if is_negated { (rest, 0) } else { (0, rest) };
        let leave = |of_block: u8, target: u8| of_block + target;
        vec![
            load_high,
            if_(JUMP_GREATER, high, leave(3, yes), 0),
            if_(JUMP_EQUAL, high, 0, leave(2, no)),
            load_low,
            if_(code, low, yes, no),
        ]
    };
    match comparison {
        C::Equal => {
            vec![load_high, if_(JUMP_EQUAL, high, 0, 2 + rest), load_low, if_(JUMP_EQUAL, low, 0, rest)]
        }
        C::NotEqual => {
            vec![load_high, if_(JUMP_EQUAL, high, 0, 2), load_low, if_(JUMP_EQUAL, low, rest, 0)]
        }
        C::Greater => ordered(JUMP_GREATER, false),
        C::GreaterOrEqual => ordered(JUMP_GREATER_OR_EQUAL, false),
        C::Less => ordered(JUMP_GREATER_OR_EQUAL, true),
        C::LessOrEqual => ordered(JUMP_GREATER, true),
        C::Masked(mask) => {
            let (low_mask, high_mask) = halves(mask);
            vec![
                load_high,
                and(high_mask),
                if_(JUMP_EQUAL, high, 0, 3 + rest),
                load_low,
                and(low_mask),
                if_(JUMP_EQUAL, low, 0, rest),
            ]
        }
        C::MaskedLow(mask) => vec![load_low, and(mask), if_(JUMP_EQUAL, low, 0, rest)],
    }
}

fn halves(value: u64) -> (u32, u32) {
    let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    (half(value), half(value >> 32))
}
