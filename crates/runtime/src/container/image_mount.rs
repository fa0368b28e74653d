//! Images as volumes: an image of the node, or a part of one, mounted read-only into a container. Nothing is copied: the
//! layers are stacked as they lie, seen through the Pod's map.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cri::v1::{ContainerConfig, Mount, MountPropagation};
use image::ImageRecord;
use sys::mount::OverlayPlan;

use super::plan::Image;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::record::{ContainerRecord, ImageMount};

/// Refuses what an image can't be.
pub(crate) fn check(mount: &Mount) -> Result<()> {
    let path = &mount.container_path;
    let refuse = |what: &str| Err(Error::Invalid(format!("the mount at {path} is an image {what}")));
    let stays = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !mount.host_path.is_empty() {
        return refuse("and a path of the node; it can be one of them");
    }
    if !mount.readonly {
        return refuse("that is to be writable; images are mounted read-only, so set `readonly`");
    }
    if mount.propagation != i32::from(MountPropagation::PropagationPrivate) {
        return refuse("with mount propagation, which it can't have");
    }
    if !Path::new(&mount.image_sub_path).components().all(stays) {
        return refuse("with a part that is not a relative path without `..`");
    }
    Ok(())
}

/// Finds the images of a request's mounts, which must be on the node.
pub(crate) fn resolve(
    config: &ContainerConfig,
    find: impl Fn(&str) -> Option<ImageRecord>,
) -> Result<Vec<ImageMount>> {
    let with_image = config.mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
    with_image
        .map(|(mount, spec)| {
            let image =
                find(&spec.image).ok_or_else(|| Error::NotFound { what: "image", id: spec.image.clone() })?;
            Ok(ImageMount { path: mount.container_path.clone(), id: image.id, layers: image.layers })
        })
        .collect()
}

/// What is mounted.
pub(crate) fn plan(mount: &Mount, record: &ContainerRecord, is_id_mapped: bool) -> Result<Image> {
    let found = of(record, mount)
        .ok_or_else(|| Error::WrongState(format!("the image at {} is not recorded", mount.container_path)))?;
    Ok(Image {
        destination: mount.container_path.clone(),
        layers: found.layers.clone(),
        part: PathBuf::from(&mount.image_sub_path),
        is_id_mapped,
    })
}

/// The request's mounts, each image with the ID that its pull answered.
pub(crate) fn with_references(record: &ContainerRecord) -> Vec<Mount> {
    let with_reference = |mount: &Mount| {
        let mut mount = mount.clone();
        let id = of(record, &mount).map(|found| found.id.clone());
        if let (Some(image), Some(id)) = (&mut mount.image, id) {
            image.image_ref = id;
        }
        mount
    };
    record.config.mounts.iter().map(with_reference).collect()
}

fn of<'r>(record: &'r ContainerRecord, mount: &Mount) -> Option<&'r ImageMount> {
    record.image_mounts.iter().find(|found| found.path == mount.container_path)
}

/// Refuses parts that their images do not have, while nothing runs yet.
pub(crate) fn check_parts(core: &Core, record: &ContainerRecord) -> Result<()> {
    let mut with_part = record.config.mounts.iter().filter(|mount| !mount.image_sub_path.is_empty());
    with_part.try_for_each(|mount| open(core, &plan(mount, record, false)?, None).map(drop))
}

/// Stacks the layers; a part of them is a clone of its own.
pub(crate) fn open(core: &Core, image: &Image, userns: Option<&OwnedFd>) -> Result<OwnedFd> {
    let layers_dir = core.config.images.layers_dir();
    let plan = OverlayPlan {
        layers_dir: &layers_dir,
        layers: &image.layers,
        upper: None,
        id_mapping: userns.filter(|_| image.is_id_mapped).map(|userns| userns.as_fd()),
    };
    let what = format!("mount the image at {}", image.destination);
    let whole = sys::mount::overlay(&plan).map_err(|error| Error::failed(&what, error))?;
    if image.part.as_os_str().is_empty() {
        return Ok(whole);
    }
    sys::mount::clone_part(&whole, &image.part, &layers_dir).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            return Error::Invalid(format!("{what}: the image has no {} in it", image.part.display()));
        }
        Error::failed(format!("{what}: take {} of it", image.part.display()), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::ImageSpec;

    fn mount() -> Mount {
        Mount {
            container_path: "/volume".into(),
            readonly: true,
            image: Some(ImageSpec { image: "img".into(), ..ImageSpec::default() }),
            ..Mount::default()
        }
    }

    #[test]
    fn an_image_is_mounted_read_only_without_a_host_path_and_its_part_stays_inside() {
        check(&mount()).unwrap();
        check(&Mount { image_sub_path: "a/./b".into(), ..mount() }).unwrap();
        let refused = [
            (Mount { readonly: false, ..mount() }, "readonly"),
            (Mount { host_path: "/srv".into(), ..mount() }, "path of the node"),
            (Mount { propagation: 1, ..mount() }, "propagation"),
            (Mount { image_sub_path: "../x".into(), ..mount() }, "without `..`"),
            (Mount { image_sub_path: "/etc".into(), ..mount() }, "relative"),
        ];
        for (mount, word) in refused {
            let text = check(&mount).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains("/volume"), "{text}");
        }
    }

    #[test]
    fn an_image_that_is_not_on_the_node_is_named() {
        let config = ContainerConfig { mounts: vec![mount()], ..ContainerConfig::default() };
        assert!(resolve(&config, |_| None).unwrap_err().to_string().contains("img"));
    }
}
