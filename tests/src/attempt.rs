//! What somebody inside a Pod may try against the node: system calls, from the container or from a process that has
//! the Pod's user namespace but sees everything else of the machine.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::node::{Node, run};
use crate::processes_on;

/// One attempt: what it is, the Perl expression that makes it, and the errors that it may end with. An expression is
/// false when it fails, with the reason in `$!`; the names of [`PRELUDE`] can be used. Several names of errors are
/// separated by `|`; `done` stands for success.
pub type Attempt<'a> = (&'a str, &'a str, &'a str);

/// What each script begins with:
/// `sys(number, …)` makes a system call, `put(path, text)` writes, `get(path)` reads, `child { … }` runs a block in a
/// process of its own and gives its error.
const PRELUDE: &str = r#"
use strict; use warnings; use Fcntl; use Errno;
sub sys { my @a = @_; my $n = shift @a; my $r = syscall($n, @a); $r == -1 ? undef : "$r but true" }
sub put { my ($path, $text) = @_; my $f; sysopen($f, $path, O_WRONLY) && defined syswrite($f, $text) }
sub make { my ($path) = @_; sysopen(my $f, $path, O_WRONLY | O_CREAT | O_EXCL) }
sub get { my ($path) = @_; my ($f, $text); sysopen($f, $path, O_RDONLY) && defined sysread($f, $text, 65536) }
sub fd { my ($path) = @_; sysopen(my $f, $path, O_RDONLY) or die "$path: $!"; push @main::kept, $f; fileno $f }
sub child(&) { my $block = shift; pipe(my $r, my $w); my $pid = fork // die; if (!$pid) { my $ok = $block->(); syswrite $w, pack("i", $ok ? 0 : $! + 0); exit 0 }
  close $w; sysread($r, my $text, 4); waitpid $pid, 0; my ($n) = unpack "i", $text; $! = $n; !$n }
sub name { my $n = $! + 0; for my $name (sort keys %!) { $! = $n; return $name if $!{$name} } $n }
sub attempt { my ($what, $code) = @_; $! = 0; my $r = $code->(); print "$what: ", ($r ? "done" : name()), "\n" }
$| = 1;
"#;

impl Node {
    /// Makes the attempts as container root of the Pod's first container.
    ///
    /// # Panics
    /// When one of them ends in another way than it should.
    #[track_caller]
    pub fn attempt(&self, pod: &str, attempts: &[Attempt<'_>]) {
        let ran = self.kubectl_with(&["exec", "-i", pod, "--", "perl", "-"], &script(attempts));
        judge(pod, attempts, &ran.ok());
    }

    /// Makes the attempts with the credentials of the Pod's container root, every capability in its user namespace, but
    /// in the node's other namespaces: with the node's processes and paths in sight and without a seccomp filter.
    /// `leaked` are paths that are open before the credentials change, as descriptors 10, 11 …
    ///
    /// # Panics
    /// When one of them ends in another way than it should.
    #[track_caller]
    pub fn attempt_outside(&self, pod: &str, leaked: &[&str], attempts: &[Attempt<'_>]) {
        self.attempt_outside_as(pod, 0, leaked, attempts);
    }

    /// As [`Self::attempt_outside`], as the Pod's user `uid` instead of its root.
    ///
    /// # Panics
    /// When one of them ends in another way than it should.
    #[track_caller]
    pub fn attempt_outside_as(&self, pod: &str, uid: u32, leaked: &[&str], attempts: &[Attempt<'_>]) {
        let mut line = String::new();
        for (fd, path) in (10..).zip(leaked) {
            let _ = write!(line, "exec {fd}<{path} || exit 9; ");
        }
        let pid = self.main_pid(pod);
        let _ = write!(line, "exec nsenter -t {pid} -U -S {uid} -G {uid} -- perl -");
        let mut command = self.inside(Path::new("bash"));
        command.args(["-c", &line]);
        let ran = run(command, &line, &script(attempts));
        judge(pod, attempts, &ran.ok());
    }

    /// The machine's PID of the Pod's process `sleep` that runs as container root.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn main_pid(&self, pod: &str) -> u32 {
        self.pid_as(pod, 0)
    }

    /// The machine's PID of the Pod's process `sleep` that runs as the container's user `uid`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn pid_as(&self, pod: &str, uid: u64) -> u32 {
        let id = self.first_id(pod) + uid;
        let sleeps = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "sleep")
        };
        let found = processes_on(&(id..id + 1)).into_iter().find(sleeps);
        found.unwrap_or_else(|| panic!("nothing of the Pod {pod} sleeps as {id}"))
    }
}

fn script(attempts: &[Attempt<'_>]) -> String {
    attempts.iter().fold(PRELUDE.to_owned(), |mut text, (what, code, _)| {
        let _ = writeln!(text, "attempt(q\u{1}{what}\u{1}, sub {{ {code} }});");
        text
    })
}

/// Compares what was printed with what should have happened, all attempts at once.
#[track_caller]
fn judge(pod: &str, attempts: &[Attempt<'_>], printed: &str) {
    let mut wrong = String::new();
    let mut lines = printed.lines();
    for (what, _, allowed) in attempts {
        let line = lines.next().unwrap_or("(nothing)");
        let ended = line.strip_prefix(*what).and_then(|rest| rest.strip_prefix(": "));
        if !ended.is_some_and(|ended| allowed.split('|').any(|error| error == ended)) {
            let _ = writeln!(wrong, "  {line} (should be {allowed})");
        }
    }
    assert!(wrong.is_empty(), "as root of the Pod {pod}:\n{wrong}");
}
