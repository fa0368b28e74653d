//! `kakoi snapshot`: the store as one file, and back. A store that a server has open is read through that server; a
//! restore is refused while one runs. Keys and certificates are not in it: they lie beside the store.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use store::{RestoreError, SnapshotError, SnapshotInfo, Store, StoreError, StoreOptions};

use crate::cli::SnapshotCommand;
use crate::instance::{self, LockError};
use crate::output;
use crate::places::Places;

/// Why a snapshot could not be taken or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotCommandError {
    #[error("there is no store at {}; name the instance with --root, or start it once with `kakoi up`", .0.display())]
    NoStore(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{action} {}: {cause}", .path.display())]
    File { action: &'static str, path: PathBuf, cause: io::Error },
    #[error("the snapshot {}: {cause}", .path.display())]
    Snapshot { path: PathBuf, cause: SnapshotError },
    #[error("the server that runs on this root can't be asked: the kubeconfig {}: {cause}", .path.display())]
    Kubeconfig { path: PathBuf, cause: Box<KubeconfigError> },
    #[error("ask the server that runs on this root for a snapshot: {0}")]
    Ask(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the server that runs on this root answered {code}: {text}")]
    Answer { code: u16, text: String },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Restore(#[from] Box<RestoreError>),
}

use SnapshotCommandError as Error;

/// Runs the command.
pub(crate) async fn run(places: &Places, command: &SnapshotCommand) -> Result<(), Error> {
    match command {
        SnapshotCommand::Save { file } => save(places, file).await,
        SnapshotCommand::Restore { file } => restore(places, file),
    }
}

fn store_file(places: &Places) -> PathBuf {
    places.state().join(apiserver::STORE_FILE)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes the snapshot beside `file`, reads it again and gives it its name: what is there under that name is whole.
async fn save(places: &Places, file: &Path) -> Result<(), Error> {
    let path = store_file(places);
    if !path.exists() {
        return Err(Error::NoStore(path));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let saved = write(places, &path, &partial).await.and_then(|()| check(&partial)).and_then(|info| {
        fs::rename(&partial, file).and_then(|()| sync_directory(file)).map_err(wrong("write", file))?;
        Ok(info)
    });
    if saved.is_err() {
        // What is half written is of no use, and whether it is there is not what failed.
        fs::remove_file(&partial).ok();
    }
    let info = saved?;
    output::line(format!("{}: {} entries at revision {}", file.display(), info.entries, info.revision));
    Ok(())
}

async fn write(places: &Places, store: &Path, partial: &Path) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(partial);
    let mut out = BufWriter::new(file.map_err(wrong("write", partial))?);
    match open(places, store)? {
        Some(store) => {
            let snapshot = |cause| Error::Snapshot { path: partial.to_owned(), cause };
            store::save_snapshot(&*store, now(), &mut out).map_err(snapshot)?;
        }
        None => receive(places, &mut out, partial).await?,
    }
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(wrong("write", partial))
}

/// The store itself; `None` when a server has it.
fn open(places: &Places, path: &Path) -> Result<Option<std::sync::Arc<Store>>, Error> {
    if instance::holder(&places.run()).is_some() {
        return Ok(None);
    }
    match Store::open(path, &StoreOptions::default()) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::InUse { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the snapshot from the server, as its admin.
async fn receive(places: &Places, out: &mut impl io::Write, partial: &Path) -> Result<(), Error> {
    let client = client(&places.admin_kubeconfig()).await?;
    let request = http::Request::get(apiserver::SNAPSHOT_PATH).body(Body::empty());
    let request = request.map_err(|error| Error::Ask(error.into()))?;
    let mut response = client.send(request).await.map_err(|error| Error::Ask(error.into()))?;
    if !response.status().is_success() {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| Error::Ask(error.into()))?;
        return Err(Error::Answer { code, text: message(&body.to_bytes()) });
    }
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| Error::Ask(error.into()))?;
        let bytes = frame.data_ref().map(AsRef::as_ref).unwrap_or_default();
        out.write_all(bytes).map_err(wrong("write", partial))?;
    }
    Ok(())
}

/// The message of a Status, or the text as it is.
fn message(body: &[u8]) -> String {
    let status: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = status.as_ref().and_then(|status| status.get("message")?.as_str());
    message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

async fn client(path: &Path) -> Result<Client, Error> {
    let wrong = |cause| Error::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    let file = Kubeconfig::read_from(path).map_err(wrong)?;
    let config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?;
    Client::try_from(config).map_err(|error| Error::Ask(error.into()))
}

fn check(path: &Path) -> Result<SnapshotInfo, Error> {
    let file = File::open(path).map_err(wrong("read", path))?;
    store::read_snapshot(BufReader::new(file), |_| Ok::<_, SnapshotError>(()))
        .map_err(|cause| Error::Snapshot { path: path.to_owned(), cause })
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn wrong(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::File { action, path, cause }
}

fn restore(places: &Places, file: &Path) -> Result<(), Error> {
    let _lock = instance::take(places.root(), &places.run())?;
    let state = places.state();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)
        .map_err(wrong("make the directory", &state))?;
    let restored = store::restore(file, &store_file(places), now()).map_err(Box::new)?;
    if let Some(why) = &restored.unreadable {
        output::note(format!("the store that was there can't be read: {why}"));
    }
    if let Some(replaced) = &restored.replaced {
        output::note(format!("the store that was there is now {}", replaced.display()));
    }
    let (entries, revision) = (restored.snapshot.entries, restored.revision);
    output::line(format!("{}: {entries} entries restored; revisions go on from {revision}", file.display()));
    Ok(())
}
