//! Runs an OCI runtime's short verbs (`features`, `kill`, `delete`) to their end, which has a deadline.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shim::stage::last_line;

/// How long a verb may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// It could not be started or waited for.
    #[error("run the OCI runtime {program}: {source}")]
    Run {
        /// Its path.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program} {verb}: {said}")]
    Failed { program: String, verb: String, said: String },
    /// It was killed.
    #[error("{program} {verb} did not end within 30 s and was killed")]
    Timeout { program: String, verb: String },
}

/// Runs a program with arguments; what it wrote to its output.
pub(super) fn run(program: &Path, args: &[impl AsRef<OsStr>]) -> Result<String, CommandError> {
    let name = program.display().to_string();
    let failed = |source| CommandError::Run { program: name.clone(), source };
    let words = || rustix::fs::memfd_create(c"words", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let (out, err) = (words().map_err(|e| failed(e.into()))?, words().map_err(|e| failed(e.into()))?);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command.stdout(out.try_clone().map_err(failed)?).stderr(err.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    // The verb, past `--root DIR`.
    let mut words = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned());
    let verb = words.find(|arg| arg != "--root" && !arg.starts_with('/')).unwrap_or_default();
    if !wait_until_ended(&child).map_err(failed)? {
        // Whatever they answer: it is over.
        let _ = child.kill();
        let _ = child.wait();
        return Err(CommandError::Timeout { program: name, verb });
    }
    let ended = child.wait().map_err(failed)?;
    if ended.success() {
        return text(out).map_err(failed);
    }
    let said = [err, out].into_iter().find_map(|words| last_line(&text(words).unwrap_or_default()));
    let said = said.unwrap_or_else(|| format!("it ended with {ended} and said nothing"));
    Err(CommandError::Failed { program: name, verb, said })
}

fn wait_until_ended(child: &Child) -> std::io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let seconds = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))? > 0)
}

fn text(mut words: File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    words.rewind()?;
    words.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_comes_back_and_its_failure_has_its_words() {
        let shell = Path::new("/bin/sh");
        assert_eq!(run(shell, &["-c", "echo yes"]).unwrap(), "yes\n");
        let error =
            run(shell, &["-c", "echo out; echo the disk is full >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains("the disk is full"), "{error}");
        let silent = run(shell, &["-c", "exit 3"]).unwrap_err().to_string();
        assert!(silent.contains("exit status: 3"), "{silent}");
        run(Path::new("/no/such"), &["x"]).unwrap_err();
    }
}
