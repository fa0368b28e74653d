//! `kakoi userns` and `kakoi who-owns`: the ID space as it is on disk, also while the daemon is down.

use std::fs;
use std::path::Path;

use kubelet::idspace::{IdSpaceConfig, MachineFiles, NoFaults, OpenError, inspect};
use userns::{Entry, Quarantined, Snapshot};

use crate::cli::{OutputFormat, Query};
use crate::config::{Config, ConfigError, Flags};
use crate::output;
use crate::places::Places;

/// Why the ID space can't be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("can't read the ID space: {cause}{}", remedy(.cause))]
    Open {
        #[from]
        cause: OpenError,
    },
    #[error("can't print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The Pods' directories are open to root alone.
fn remedy(error: &OpenError) -> &'static str {
    match error {
        OpenError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            "; use `sudo kakoi …`"
        }
        _ => "",
    }
}

/// The ID space's places and settings.
pub(crate) fn space(places: &Places, ids_per_pod: i64, max_pods: u32) -> IdSpaceConfig {
    IdSpaceConfig {
        pods_dir: places.kubelet().join("pods"),
        claims_dir: Places::claims(),
        instance: places.instance(),
        root: places.root().to_owned(),
        cursor_file: places.state().join("ids/next"),
        ids_per_pod,
        max_pods,
        machine: MachineFiles::default(),
        faults: std::sync::Arc::new(NoFaults),
    }
}

/// The ID space as it is on disk and in `/proc`, with Pods' names.
pub(crate) fn snapshot(root: &Path) -> Result<Snapshot, IdsError> {
    let places = Places::new(root);
    let config = Config::load(&places, &Flags::default())?;
    let mut snapshot = inspect(&space(&places, config.ids_per_pod, config.max_pods))?;
    for entry in &mut snapshot.pods {
        entry.name = pod_name(&places, &entry.pod);
    }
    for pod in &mut snapshot.quarantined {
        pod.name = pod_name(&places, &pod.pod);
    }
    Ok(snapshot)
}

/// The Pod's name as its log directory has it, `<namespace>_<name>_<uid>`: there also while the API is down.
pub(crate) fn pod_name(places: &Places, uid: &str) -> Option<String> {
    let dirs = fs::read_dir(places.pod_logs()).ok()?.flatten();
    let mut names = dirs.filter_map(|dir| dir.file_name().into_string().ok());
    let found = names.find(|name| name.ends_with(&format!("_{uid}")))?;
    let mut parts = found.splitn(3, '_');
    Some(format!("{}/{}", parts.next()?, parts.next()?))
}

/// Prints the ID space.
pub(crate) fn print(query: &Query) -> Result<(), IdsError> {
    let snapshot = snapshot(&query.instance.root)?;
    if query.output.output == OutputFormat::Json {
        output::line(serde_json::to_string_pretty(&snapshot)?);
        return Ok(());
    }
    for line in describe(&snapshot) {
        output::line(line);
    }
    Ok(())
}

fn describe(snapshot: &Snapshot) -> Vec<String> {
    let (first, last) = snapshot.pool;
    let mut lines = vec![
        format!("Pool:         {first}-{last}: {}", snapshot.pool_source),
        format!("IDs per Pod:  {}", snapshot.ids_per_pod),
        format!("Blocks:       {}, of which {} are free", snapshot.blocks, snapshot.free_blocks),
    ];
    let without = snapshot.quarantined.iter().map(quarantined_line);
    lines.extend(table("Pods", snapshot.pods.iter().map(pod_line).chain(without)));
    let given = snapshot.reserved.iter().map(|r| format!("{:<23}{}", r.range.to_string(), r.owner));
    lines.extend(table("Given away by the machine", given));
    let others = snapshot.instances.iter().map(|r| format!("{:<23}{}", r.range.to_string(), r.owner));
    lines.extend(table("Held by other instances", others));
    lines
}

fn pod_line(entry: &Entry) -> String {
    let name = entry.name.as_deref().unwrap_or("(name unknown)");
    let state = entry.quarantined.as_ref().map_or_else(String::new, |why| format!("  QUARANTINED: {why}"));
    format!("{:<23}{name}  {}{state}", entry.range.to_string(), entry.pod)
}

fn quarantined_line(pod: &Quarantined) -> String {
    let name = pod.name.as_deref().unwrap_or("(name unknown)");
    format!("{:<23}{name}  {}  QUARANTINED: {}", "(no IDs)", pod.pod, pod.reason)
}

fn table(title: &str, rows: impl Iterator<Item = String>) -> Vec<String> {
    let rows: Vec<String> = rows.map(|row| format!("  {row}")).collect();
    let head = format!("{title}:{}", if rows.is_empty() { " none" } else { "" });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use userns::{IdRange, IdsPerPod, Machine, Pool, PoolConfig, Reserved};

    #[test]
    fn the_picture_reads_as_a_page() {
        let ann = Reserved {
            range: IdRange::new(100_000, 65_536).unwrap(),
            owner: "the user `ann` in /etc/subuid".into(),
        };
        let machine = Machine { kubelet: None, reserved: vec![ann] };
        let pool =
            Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 110, machine }).unwrap();
        let entry = |first, quarantined: Option<&str>| Entry {
            range: IdRange::new(first, 65_536).unwrap(),
            pod: "u-1".into(),
            name: Some("default/nginx".into()),
            recorded_in: String::new(),
            quarantined: quarantined.map(str::to_owned),
        };
        let pods = vec![entry(196_608, None), entry(262_144, Some("bad"))];
        let broken = Quarantined {
            pod: "u-2".into(),
            name: None,
            recorded_in: String::new(),
            reason: "not JSON".into(),
        };
        let snapshot = Snapshot { pods, quarantined: vec![broken], ..Snapshot::of(&pool) };
        let page = describe(&snapshot).join("\n");
        assert_eq!(
            page,
            "Pool:         131072-4294901759: the default pool: the machine has no user `kubelet` with subordinate IDs\n\
             IDs per Pod:  65536\n\
             Blocks:       65532, of which 65532 are free\n\
             Pods:\n\
             \x20 196608-262143          default/nginx  u-1\n\
             \x20 262144-327679          default/nginx  u-1  QUARANTINED: bad\n\
             \x20 (no IDs)               (name unknown)  u-2  QUARANTINED: not JSON\n\
             Given away by the machine:\n\
             \x20 100000-165535          the user `ann` in /etc/subuid\n\
             Held by other instances: none"
        );
    }
}
