use super::super::tests::{I386, X86_64, run};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const CHMOD: u32 = 90;
const CHMOD_I386: u32 = 15;

fn compile(document: serde_json::Value, capabilities: u64) -> Result<Compiled, DocumentError> {
    let document: Document = serde_json::from_value(document).unwrap();
    compile_document(&document, capabilities, "6.1.0-13-amd64")
}

fn program(document: serde_json::Value) -> Vec<u8> {
    compile(document, 0).unwrap().program
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_blocked_call_is_refused_and_the_others_are_not() {
    let program = program(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod", "no_such_call"], "action": "SCMP_ACT_ERRNO"}],
    }));
    assert_eq!(run(&program, X86_64, CHMOD, [0, 0]), EPERM);
    assert_eq!(run(&program, X86_64, CHMOD + 1, [0, 0]), ALLOW);
    assert_eq!(run(&program, X86_64, 9_999, [0, 0]), ALLOW, "newer than the table, and all is allowed");
    assert_eq!(run(&program, X86_64, 0x4000_0000 + CHMOD, [0, 0]), ENOSYS, "x32 is no way around it");
    assert_eq!(run(&program, I386, CHMOD_I386, [0, 0]), 0x8000_0000, "an ABI that the profile does not name");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_allow_list_covers_the_architectures_that_it_names() {
    let document = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "args": null}],
    });
    let program = program(document);
    assert_eq!(run(&program, X86_64, CHMOD, [0, 0]), ALLOW);
    assert_eq!(run(&program, I386, CHMOD_I386, [0, 0]), ALLOW);
    assert_eq!(run(&program, X86_64, 0, [0, 0]), 0x0005_000d);
    assert_eq!(run(&program, X86_64, 9_999, [0, 0]), ENOSYS, "so that programs fall back");
}

/// Every operator at every border of the halves of 64 bits.
#[test]
#[cfg(target_arch = "x86_64")]
fn arguments_are_compared_with_all_their_bits() {
    type Holds = fn(u64, u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_GT", |a, b| a > b),
        ("SCMP_CMP_GE", |a, b| a >= b),
    ];
    let values = [0, 1, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x2_0000_0000, u64::MAX - 1, u64::MAX];
    for (operator, holds) in operators {
        for value in values {
            let program = program(serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 1, "value": value, "op": operator}]}],
            }));
            for argument in values {
                let expected = if holds(argument, value) { EPERM } else { ALLOW };
                let answer = run(&program, X86_64, CHMOD, [7, argument]);
                assert_eq!(answer, expected, "{argument:#x} {operator} {value:#x}");
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn all_tests_of_an_entry_must_hold_and_a_repeated_argument_means_either() {
    let entry = |args| {
        program(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "args": args}],
        }))
    };
    let both = entry(serde_json::json!([
        {"index": 0, "value": 0xff00, "valueTwo": 0x1200, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]));
    assert_eq!(run(&both, X86_64, CHMOD, [0x1234, 5]), ALLOW);
    assert_eq!(run(&both, X86_64, CHMOD, [0x1334, 5]), EPERM);
    assert_eq!(run(&both, X86_64, CHMOD, [0x1234, 6]), EPERM);
    let either = entry(serde_json::json!([
        {"index": 1, "value": 4, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]));
    assert_eq!([4, 5, 6].map(|value| run(&either, X86_64, CHMOD, [0, value])), [ALLOW, ALLOW, EPERM]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn entries_count_by_capability_architecture_and_kernel() {
    let document = |filters: serde_json::Value| {
        let mut entry = serde_json::json!({"names": ["chmod"], "action": "SCMP_ACT_ALLOW"});
        entry.as_object_mut().unwrap().extend(filters.as_object().unwrap().clone());
        serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [entry]})
    };
    let answer = |filters, capabilities| {
        run(&compile(document(filters), capabilities).unwrap().program, X86_64, CHMOD, [0, 0])
    };
    let admin = crate::capability::SYS_ADMIN;
    let with = serde_json::json!({"includes": {"caps": ["CAP_SYS_ADMIN"]}});
    assert_eq!((answer(with.clone(), admin), answer(with, 0)), (ALLOW, EPERM));
    let without = serde_json::json!({"excludes": {"caps": ["CAP_SYS_ADMIN"]}});
    assert_eq!((answer(without.clone(), admin), answer(without, 0)), (EPERM, ALLOW));
    assert_eq!(answer(serde_json::json!({"includes": {"arches": ["arm64"]}}), 0), EPERM);
    assert_eq!(answer(serde_json::json!({"includes": {"minKernel": "6.1"}}), 0), ALLOW);
    assert_eq!(answer(serde_json::json!({"includes": {"minKernel": "6.12"}}), 0), EPERM);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let refused = |document| compile(document, 0).unwrap_err();
    let notify = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]});
    assert_eq!(refused(notify), DocumentError::Listener);
    let listener = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"});
    assert_eq!(refused(listener), DocumentError::Listener);
    let flag = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]});
    assert_eq!(refused(flag), DocumentError::Flag("SECCOMP_FILTER_FLAG_NEW".into()));
    let argument = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]});
    assert_eq!(refused(argument), DocumentError::Argument { name: "chmod".into(), index: 6 });
}

#[test]
fn flags_are_the_kernels_numbers() {
    let compiled = compile(
        serde_json::json!({"defaultAction": "SCMP_ACT_LOG",
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}),
        0,
    );
    assert_eq!(compiled.unwrap().flags, 6);
}
