//! The same requests to `kakoi runtime` and to Debian's containerd. Where the answers differ, `DIFFERENCES` says why ours
//! is right; any other difference is a defect of ours.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::large_futures,
    reason = "a test says what is wrong by ending"
)]

mod plugins;
mod restart;
mod side;
mod steps;

use std::fmt::Write as _;

use side::Side;
use tests::{Containerd, Node, NodeOptions, Runtime};

/// A step where ours answers otherwise than containerd, and why it does. What containerd answers is its own affair: it
/// differs between versions.
struct Difference {
    step: &'static str,
    ours: &'static str,
    why: &'static str,
}

const fn differs(step: &'static str, ours: &'static str, why: &'static str) -> Difference {
    Difference { step, ours, why }
}

/// CRI gives no codes for these; gRPC does, and a client can tell what it may try again.
const CODE: &str = "gRPC's code for it; containerd 1.6 has Unknown for whatever is no NotFound";
/// `StopPodSandbox` and `StopContainer`, CRI's api.proto.
const IDEMPOTENT: &str = "CRI: stopping is idempotent, and no error when nothing is left to stop";
/// What a caller does whose first answer was lost.
const AGAIN: &str = "the same request is answered with the same object: its first answer may have been lost";

const DIFFERENCES: &[Difference] = &[
    differs(
        "an image's user",
        "Some(0) \"\"",
        "root is said, not left to be concluded from two empty fields",
    ),
    differs("no sandbox, stopped", "ok ()", IDEMPOTENT),
    differs("no container, stopped", "ok ()", IDEMPOTENT),
    differs("the same sandbox, asked for again", "ok true", AGAIN),
    differs("the same container, asked for again", "ok true", AGAIN),
    differs(
        "a container in a stopped sandbox",
        "refused: FailedPrecondition",
        "the sandbox is there, but stopped",
    ),
    differs("a command in a container that is only made", "refused: FailedPrecondition", CODE),
    differs("a started container, started", "refused: FailedPrecondition", CODE),
    differs("an ended container, started", "refused: FailedPrecondition", CODE),
    differs("a command in an ended container", "refused: FailedPrecondition", CODE),
    differs("the log of an ended container, opened again", "refused: FailedPrecondition", CODE),
    differs("a user whom the image does not know", "not made: InvalidArgument", CODE),
    differs("a group without a user", "not made: InvalidArgument", CODE),
    differs("a seccomp profile that is not there", "not made: InvalidArgument", CODE),
    differs(
        "a program that is not there",
        "Unknown 127 ContainerCannotRun []",
        "127 and 126 tell a missing program from one that can't be run, as a shell's codes do",
    ),
    differs(
        "a capability that is none",
        "not made: InvalidArgument",
        "a mistyped capability is refused by name; containerd runs without it and says nothing",
    ),
    differs(
        "a mount of what is not there",
        "Unknown 128 StartError []",
        "CRI, Mount.host_path: the runtime reports an error; containerd makes a directory on the node",
    ),
];

#[test]
fn the_runtime_answers_as_containerd_does_or_the_difference_is_explained() {
    let node = Node::prepare(NodeOptions::default());
    let (ours, theirs) = (Runtime::start(&node), Containerd::start(&node));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(async {
        let mut ours = Side::connect(&ours.socket(), node.root().join("logs/ours")).await;
        let mut theirs = Side::connect(&theirs.socket(), node.root().join("logs/theirs")).await;
        let ours = steps::all(&mut ours).await;
        compare(&ours, &steps::all(&mut theirs).await)
    });
    assert!(wrong.is_empty(), "{wrong}");
}

/// Each step whose answers differ in a way that is not explained.
fn compare(ours: &[(&'static str, String)], theirs: &[(&'static str, String)]) -> String {
    let mut wrong = String::new();
    for ((step, ours), (_, theirs)) in ours.iter().zip(theirs) {
        let known = DIFFERENCES.iter().find(|known| known.step == *step);
        let expected = known.map_or(theirs.as_str(), |known| known.ours);
        if ours != expected {
            let why = known.map_or("", |known| known.why);
            writeln!(wrong, "{step}\n  ours      {ours}\n  expected  {expected}\n  {why}").unwrap();
        }
    }
    let is_step = |known: &&Difference| ours.iter().any(|(step, _)| *step == known.step);
    for known in DIFFERENCES.iter().filter(|known| !is_step(known)) {
        writeln!(wrong, "{}: there is no such step", known.step).unwrap();
    }
    wrong
}
