//! What the runtime holds of one Pod: its sandboxes and containers, newest first, free of CRI's wire types.

use jiff::Timestamp;

/// A sandbox as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) is_ready: bool,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) ips: Vec<String>,
    pub(crate) uses_host_network: bool,
}

/// A container's stage in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One container as the runtime reports it; restarts of a container are separate records.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) sandbox_id: String,
    pub(crate) restart_count: i32,
    pub(crate) stage: Stage,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) spec_hash: Option<String>,
    pub(crate) log_path: String,
    pub(crate) user: Option<LinuxUser>,
    pub(crate) stop_signal: Option<String>,
}

/// The identity a container's first process runs with, in container IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinuxUser {
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) supplemental_groups: Vec<i64>,
}

/// Everything of one Pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<ContainerRecord>,
}

impl Observed {
    /// Builds the view with the newest of each kind first.
    pub(crate) fn new(mut sandboxes: Vec<Sandbox>, mut containers: Vec<ContainerRecord>) -> Self {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
        containers
            .sort_by_key(|container| std::cmp::Reverse((container.restart_count, container.created_at)));
        Self { sandboxes, containers }
    }

    /// The sandbox that counts.
    pub(crate) fn latest_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest sandbox, if it is ready.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.latest_sandbox().filter(|sandbox| sandbox.is_ready)
    }

    /// All records of the container `name`, newest first.
    pub(crate) fn history<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ContainerRecord> {
        self.containers.iter().filter(move |record| record.name == name)
    }

    /// The newest record of the container `name`.
    pub(crate) fn latest<'a>(&'a self, name: &'a str) -> Option<&'a ContainerRecord> {
        self.history(name).next()
    }

    /// Containers whose process may still live.
    pub(crate) fn live(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.containers.iter().filter(|record| matches!(record.stage, Stage::Running | Stage::Unknown))
    }

    /// The Pod's addresses: those of the ready sandbox.
    pub(crate) fn pod_ips(&self) -> &[String] {
        self.ready_sandbox().map(|sandbox| sandbox.ips.as_slice()).unwrap_or_default()
    }
}

impl ContainerRecord {
    /// Ran to its end with exit code zero.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.stage == Stage::Exited && self.exit_code == 0
    }

    /// Its process runs.
    pub(crate) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Records for tests.
    use super::*;

    pub(crate) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    pub(crate) fn sandbox(attempt: u32, is_ready: bool) -> Sandbox {
        Sandbox {
            id: format!("s{attempt}"),
            attempt,
            is_ready,
            created_at: Some(at(i64::from(attempt))),
            ips: vec!["10.85.0.2".into()],
            uses_host_network: false,
        }
    }

    pub(crate) fn container(name: &str, restart_count: i32, stage: Stage, exit_code: i32) -> ContainerRecord {
        let started = at(i64::from(restart_count) * 10);
        ContainerRecord {
            id: format!("{name}-{restart_count}"),
            name: name.into(),
            sandbox_id: "s0".into(),
            restart_count,
            stage,
            created_at: Some(started),
            started_at: Some(started),
            finished_at: (stage == Stage::Exited).then(|| at(i64::from(restart_count) * 10 + 1)),
            exit_code,
            reason: match (stage, exit_code) {
                (Stage::Exited, 0) => "Completed".into(),
                (Stage::Exited, _) => "Error".into(),
                _ => String::new(),
            },
            message: String::new(),
            image: "docker.io/library/nginx:latest".into(),
            image_id: "sha256:1".into(),
            spec_hash: None,
            log_path: String::new(),
            user: None,
            stop_signal: None,
        }
    }
}
