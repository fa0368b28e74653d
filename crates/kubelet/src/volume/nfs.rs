//! NFS volumes, mounted by the node's own `mount.nfs` as `mount -t nfs` would: it resolves the server, speaks with its
//! portmapper and finds the version. Without that program they are refused in a sentence.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NFSVolumeSource, Pod, Volume};
use tokio::process::Command;

use super::claim::{ClaimError, plan_claimed};
use super::mount::is_mount_point;
use super::plan::Content;
use crate::object::Snapshot;

/// The program that mounts.
const HELPER: &str = "mount.nfs";
/// Where it usually lies when `PATH` does not lead there.
const USUAL: [&str; 2] = ["/sbin", "/usr/sbin"];
/// How long one try may take; `mount.nfs` itself tries for two minutes.
const PATIENCE: Duration = Duration::from_secs(130);

/// An export of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NfsVolume {
    pub(crate) server: String,
    pub(crate) path: String,
    pub(crate) is_read_only: bool,
    /// Of the `PersistentVolume`; a Pod's own volume has none.
    pub(crate) options: Vec<String>,
}

/// Why an export is not mounted. Each names the server and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NfsError {
    #[error(
        "the node cannot mount {export}: it has no program `{HELPER}` (looked in {looked_in}; Linux {kernel}); install the node's NFS client (`nfs-common` or `nfs-utils`), or use a volume of another type"
    )]
    NoHelper { export: String, looked_in: String, kernel: String },
    #[error("run {program} for {export}: {source}", program = .program.display())]
    Run { program: PathBuf, export: String, source: io::Error },
    #[error(
        "`{HELPER}` could not mount {export} ({status}; Linux {kernel}): {said}; see that the server exports the path to this node"
    )]
    Failed { export: String, status: String, kernel: String, said: String },
    #[error("`{HELPER}` did not mount {export} within {} s; see that the server answers this node", PATIENCE.as_secs())]
    TooSlow { export: String },
    #[error("make directory {path}: {source}", path = .path.display())]
    Directory { path: PathBuf, source: io::Error },
}

impl NfsVolume {
    /// What a Pod's own volume means.
    pub(crate) fn of(source: &NFSVolumeSource, options: Vec<String>) -> Self {
        Self {
            server: source.server.clone(),
            path: source.path.clone(),
            is_read_only: source.read_only == Some(true),
            options,
        }
    }

    /// `server:/path`, an IPv6 address in brackets.
    pub(crate) fn export(&self) -> String {
        let is_bare_v6 = self.server.contains(':') && !self.server.starts_with('[');
        if is_bare_v6 {
            format!("[{}]:{}", self.server, self.path)
        } else {
            format!("{}:{}", self.server, self.path)
        }
    }

    /// The arguments of `mount.nfs`.
    fn plan_arguments(&self, target: &Path) -> Vec<String> {
        let read_only = self.is_read_only.then(|| "ro".to_owned());
        let options: Vec<String> = self.options.iter().cloned().chain(read_only).collect();
        let mut arguments = vec![self.export(), target.to_string_lossy().into_owned()];
        if !options.is_empty() {
            arguments.extend(["-o".to_owned(), options.join(",")]);
        }
        arguments
    }
}

/// The NFS volume that a volume of the Pod stands for; `None` for every other type.
///
/// # Errors
/// When it goes by a claim that leads nowhere (yet).
pub(crate) fn plan_nfs(
    pod: &Pod,
    volume: &Volume,
    objects: &Snapshot,
) -> Result<Option<NfsVolume>, ClaimError> {
    if let Some(source) = &volume.nfs {
        return Ok(Some(NfsVolume::of(source, Vec::new())));
    }
    if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() {
        return Ok(None);
    }
    match plan_claimed(pod, volume, objects)?.0 {
        Content::Nfs(planned) => Ok(Some(planned)),
        _ => Ok(None),
    }
}

/// The directories in which programs are looked for.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(USUAL.map(PathBuf::from)).collect()
}

/// Mounts an export at `target`, unless something is mounted there. The program is found in `search`; a caller that
/// waits no longer ends it.
pub(crate) async fn mount_nfs(volume: &NfsVolume, target: &Path, search: &[PathBuf]) -> Result<(), NfsError> {
    if is_mount_point(target).unwrap_or(false) {
        return Ok(());
    }
    let export = volume.export();
    let found = search.iter().map(|directory| directory.join(HELPER)).find(|program| program.is_file());
    let program = found.ok_or_else(|| NfsError::NoHelper {
        export: export.clone(),
        looked_in: search.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":"),
        kernel: kernel(),
    })?;
    tokio::fs::create_dir_all(target)
        .await
        .map_err(|source| NfsError::Directory { path: target.to_owned(), source })?;
    let mut command = Command::new(&program);
    command.args(volume.plan_arguments(target)).stdin(Stdio::null()).kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = ran
        .map_err(|_| NfsError::TooSlow { export: export.clone() })?
        .map_err(|source| NfsError::Run { program, export: export.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NfsError::Failed { export, status: output.status.to_string(), kernel: kernel(), said })
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::volume::mount::remove_tree;

    fn volume(server: &str) -> NfsVolume {
        let options = vec!["nfsvers=4.2".to_owned(), "hard".to_owned()];
        NfsVolume { server: server.into(), path: "/export/a b".into(), is_read_only: true, options }
    }

    /// A directory with a program of this name that stands for the real one: it needs a kernel with NFS and a server.
    fn stand_in(script: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(HELPER);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    async fn mount(script: &str, target: &Path) -> Result<(), String> {
        let helper = stand_in(script);
        let search = [PathBuf::from("/nowhere"), helper.path().to_owned()];
        mount_nfs(&volume("filer"), target, &search).await.map_err(|error| error.to_string())
    }

    #[test]
    fn the_program_is_told_the_export_the_place_and_the_options() {
        let arguments = |volume: &NfsVolume| volume.plan_arguments(Path::new("/t"));
        assert_eq!(arguments(&volume("filer")), ["filer:/export/a b", "/t", "-o", "nfsvers=4.2,hard,ro"]);
        assert_eq!(arguments(&volume("fd00::1"))[0], "[fd00::1]:/export/a b");
        let plain = NfsVolume { server: "s".into(), path: "/".into(), ..NfsVolume::default() };
        assert_eq!(arguments(&plain), ["s:/", "/t"]);
    }

    #[tokio::test]
    async fn an_export_is_mounted_once_by_the_nodes_program() {
        assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root");
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("volumes/v");
        let script = format!("echo \"$@\" >> {}/calls; mount -t tmpfs \"$1\" \"$2\"", root.path().display());
        mount(&script, &target).await.unwrap();
        assert!(is_mount_point(&target).unwrap());
        mount("exit 1", &target).await.unwrap();
        let calls = fs::read_to_string(root.path().join("calls")).unwrap();
        assert_eq!(calls, format!("filer:/export/a b {} -o nfsvers=4.2,hard,ro\n", target.display()));
        remove_tree(&root.path().join("volumes")).unwrap();
    }

    #[tokio::test]
    async fn what_does_not_work_is_told_with_server_kernel_and_remedy() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("v");
        let absent =
            mount_nfs(&volume("filer"), &target, &["/nowhere".into()]).await.unwrap_err().to_string();
        let begins = "the node cannot mount filer:/export/a b: it has no program `mount.nfs` (looked in /nowhere; Linux ";
        assert!(absent.starts_with(begins) && absent.contains("nfs-common"), "{absent}");
        let denied =
            mount("echo 'mount.nfs: access denied by server' >&2; exit 32", &target).await.unwrap_err();
        assert!(denied.contains("mount filer:/export/a b (exit status: 32; Linux "), "{denied}");
        assert!(denied.contains("mount.nfs: access denied by server"), "{denied}");
    }
}
