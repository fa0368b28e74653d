//! Running `nft`. Changes that come while it runs wait together and go as one transaction.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::error::NetworkError;

/// Changes on their way to the kernel.
#[derive(Debug, Default)]
pub(crate) struct Nft {
    waiting: Mutex<Vec<Change>>,
    running: Mutex<()>,
}

#[derive(Debug)]
struct Change {
    text: String,
    outcome: SyncSender<Result<(), NetworkError>>,
}

impl Nft {
    /// Applies `text`, together with what others want at the same time. Whoever comes first does it for all.
    pub(crate) fn apply(&self, text: String) -> Result<(), NetworkError> {
        let (outcome, mine) = sync_channel(1);
        lock(&self.waiting).push(Change { text, outcome });
        let _running = lock(&self.running);
        if let Ok(outcome) = mine.try_recv() {
            return outcome;
        }
        let batch = std::mem::take(&mut *lock(&self.waiting));
        let together: String = batch.iter().map(|change| change.text.as_str()).collect();
        let whole = run(&["-f", "-"], &together).map(drop);
        let is_one_of_many = whole.is_err() && batch.len() > 1;
        for change in batch {
            // One bad change fails the transaction: then each goes alone, and only the bad one fails.
            let outcome = if is_one_of_many { run(&["-f", "-"], &change.text).map(drop) } else { Ok(()) };
            let _ = change.outcome.send(outcome);
        }
        let alone = if is_one_of_many { Ok(()) } else { whole };
        alone?;
        mine.try_recv().unwrap_or(Err(NetworkError::Stopping))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `nft` with `input` and returns what it prints.
pub(crate) fn run(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let output = spawn(arguments, input).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NetworkError::NftMissing,
        _ => NetworkError::NftStart(error),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let message = stderr.lines().next().unwrap_or("it ended without a message").to_owned();
    let first = input.lines().next().unwrap_or_default();
    let what = if first.is_empty() { format!("`{}`", arguments.join(" ")) } else { format!("`{first}` …") };
    Err(NetworkError::NftRefused { what, message })
}

fn spawn(arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all its input before it prints anything, so that writing first cannot block for ever.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // When it ended early, what it said counts more than the broken pipe.
    if output.status.success() { written.map(|()| output) } else { Ok(output) }
}
