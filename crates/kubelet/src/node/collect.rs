//! Takes images away that no container uses, the longest unused first, when the disk fills up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cri::v1;
use tokio::time::Instant;

use super::machine::read;
use crate::shared::Shared;

/// Use of the disk in percent above which images go, until it is below the other (upstream's defaults).
const HIGH: u64 = 85;
const LOW: u64 = 80;
/// An image is kept at least so long after it came.
const LEAST_AGE: Duration = Duration::from_mins(2);

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
struct Known {
    first_seen: Instant,
    last_used: Instant,
}

/// Remembers when images came and were used.
#[derive(Debug, Default)]
pub(super) struct ImageCollector {
    known: BTreeMap<String, Known>,
}

/// An image that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    id: String,
    size: u64,
}

impl ImageCollector {
    /// Takes images away when the disk is too full.
    pub(super) async fn look(&mut self, shared: &Shared) {
        let Some(disk) = read(&shared.places.pods()).disk.filter(|disk| disk.capacity > 0) else { return };
        let used = disk.capacity.saturating_sub(disk.available);
        if used.saturating_mul(100) / disk.capacity < HIGH {
            return;
        }
        let wanted = used.saturating_sub(disk.capacity / 100 * LOW);
        self.free(shared, wanted).await;
    }

    /// Takes all unused images away.
    pub(super) async fn free_all(&mut self, shared: &Shared) {
        self.free(shared, u64::MAX).await;
    }

    async fn free(&mut self, shared: &Shared, wanted: u64) {
        let images = shared.cri.list_images(v1::ListImagesRequest::default()).await;
        let containers = shared.cri.list_containers(v1::ListContainersRequest::default()).await;
        let (Ok(images), Ok(containers)) = (images, containers) else { return };
        let used: BTreeSet<String> = containers
            .containers
            .iter()
            .flat_map(|container| {
                let spec = container.image.as_ref().map(|image| image.image.clone());
                [Some(container.image_id.clone()), Some(container.image_ref.clone()), spec]
            })
            .flatten()
            .collect();
        let mut freed = 0_u64;
        for candidate in self.plan(&images.images, &used, Instant::now()) {
            if freed >= wanted {
                return;
            }
            let image = v1::ImageSpec { image: candidate.id.clone(), ..Default::default() };
            match shared.cri.remove_image(v1::RemoveImageRequest { image: Some(image) }).await {
                Ok(_) => {
                    tracing::info!(image = candidate.id, bytes = candidate.size, "unused image removed");
                    freed = freed.saturating_add(candidate.size);
                }
                Err(error) => tracing::warn!(image = candidate.id, %error, "unused image not removed"),
            }
        }
    }

    /// The images that may go, the longest unused first.
    fn plan(&mut self, images: &[v1::Image], used: &BTreeSet<String>, now: Instant) -> Vec<Candidate> {
        self.known.retain(|id, _| images.iter().any(|image| image.id == *id));
        let mut unused = Vec::new();
        for image in images {
            let known =
                self.known.entry(image.id.clone()).or_insert(Known { first_seen: now, last_used: now });
            let names = image.repo_digests.iter().chain(&image.repo_tags).chain([&image.id]);
            let is_used = names.into_iter().any(|name| used.contains(name));
            if is_used {
                known.last_used = now;
            }
            if !is_used && !image.pinned && now.duration_since(known.first_seen) >= LEAST_AGE {
                unused.push((*known, Candidate { id: image.id.clone(), size: image.size }));
            }
        }
        unused.sort_by_key(|(known, candidate)| (known.last_used, known.first_seen, candidate.id.clone()));
        unused.into_iter().map(|(_, candidate)| candidate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tag: &str, pinned: bool) -> v1::Image {
        v1::Image { id: id.into(), repo_tags: vec![tag.into()], size: 10, pinned, ..Default::default() }
    }

    #[test]
    fn the_longest_unused_image_goes_first_and_used_ones_never() {
        let mut collector = ImageCollector::default();
        let images =
            [image("1", "a", false), image("2", "b", false), image("3", "c", false), image("4", "d", true)];
        let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let start = Instant::now();
        assert_eq!(collector.plan(&images, &used(&[]), start), [], "they have just come");
        let later = start + LEAST_AGE;
        collector.plan(&images, &used(&["a", "3"]), later);
        let ids: Vec<String> = collector
            .plan(&images, &used(&["3"]), later + LEAST_AGE)
            .into_iter()
            .map(|candidate| candidate.id)
            .collect();
        assert_eq!(ids, ["2", "1"]);
    }
}
