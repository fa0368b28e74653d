//! Reads the manifests' directory at start and after each change in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{ManifestError, ManifestSource, parse};
use crate::clock::Clock;
use crate::logs::watch::Watch;

/// What the directory held at the last look: each file's Pod, or the last one that it was.
type Known = BTreeMap<PathBuf, (Vec<u8>, Option<Arc<Pod>>)>;

/// Sends the static Pods of the directory now and whenever they change, until `shutdown`.
pub(crate) async fn follow_manifests(
    source: ManifestSource,
    clock: Clock,
    out: mpsc::Sender<Vec<Arc<Pod>>>,
    shutdown: CancellationToken,
) {
    let directory = source.directory.clone();
    let watch = match open(&directory) {
        Ok(watch) => watch,
        Err(error) => {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "static Pods are not run: the directory cannot be watched");
            // Nothing runs from there: what is left of earlier static Pods is cleared away.
            let _ = out.send(Vec::new()).await;
            return;
        }
    };
    let mut known = Known::new();
    shutdown
        .run_until_cancelled(async {
            loop {
                known = look(&source, &clock, std::mem::take(&mut known));
                if out.send(pods_of(&known)).await.is_err() {
                    return;
                }
                if let Err(error) = watch.changed().await {
                    tracing::error!(directory = %directory.display(), %error, "static Pods are not followed any more");
                    return;
                }
            }
        })
        .await;
}

fn open(directory: &Path) -> std::io::Result<Watch> {
    std::fs::create_dir_all(directory)?;
    let watch = Watch::new()?;
    watch.add_settled(directory)?;
    Ok(watch)
}

/// Reads each file anew that has changed. One that is no Pod (any more) keeps the Pod that it was.
fn look(source: &ManifestSource, clock: &Clock, mut before: Known) -> Known {
    let mut known = Known::new();
    let entries = match std::fs::read_dir(&source.directory) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(directory = %source.directory.display(), %error, "manifests not read; what ran runs on");
            return before;
        }
    };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_manifest(path)).collect();
    paths.sort();
    for path in paths {
        let (old, kept) = before.remove(&path).unwrap_or_default();
        let found = std::fs::read(&path).map_err(ManifestError::from).and_then(|text| {
            if text == old && kept.is_some() {
                return Ok((text, None));
            }
            let pod = parse(source, &path, &text, clock.now())?;
            Ok((text, Some(Arc::new(pod))))
        });
        let entry = match found {
            Ok((text, None)) => (text, kept),
            Ok((text, pod)) => (text, pod),
            Err(error) => {
                tracing::warn!(manifest = %path.display(), %error, "manifest not run; what ran from it before runs on");
                (Vec::new(), kept)
            }
        };
        known.insert(path, entry);
    }
    known
}

fn is_manifest(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !is_hidden && path.is_file()
}

/// The Pods, each name and each identity once: the first file in the order of names has it.
fn pods_of(known: &Known) -> Vec<Arc<Pod>> {
    let mut taken = BTreeSet::new();
    let mut pods = Vec::new();
    for (path, (_, pod)) in known {
        let Some(pod) = pod else { continue };
        let meta = &pod.metadata;
        let name = format!("{:?}/{:?}", meta.namespace, meta.name);
        let uid = format!("{:?}", meta.uid);
        if taken.contains(&name) || taken.contains(&uid) {
            let text = format!(
                "another manifest has the Pod {:?} already",
                meta.name.as_deref().unwrap_or_default()
            );
            let error = ManifestError::Taken(text);
            tracing::warn!(manifest = %path.display(), %error, "manifest not run");
            continue;
        }
        taken.extend([name, uid]);
        pods.push(Arc::clone(pod));
    }
    pods
}

#[cfg(test)]
mod tests {
    use api::feature::Gates;

    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    }

    async fn names(pods: &mut mpsc::Receiver<Vec<Arc<Pod>>>) -> Vec<(String, String)> {
        let pods = pods.recv().await.unwrap();
        let text = |pod: &Arc<Pod>| {
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            (pod.metadata.name.clone().unwrap(), image)
        };
        pods.iter().map(text).collect()
    }

    #[tokio::test]
    async fn manifests_come_change_and_go_and_a_broken_one_runs_on() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("manifests");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(".hidden"), manifest("no", "i")).unwrap();
        std::fs::write(directory.join("a.yaml"), manifest("a", "i:1")).unwrap();
        let source =
            ManifestSource { directory: directory.clone(), node: "n".into(), gates: Gates::default() };
        let (out, mut pods) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(follow_manifests(source, Clock::system(), out, shutdown.clone()));
        let own = |name: &str, image: &str| (name.to_owned(), image.to_owned());
        assert_eq!(names(&mut pods).await, [own("a-n", "i:1")]);
        let written = root.path().join("b");
        std::fs::write(&written, manifest("b", "i")).unwrap();
        std::fs::rename(&written, directory.join("b.yaml")).unwrap();
        assert_eq!(names(&mut pods).await, [own("a-n", "i:1"), own("b-n", "i")]);
        std::fs::write(directory.join("a.yaml"), "kind: Nonsense").unwrap();
        assert_eq!(names(&mut pods).await, [own("a-n", "i:1"), own("b-n", "i")]);
        std::fs::write(&written, manifest("a", "i:2")).unwrap();
        std::fs::rename(&written, directory.join("a.yaml")).unwrap();
        assert_eq!(names(&mut pods).await, [own("a-n", "i:2"), own("b-n", "i")]);
        std::fs::write(&written, manifest("a", "i:3")).unwrap();
        std::fs::rename(&written, directory.join("c.yaml")).unwrap();
        assert_eq!(names(&mut pods).await, [own("a-n", "i:2"), own("b-n", "i")], "the name is taken");
        std::fs::remove_file(directory.join("a.yaml")).unwrap();
        assert_eq!(names(&mut pods).await, [own("b-n", "i"), own("a-n", "i:3")]);
        shutdown.cancel();
        task.await.unwrap();
    }
}
