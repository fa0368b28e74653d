//! The images of a node, as the rest of the program sees them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use crate::error::{LoadError, PullError};
use crate::manifest::Platform;
use crate::pull::{Job, Progress, Puller, RegistryAuth};
use crate::reference::Reference;
use crate::registry::Registries;
use crate::store::{ImageRecord, LayerPin, Store, StoreError, Usage};

/// Where the images are kept and how they are fetched.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// The store's own directory; made with mode 0700.
    pub dir: PathBuf,
    /// Registries' settings in containerd's layout: `<certs_dir>/<registry>/hosts.toml`. May not exist.
    pub certs_dir: PathBuf,
    /// Which images run here.
    pub platform: Platform,
    /// How long registries may take, and which proxy leads to them.
    pub network: crate::registry::NetworkConfig,
    /// Layers that are unpacked at once, over all pulls.
    pub unpack_at_once: usize,
}

impl ImageStoreConfig {
    /// The usual settings: this machine's platform, proxies from the environment.
    pub fn new(dir: impl Into<PathBuf>, certs_dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            certs_dir: certs_dir.into(),
            platform: Platform::of_this_machine(),
            network: crate::registry::NetworkConfig::from_env(),
            unpack_at_once: std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)),
        }
    }
}

type Outcome = Result<ImageRecord, Arc<PullError>>;
type Running = BoxFuture<'static, Outcome>;
type Flights = HashMap<(String, Option<RegistryAuth>), (WeakShared<Running>, watch::Receiver<Progress>)>;

/// The images of a node.
#[derive(Debug)]
pub struct ImageStore {
    store: Arc<Store>,
    puller: Arc<Puller>,
    registries: Arc<Registries>,
    flights: Mutex<Flights>,
}

/// Keeps an image's layers on disk while it lives, whatever is removed.
#[derive(Debug)]
pub struct ImagePin {
    _layers: LayerPin,
}

impl ImageStore {
    /// Opens the store and removes what a crash left half done. Blocks on the disk; call it once, at start.
    ///
    /// # Errors
    /// When the directory cannot be made, read or locked.
    pub fn open(config: ImageStoreConfig) -> Result<Arc<Self>, StoreError> {
        let store = Store::open(&config.dir)?;
        let puller = Puller::new(Arc::clone(&store), config.platform, config.unpack_at_once);
        // What a process pulled that was killed before the disk had it.
        puller.make_durable();
        let registries = Registries::new(config.certs_dir, config.network);
        Ok(Arc::new(Self {
            store,
            puller: Arc::new(puller),
            registries: Arc::new(registries),
            flights: Mutex::default(),
        }))
    }

    /// Pulls an image, whether or not it is here: a tag may have moved. Layers that are here are not fetched.
    /// Pulls of the same reference with the same credentials are one; it stops when nobody waits for it. `progress` may
    /// miss steps, but not the last.
    ///
    /// # Errors
    /// What was tried, where, and what each place said; [`PullError::kind`] sorts it.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        mut progress: impl FnMut(Progress),
    ) -> Result<ImageRecord, Arc<PullError>> {
        let reference: Reference =
            reference.parse().map_err(|error| Arc::new(PullError::Reference(error)))?;
        let (mut running, mut state) = self.flight(reference, auth);
        loop {
            tokio::select! {
                biased;
                outcome = &mut running => {
                    progress(*state.borrow_and_update());
                    return outcome;
                }
                Ok(()) = state.changed() => progress(*state.borrow_and_update()),
            }
        }
    }

    fn flight(
        &self,
        reference: Reference,
        auth: Option<RegistryAuth>,
    ) -> (Shared<Running>, watch::Receiver<Progress>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, (running, _)| running.upgrade().is_some());
        let key = (reference.to_string(), auth.clone());
        if let Some((running, state)) = flights.get(&key)
            && let Some(running) = running.upgrade()
        {
            return (running, state.clone());
        }
        let (sender, receiver) = watch::channel(Progress::default());
        let (puller, registries) = (Arc::clone(&self.puller), Arc::clone(&self.registries));
        let running: Running = Box::pin(async move {
            let candidates = registries.candidates(&reference, auth.as_ref()).map_err(PullError::Hosts)?;
            let job = Job { reference, candidates, names: None, progress: sender };
            puller.pull(&job).await.map_err(Arc::new)
        });
        let running = running.shared();
        if let Some(weak) = running.downgrade() {
            flights.insert(key, (weak, receiver.clone()));
        }
        (running, receiver)
    }

    /// Takes the images out of a file or directory: an OCI layout, an OCI archive, or what `docker save` writes;
    /// archives may be compressed. `name` is given to a single image, in the place of its own names.
    ///
    /// # Errors
    /// When it is no such file, an image in it is damaged, or one has no name.
    pub async fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<ImageRecord>, LoadError> {
        crate::load::load(&self.puller, &self.store, path, name).await
    }

    /// The image that a reference, an ID (with or without `sha256:`) or the beginning of an ID means.
    pub fn resolve(&self, reference_or_id: &str) -> Option<ImageRecord> {
        self.store.resolve(reference_or_id)
    }

    /// All images.
    pub fn list(&self) -> Vec<ImageRecord> {
        self.store.list()
    }

    /// Removes an image with all its names, and the layers that nothing else needs. `false`: there was none.
    /// Layers held by an [`ImagePin`] stay until [`ImageStore::collect`] finds them free.
    ///
    /// # Errors
    /// When the disk refuses; what is left over goes with the next collection.
    pub async fn remove(&self, reference_or_id: &str) -> Result<bool, StoreError> {
        let (store, name) = (Arc::clone(&self.store), reference_or_id.to_owned());
        self.blocking(move || {
            let is_removed = store.remove(&name)?;
            store.collect()?;
            Ok(is_removed)
        })
        .await
    }

    /// Marks an image so that kubelets do not collect it, or takes the mark away. Pulled again, it keeps the mark; its
    /// names may move to another image, the mark does not. `false`: there is no such image.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn set_pinned(&self, reference_or_id: &str, is_pinned: bool) -> Result<bool, StoreError> {
        let (store, name) = (Arc::clone(&self.store), reference_or_id.to_owned());
        self.blocking(move || store.set_pinned(&name, is_pinned)).await
    }

    /// Takes one name from an image; with its last tag the image goes as with [`ImageStore::remove`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn untag(&self, reference: &Reference) -> Result<bool, StoreError> {
        let (store, reference) = (Arc::clone(&self.store), reference.clone());
        self.blocking(move || {
            let is_removed = store.untag(&reference)?;
            store.collect()?;
            Ok(is_removed)
        })
        .await
    }

    /// Removes the layers that no image has and nobody holds, and gives the bytes freed. After a restart call it
    /// only when the containers that are still there hold theirs again.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn collect(&self) -> Result<u64, StoreError> {
        let store = Arc::clone(&self.store);
        self.blocking(move || store.collect()).await
    }

    /// Holds layers (of an [`ImageRecord`], or as a container remembers them) against removal.
    pub fn pin(&self, layers: &[PathBuf]) -> ImagePin {
        ImagePin { _layers: self.store.hold_paths(layers) }
    }

    /// What all layers take on disk.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// The common parent of all layers.
    pub fn layers_dir(&self) -> PathBuf {
        self.store.layers_dir()
    }

    /// Waits for threads that pulls left behind when they were dropped, and until what was pulled is on the disk. Call it
    /// last, at shutdown.
    pub async fn close(&self) {
        self.puller.settle().await;
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| {
            Err(StoreError::Disk {
                action: "working on",
                path: self.store.layers_dir(),
                source: std::io::Error::other(error),
            })
        })
    }
}
