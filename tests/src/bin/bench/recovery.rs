//! How long a node with very many records of ID blocks takes to open its ID space.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubelet::idspace::{IdSpace, IdSpaceConfig, MachineFiles, NoFaults};

use crate::report;

/// Records on disk.
const RECORDS: u64 = 10_000;
/// IDs of a block.
const BLOCK: u64 = 65_536;
/// The pool's first block: far above what distributions give away.
const FIRST: u64 = 4_000;
/// How often they are read.
const RUNS: usize = 30;

/// Makes the records, opens the ID space on them again and again, and removes them.
pub(crate) fn measure() {
    let dir = std::env::temp_dir().join(format!("kakoi-bench-{}", std::process::id()));
    generate(&dir).expect("the records can be made");
    let mut times: Vec<Duration> = (0..RUNS).map(|_| open(&dir)).collect();
    fs::remove_dir_all(&dir).expect("the records can be removed");
    report(&format!("recovery: {RECORDS} records read and settled"), "1 s", &mut times);
}

fn open(dir: &Path) -> Duration {
    let config = config(dir);
    let begin = Instant::now();
    let (ids, findings) = IdSpace::open(config, &[]).expect("the ID space can be opened");
    let took = begin.elapsed();
    assert!(findings.is_empty(), "the records are good, but: {:?}", findings.first());
    drop(ids);
    took
}

fn config(dir: &Path) -> IdSpaceConfig {
    let at = |name: &str| dir.join(name);
    IdSpaceConfig {
        pods_dir: at("pods"),
        claims_dir: at("ids"),
        instance: "bench".to_owned(),
        root: dir.to_owned(),
        cursor_file: at("next"),
        ids_per_pod: 65_536,
        max_pods: 110,
        machine: MachineFiles {
            etc: at("etc"),
            run: at("run"),
            proc: at("proc"),
            getsubids: at("getsubids"),
        },
        faults: Arc::new(NoFaults),
    }
}

fn generate(dir: &Path) -> std::io::Result<()> {
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    fs::create_dir_all(dir.join("proc"))?;
    fs::write(etc.join("passwd"), "kubelet:x:999:999::/:/bin/false\n")?;
    let line = format!("kubelet:{}:{}\n", FIRST * BLOCK, RECORDS * BLOCK);
    fs::write(etc.join("subuid"), &line)?;
    fs::write(etc.join("subgid"), &line)?;
    for number in 0..RECORDS {
        let pod = dir.join(format!("pods/00000000-0000-4000-8000-{number:012x}"));
        fs::create_dir_all(&pod)?;
        let mapping =
            format!(r#"[{{"hostId":{},"containerId":0,"length":{BLOCK}}}]"#, (FIRST + number) * BLOCK);
        fs::write(pod.join("userns"), format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#))?;
    }
    Ok(())
}
