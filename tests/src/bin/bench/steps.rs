//! The table of steps: where the time of a Pod's start goes, from the ends of the daemon's spans (docs/troubleshooting.md).

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::percentile;

/// Prints each step in the order in which the daemon first ended it.
pub(crate) fn print(log: &str) {
    let mut order: Vec<String> = Vec::new();
    let mut times: HashMap<String, Vec<Duration>> = HashMap::new();
    for (step, took) in log.lines().filter_map(step) {
        if !times.contains_key(&step) {
            order.push(step.clone());
        }
        times.entry(step).or_default().push(took);
    }
    println!("{:<55} {:>8} {:>9} {:>9}", "step", "times", "median ms", "p95 ms");
    for step in &order {
        let Some(times) = times.get_mut(step) else { continue };
        let (median, late) = (percentile(times, 50), percentile(times, 95));
        println!("{step:<55} {:>8} {median:>9.2} {late:>9.2}", times.len());
    }
}

/// A step's name and its time, of a line that tells of its end.
fn step(line: &str) -> Option<(String, Duration)> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line.get("target")?.as_str()? != "path" {
        return None;
    }
    let span = line.get("span")?;
    let name = span.get("name")?.as_str()?;
    let name =
        span.get("of").and_then(Value::as_str).map_or_else(|| name.to_owned(), |of| format!("{name} {of}"));
    let fields = line.get("fields")?;
    let part = |name: &str| duration(fields.get(name)?.as_str()?);
    Some((name, part("time.busy")? + part("time.idle")?))
}

/// A time as the daemon's log writes it: `1.25ms`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * seconds))
}
