//! One image from its places to the store: manifest, configuration, then the layers side by side, each streamed
//! through its checks into a directory. Every step can be dropped; what is half done is removed.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::config::ImageDocument;
use crate::digest::Digest;
use crate::error::{Attempt, AttemptError, Attempts, PullError};
use crate::manifest::{Descriptor, Document, MAX_DOCUMENT, Manifest, Platform};
use crate::reference::Reference;
use crate::source::{BlobStream, Candidate, Fetched, Part, Source};
use crate::store::{
    ImageRecord, LayerPin, LayerSize, Names, NewImage, NewLayer, Store, StoreError, chain_key, key_of,
};
use crate::unpack::{InputError, Promise, Tree, UnpackError, complete, unpack_layer};

/// Layers that one pull works on at once.
const LAYERS_AT_ONCE: usize = 4;
/// Chunks that wait between the network and the unpacking thread.
const CHUNKS_AHEAD: usize = 16;
/// How deep indexes may be nested.
const INDEX_DEPTH: usize = 3;

/// How far a pull has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are in the store.
    pub layers_done: usize,
    /// Compressed bytes of the layers that were not in the store.
    pub bytes: u64,
    /// Those that have come.
    pub bytes_done: u64,
}

/// What a registry is given to prove who asks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum RegistryAuth {
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// The password, or an access token in its place.
        password: String,
    },
    /// An `OAuth2` refresh token, exchanged at the registry's token server.
    IdentityToken(String),
    /// A bearer token, sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username}:…)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(…)"),
        }
    }
}

/// What a pull needs of the node; shared by all pulls.
#[derive(Debug)]
pub(crate) struct Puller {
    store: Arc<Store>,
    platform: Platform,
    permits: Arc<Semaphore>,
    being_unpacked: Arc<Mutex<HashMap<String, Turn>>>,
    /// Threads of this pull.
    tasks: TaskTracker,
    /// Threads of all pulls.
    all_tasks: TaskTracker,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// One pull: what, from where, and who is told.
pub(crate) struct Job {
    pub(crate) reference: Reference,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) names: Option<Names>,
    pub(crate) progress: watch::Sender<Progress>,
}

/// An image whose documents are read and checked: what remains is its layers.
pub(crate) struct ImagePlan {
    pub(crate) reference: String,
    pub(crate) id: Digest,
    pub(crate) document: ImageDocument,
    pub(crate) layers: Vec<LayerPlan>,
    pub(crate) download_size: u64,
    pub(crate) names: Names,
}

/// One layer of a plan.
pub(crate) struct LayerPlan {
    pub(crate) diff_id: Digest,
    pub(crate) blob: Descriptor,
    /// Whether the blob's digest and size are a promise (a manifest's) or only an address (`docker save`).
    pub(crate) is_promised: bool,
}

/// A fetched layer.
enum Ready {
    Published(LayerPin),
    /// Its tree must be completed from the layers below first.
    Pending(Box<(crate::store::Scratch, Tree)>),
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, platform: Platform, unpack_at_once: usize) -> Self {
        Self {
            store,
            platform,
            permits: Arc::new(Semaphore::new(unpack_at_once)),
            being_unpacked: Arc::default(),
            tasks: TaskTracker::new(),
            all_tasks: TaskTracker::new(),
        }
    }

    /// For one pull, whose threads are waited for when it fails.
    fn for_one(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            platform: self.platform.clone(),
            permits: Arc::clone(&self.permits),
            being_unpacked: Arc::clone(&self.being_unpacked),
            tasks: TaskTracker::new(),
            all_tasks: self.all_tasks.clone(),
        }
    }

    /// Waits for the threads of pulls that were dropped, and until what was pulled is on the disk.
    pub(crate) async fn settle(&self) {
        self.all_tasks.close();
        self.all_tasks.wait().await;
    }

    /// Pulls one image.
    pub(crate) async fn pull(&self, job: &Job) -> Result<ImageRecord, PullError> {
        if let Some(known) = self.unchanged(job).await {
            return Ok(known);
        }
        let (plan, sources) = self.plan(job).await?;
        self.install(plan, &sources, &job.progress).await
    }

    /// The image that is here, if the registry says that the tag still means it. This is what most pulls with
    /// `imagePullPolicy: Always` come to, and such a question does not count against registries' pull limits.
    async fn unchanged(&self, job: &Job) -> Option<ImageRecord> {
        let known = self.store.resolve(&job.reference.to_string())?;
        let candidate = job.candidates.iter().find(|candidate| candidate.can_resolve)?;
        let digest = candidate.source.head(&job.reference).await?;
        known.repo_digests.contains(&job.reference.repo_digest(&digest)).then_some(known)
    }

    /// Fetches and checks the image's documents.
    async fn plan(&self, job: &Job) -> Result<(ImagePlan, Vec<Arc<Source>>), PullError> {
        let (first, top) = self.resolve(job).await?;
        let others = job.candidates.iter().filter(|candidate| candidate.can_pull && candidate.follows(None));
        let others = others.map(|candidate| &candidate.source).filter(|source| !Arc::ptr_eq(source, &first));
        let sources: Vec<_> = std::iter::once(&first).chain(others).cloned().collect();
        let (manifest, manifest_size) = self.select(job, &sources, &top).await?;
        let config = self.fetch(job, &sources, Part::Configuration, &manifest.config).await?;
        let reference = job.reference.to_string();
        let unusable = |reason: String| PullError::Image { reference: reference.clone(), reason };
        let document: ImageDocument = serde_json::from_slice(&config.bytes)
            .map_err(|error| unusable(format!("its configuration cannot be read: {error}")))?;
        self.check_platform(&reference, &document)?;
        let layers = pair_layers(&manifest, &document).map_err(unusable)?;
        let blobs: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        let plan = ImagePlan {
            id: manifest.config.digest.clone(),
            document,
            layers,
            download_size: blobs + manifest.config.size + manifest_size,
            names: job.names.clone().unwrap_or_else(|| Names {
                tag: job.reference.repo_tag(),
                digest: Some(job.reference.repo_digest(&top.digest)),
            }),
            reference,
        };
        Ok((plan, sources))
    }

    async fn resolve(&self, job: &Job) -> Result<(Arc<Source>, Fetched), PullError> {
        let mut attempts = Attempts::default();
        for candidate in &job.candidates {
            let may =
                if job.reference.digest().is_some() { candidate.can_pull } else { candidate.can_resolve };
            if !may || !candidate.follows(attempts.0.last().map(|attempt| &attempt.error)) {
                continue;
            }
            match candidate.source.manifest(&job.reference, &self.platform).await {
                Ok(fetched) => return Ok((Arc::clone(&candidate.source), fetched)),
                Err(error) => attempts.0.push(attempt(&candidate.source, error)),
            }
        }
        Err(PullError::Manifest { reference: job.reference.to_string(), attempts })
    }

    /// From an index to the manifest for this machine.
    async fn select(
        &self,
        job: &Job,
        sources: &[Arc<Source>],
        top: &Fetched,
    ) -> Result<(Manifest, u64), PullError> {
        let reference = || job.reference.to_string();
        let mut fetched = top.clone();
        for _ in 0..=INDEX_DEPTH {
            let document = Document::parse(&fetched.bytes, &fetched.media_type)
                .map_err(|error| PullError::Image { reference: reference(), reason: error.to_string() })?;
            let index = match document {
                Document::Manifest(manifest) => return Ok((manifest, fetched.bytes.len() as u64)),
                Document::Index(index) => index,
            };
            let Some(entry) = self.platform.select(&index.manifests).first().copied().cloned() else {
                let offered = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
                let offered: Vec<_> = offered.map(ToString::to_string).collect();
                return Err(self.other_platform(&reference(), offered.join(", ")));
            };
            fetched = self.fetch(job, sources, Part::Manifest, &entry).await?;
        }
        Err(PullError::Image { reference: reference(), reason: "its indexes are nested too deep".to_owned() })
    }

    fn check_platform(&self, reference: &str, document: &ImageDocument) -> Result<(), PullError> {
        let (os, architecture) = (&document.os, &document.architecture);
        let fits = (os.is_empty() || *os == self.platform.os)
            && (architecture.is_empty() || *architecture == self.platform.architecture);
        if fits { Ok(()) } else { Err(self.other_platform(reference, format!("{os}/{architecture}"))) }
    }

    fn other_platform(&self, reference: &str, offered: String) -> PullError {
        PullError::Platform { reference: reference.to_owned(), wanted: self.platform.to_string(), offered }
    }

    async fn fetch(
        &self,
        job: &Job,
        sources: &[Arc<Source>],
        part: Part,
        wanted: &Descriptor,
    ) -> Result<Fetched, PullError> {
        let reference = job.reference.to_string();
        if wanted.size > MAX_DOCUMENT {
            let reason = format!("its {} has {} bytes; at most 8 MiB is read", part.name(), wanted.size);
            return Err(PullError::Image { reference, reason });
        }
        let mut attempts = Attempts::default();
        for source in sources {
            match source.document(&job.reference, wanted, part).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => attempts.0.push(attempt(source, error)),
            }
        }
        Err(PullError::Part { reference, part: part.name(), digest: wanted.digest.clone(), attempts })
    }

    /// Brings the layers into the store and adds the image. When it fails, nothing half done is left.
    pub(crate) async fn install(
        &self,
        plan: ImagePlan,
        sources: &[Arc<Source>],
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageRecord, PullError> {
        let one = self.for_one();
        let installed = one.install_layers(plan, sources, progress).await;
        one.tasks.close();
        one.tasks.wait().await;
        self.make_durable();
        installed
    }

    /// Sees to it that what was installed is on the disk, in a thread that [`Puller::settle`] waits for.
    pub(crate) fn make_durable(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let store = Arc::clone(&self.store);
        let write = move || {
            if let Err(error) = store.make_durable() {
                tracing::warn!(%error, "images that were pulled last may be gone after a restart of the machine");
            }
        };
        self.all_tasks.spawn_blocking_on(write, &runtime);
    }

    async fn install_layers(
        &self,
        plan: ImagePlan,
        sources: &[Arc<Source>],
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageRecord, PullError> {
        let diff_ids: Vec<Digest> = plan.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let mut jobs = Vec::new();
        let mut bytes = 0;
        for (index, layer) in plan.layers.iter().enumerate() {
            let chain = diff_ids.get(..=index).map(chain_key).unwrap_or_default();
            if self.held(layer, &chain).is_none() {
                bytes += layer.blob.size;
            }
            jobs.push(self.layer(&plan.reference, layer, chain, sources, progress));
        }
        progress.send_modify(|now| (now.layers, now.bytes) = (plan.layers.len(), bytes));
        let mut ready = futures::stream::iter(jobs).buffered(LAYERS_AT_ONCE);
        let mut pins: Vec<LayerPin> = Vec::new();
        while let Some(layer) = ready.try_next().await? {
            let pin = match layer {
                Ready::Published(pin) => pin,
                Ready::Pending(pending) => {
                    let index = pins.len();
                    let chain = diff_ids.get(..=index).map(chain_key).unwrap_or_default();
                    let digest = diff_ids.get(index).unwrap_or(&plan.id);
                    self.complete(&plan.reference, digest, *pending, chain, &pins).await?
                }
            };
            pins.push(pin);
            progress.send_modify(|now| now.layers_done += 1);
        }
        drop(ready);
        if pins.is_empty() {
            pins.push(self.empty_layer().await?);
        }
        self.add(plan, &pins).await
    }

    async fn add(&self, plan: ImagePlan, pins: &[LayerPin]) -> Result<ImageRecord, PullError> {
        let mut layers = Vec::new();
        for number in pins.iter().flat_map(LayerPin::numbers) {
            // Overlayfs refuses a layer twice; the upper one shows everything that the lower one would.
            layers.retain(|known| known != number);
            layers.push(*number);
        }
        let document = plan.document;
        let image = NewImage {
            id: plan.id.to_string(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            download_size: plan.download_size,
            created: document.created,
            platform: Platform { architecture: document.architecture, os: document.os, variant: None },
            config: document.config,
            is_pinned: false,
            layers,
        };
        let (store, names) = (Arc::clone(&self.store), plan.names);
        self.blocking(move || store.add(image, &names)).await?.map_err(PullError::Store)
    }

    /// One layer: from the store if it is there, else from the first source that gives it whole.
    async fn layer(
        &self,
        reference: &str,
        layer: &LayerPlan,
        chain: String,
        sources: &[Arc<Source>],
        progress: &watch::Sender<Progress>,
    ) -> Result<Ready, PullError> {
        let key = key_of(&layer.diff_id);
        // Two images that share a layer unpack it once.
        let _turn = self.turn(&key).await;
        if let Some(pin) = self.held(layer, &chain) {
            return Ok(Ready::Published(pin));
        }
        let _permit = self.permits.acquire().await;
        let (scratch, tree) = self.fetch_layer(reference, layer, sources, progress).await?;
        if !tree.is_self_contained() {
            return Ok(Ready::Pending(Box::new((scratch, tree))));
        }
        let new = NewLayer { scratch, key, size: tree.size };
        self.publish(new).await.map(Ready::Published)
    }

    /// The layer, if it is in the store: as one that lies on nothing in particular, or on just these.
    fn held(&self, layer: &LayerPlan, chain: &str) -> Option<LayerPin> {
        self.store.hold(&key_of(&layer.diff_id)).or_else(|| self.store.hold(chain))
    }

    async fn turn(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut turns = self.being_unpacked.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(turns.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    async fn fetch_layer(
        &self,
        reference: &str,
        layer: &LayerPlan,
        sources: &[Arc<Source>],
        progress: &watch::Sender<Progress>,
    ) -> Result<(crate::store::Scratch, Tree), PullError> {
        let digest = layer.blob.digest.clone();
        let mut attempts = Attempts::default();
        // Sources need the reference only for its repository; the text is parsed back here.
        let repository: Reference = reference.parse()?;
        for source in sources {
            let opened = source.blob(&repository, &layer.blob).await;
            let unpacked = match opened {
                Ok(stream) => self.unpack(stream, layer, progress).await?,
                Err(error) => Err(Failed::Fetch(error)),
            };
            match unpacked {
                Ok(done) => return Ok(done),
                Err(Failed::Fetch(error)) => attempts.0.push(attempt(source, error)),
                Err(Failed::Unpack(UnpackError::Content(error))) => {
                    attempts.0.push(attempt(source, error.into()));
                }
                Err(Failed::Unpack(source)) => {
                    let source = Box::new(source);
                    return Err(PullError::Layer { reference: reference.to_owned(), digest, source });
                }
            }
        }
        Err(PullError::Part { reference: reference.to_owned(), part: "layer", digest, attempts })
    }

    /// Feeds a stream to a thread that unpacks it. The outer error is the store's.
    async fn unpack(
        &self,
        mut stream: BlobStream,
        layer: &LayerPlan,
        progress: &watch::Sender<Progress>,
    ) -> Result<Result<(crate::store::Scratch, Tree), Failed>, PullError> {
        let blob = layer.is_promised.then(|| (layer.blob.digest.clone(), layer.blob.size));
        let promise = Promise { blob, diff_id: layer.diff_id.clone() };
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let store = Arc::clone(&self.store);
        let unpacking = self.blocking(move || {
            let scratch = store.scratch()?;
            let root = scratch.open()?;
            let input = Chunks { receiver, now: Bytes::new() };
            Ok::<_, StoreError>(unpack_layer(input, root, &promise).map(|tree| (scratch, tree)))
        });
        let feeding = async move {
            loop {
                // When unpacking fails, nobody waits for bytes that may never come.
                let chunk = tokio::select! {
                    chunk = stream.next() => chunk?,
                    () = sender.closed() => return None,
                };
                let (chunk, failure) = match chunk {
                    Ok(chunk) => (Ok(chunk), None),
                    Err(error) => (Err(error.to_string()), Some(error)),
                };
                let count = chunk.as_ref().map_or(0, |bytes: &Bytes| bytes.len() as u64);
                progress.send_modify(|now| now.bytes_done += count);
                let is_gone = sender.send(chunk).await.is_err();
                if is_gone || failure.is_some() {
                    return failure;
                }
            }
        };
        let (unpacked, failure) = tokio::join!(unpacking, feeding);
        let unpacked = unpacked?.map_err(PullError::Store)?;
        Ok(match (unpacked, failure) {
            (_, Some(error)) => Err(Failed::Fetch(error)),
            (Err(error), None) => Err(Failed::Unpack(error)),
            (Ok(done), None) => Ok(done),
        })
    }

    async fn complete(
        &self,
        reference: &str,
        digest: &Digest,
        pending: (crate::store::Scratch, Tree),
        key: String,
        below: &[LayerPin],
    ) -> Result<LayerPin, PullError> {
        let layers_dir = self.store.layers_dir();
        let numbers: Vec<_> = below.iter().flat_map(LayerPin::numbers).copied().collect();
        let completed = self.blocking(move || {
            let (scratch, mut tree) = pending;
            let open = |number: &_| crate::store::open_directory(&layers_dir.join(format!("{number}")));
            let lower: Vec<OwnedFd> = numbers.iter().map(open).collect::<Result<_, _>>()?;
            let root = scratch.open()?;
            Ok::<_, StoreError>(complete(root, &mut tree, &lower).map(|()| (scratch, tree)))
        });
        let completed = completed.await?.map_err(PullError::Store)?;
        let (scratch, tree) = completed.map_err(|source| PullError::Layer {
            reference: reference.to_owned(),
            digest: digest.clone(),
            source: Box::new(source),
        })?;
        self.publish(NewLayer { scratch, key, size: tree.size }).await
    }

    /// What an image without layers has, so that its root file system has something to lie on.
    async fn empty_layer(&self) -> Result<LayerPin, PullError> {
        let store = Arc::clone(&self.store);
        let made = self.blocking(move || {
            let new = NewLayer {
                scratch: store.scratch()?,
                key: "empty".to_owned(),
                size: LayerSize { bytes: 4096, inodes: 1, highest_id: 0 },
            };
            store.publish(new)
        });
        made.await?.map_err(PullError::Store)
    }

    async fn publish(&self, new: NewLayer) -> Result<LayerPin, PullError> {
        let store = Arc::clone(&self.store);
        self.blocking(move || store.publish(new)).await?.map_err(PullError::Store)
    }

    /// Runs something that blocks, in a thread that is waited for at the end even if the caller is dropped.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PullError> {
        let token = self.all_tasks.token();
        let (sender, receiver) = oneshot::channel();
        // What nobody waits for any more is dropped in the thread, so that waiting for it is waiting for that too.
        self.tasks.spawn_blocking(move || {
            drop(sender.send(work()));
            drop(token);
        });
        receiver.await.map_err(|_| PullError::Image {
            reference: "image store".to_owned(),
            reason: "a thread of it panicked; its log has the reason".to_owned(),
        })
    }
}

enum Failed {
    Fetch(AttemptError),
    Unpack(UnpackError),
}

fn attempt(source: &Source, error: AttemptError) -> Attempt {
    tracing::debug!(place = %source.place(), %error, "an attempt to fetch failed");
    Attempt { place: source.place(), error }
}

fn pair_layers(manifest: &Manifest, document: &ImageDocument) -> Result<Vec<LayerPlan>, String> {
    let (blobs, diff_ids) = (&manifest.layers, &document.rootfs.diff_ids);
    if blobs.len() != diff_ids.len() {
        return Err(format!(
            "its manifest has {} layers and its configuration {}; build it again",
            blobs.len(),
            diff_ids.len()
        ));
    }
    if let Some(blob) = blobs.iter().find(|blob| blob.media_type.contains("encrypted")) {
        return Err(format!(
            "its layers are encrypted (`{}`), which kakoi does not support",
            blob.media_type
        ));
    }
    let plan = |(blob, diff_id): (&Descriptor, &Digest)| LayerPlan {
        diff_id: diff_id.clone(),
        blob: blob.clone(),
        is_promised: true,
    };
    Ok(blobs.iter().zip(diff_ids).map(plan).collect())
}

/// The unpacking thread's end of the channel.
struct Chunks {
    receiver: mpsc::Receiver<Result<Bytes, String>>,
    now: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(chunk)) => self.now = chunk,
                Some(Err(reason)) => return Err(io::Error::other(InputError(reason))),
                None => return Ok(0),
            }
        }
        let count = self.now.len().min(buffer.len());
        self.now.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}
