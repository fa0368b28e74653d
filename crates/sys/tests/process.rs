//! Programs started from a process with many threads.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by ending")]

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;

use sys::process::{Child, Ended, SpawnError, SpawnPlan, Step, sealed_program, spawn};

/// Runs a line in the shell; answers the child and what it wrote.
fn shell(line: &str) -> (Child, String) {
    let program = sealed_program(c"shell", &std::fs::read("/bin/sh").unwrap()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let (read, write) = std::io::pipe().unwrap();
    let plan = SpawnPlan {
        program: program.as_fd(),
        args: vec![c"sh".to_owned(), c"-c".to_owned(), CString::new(line).unwrap()],
        env: vec![c"GREETING=hello".to_owned()],
        fds: vec![null.as_fd(), write.as_fd(), write.as_fd()],
        cgroup: None,
        legacy_cgroups: Vec::new(),
        mount_namespace: None,
    };
    let child = spawn(&plan).unwrap();
    drop(write);
    let mut text = String::new();
    File::from(std::os::fd::OwnedFd::from(read)).read_to_string(&mut text).unwrap();
    (child, text)
}

#[test]
fn a_program_gets_its_arguments_variables_and_streams_and_nothing_else() {
    let (child, text) =
        shell("echo $GREETING; ls /proc/self/fd | wc -l; ps -o sid= -p $$ | tr -d ' '; exit 7");
    // Three streams, and the directory that `ls` reads.
    assert_eq!(text, format!("hello\n4\n{}\n", child.pid));
    assert_eq!(child.wait().unwrap(), Ended::Exited(7));
}

#[test]
fn what_is_no_program_is_told_with_the_step() {
    let program = sealed_program(c"text", b"no program\n").unwrap();
    let plan = SpawnPlan {
        program: program.as_fd(),
        args: vec![c"text".to_owned()],
        env: Vec::new(),
        fds: Vec::new(),
        cgroup: None,
        legacy_cgroups: Vec::new(),
        mount_namespace: None,
    };
    let SpawnError { step, source } = spawn(&plan).unwrap_err();
    assert_eq!((step, source.raw_os_error()), (Step::Exec, Some(libc::ENOEXEC)));
}

#[test]
fn many_threads_start_programs_at_once_and_keep_their_memory_and_their_signals() {
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned()
    };
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            scope.spawn(move || {
                let before = blocked();
                for round in 0..10_u32 {
                    let mine: Vec<u32> = (0..1000).map(|n| n * thread + round).collect();
                    let (child, text) = shell(&format!("echo {thread} {round}"));
                    assert_eq!(text, format!("{thread} {round}\n"));
                    assert_eq!(child.wait().unwrap(), Ended::Exited(0));
                    assert!(mine.iter().zip(0..).all(|(have, n)| *have == n * thread + round));
                }
                assert_eq!(blocked(), before);
            });
        }
    });
}
