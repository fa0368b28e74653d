//! For comparison, where it is installed: `runc` with the same program and nothing else to do, no Pod, no network and
//! no image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::report;

const RUNS: usize = 30;

/// Measures `runc create` and `runc start`; says why when it can't.
pub(crate) fn measure() {
    let dir = std::env::temp_dir().join(format!("kakoi-bench-runc-{}", std::process::id()));
    let measured: Result<Vec<Duration>, String> =
        bundle(&dir).and_then(|()| (0..RUNS).map(|number| start(&dir, number)).collect());
    let _ = fs::remove_dir_all(&dir);
    match measured {
        Ok(mut times) => report("for comparison: runc create, runc start, no Pod", "none", &mut times),
        Err(why) => println!("no comparison with runc: {why}"),
    }
}

fn bundle(dir: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let bin = dir.join("rootfs/bin");
    fs::create_dir_all(&bin).map_err(failed)?;
    fs::copy("/bin/busybox", bin.join("busybox")).map_err(|error| format!("/bin/busybox: {error}"))?;
    run(dir, &["spec"])?;
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(failed)?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let process = config.get_mut("process").ok_or("runc spec wrote no process")?;
    if let Some(process) = process.as_object_mut() {
        process.insert("terminal".to_owned(), false.into());
        process.insert("args".to_owned(), json!(["/bin/busybox", "sleep", "100"]));
    }
    fs::write(&path, config.to_string()).map_err(failed)
}

fn start(dir: &Path, number: usize) -> Result<Duration, String> {
    let id = format!("kakoi-bench-{}-{number}", std::process::id());
    let begin = Instant::now();
    let started = run(dir, &["create", &id]).and_then(|()| run(dir, &["start", &id]));
    let took = begin.elapsed();
    let deleted = run(dir, &["delete", "--force", &id]);
    started.and(deleted).map(|()| took)
}

fn run(dir: &Path, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("runc");
    command.args(arguments).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("runc {} ended with {status}", arguments.join(" "))),
        Err(error) => Err(format!("runc can't be run: {error}")),
    }
}
