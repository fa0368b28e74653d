use super::*;

fn diff(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

#[test]
fn chains_tell_what_lies_below() {
    let (a, b) = (diff("a"), diff("b"));
    assert_eq!(chain_key(std::slice::from_ref(&a)), format!("chain:{a}"));
    assert_ne!(chain_key(&[a.clone(), b.clone()]), chain_key(&[b.clone(), a.clone()]));
    assert_eq!(chain_key(&[a.clone(), b.clone()]), format!("chain:{}", diff(&format!("{a} {b}"))));
}

#[test]
fn a_layer_is_there_until_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let new = |key: &str| NewLayer {
        scratch: store.scratch().unwrap(),
        key: key.to_owned(),
        size: LayerSize { bytes: 4096, inodes: 1, highest_id: 0 },
    };
    let pin = store.publish(new("k")).unwrap();
    let same = store.publish(new("k")).unwrap();
    assert_eq!(pin.numbers(), same.numbers());
    assert_eq!(store.usage(), Usage { bytes: 4096, inodes: 1 });
    drop(pin);
    assert_eq!(store.collect().unwrap(), 0);
    drop(same);
    assert_eq!(store.collect().unwrap(), 4096);
    assert!(store.hold("k").is_none());
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn numbers_are_not_given_again_while_the_layer_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let publish = |store: &Arc<Store>, key: &str| {
        let new =
            NewLayer { scratch: store.scratch().unwrap(), key: key.to_owned(), size: LayerSize::default() };
        store.publish(new).unwrap().numbers().to_vec()
    };
    let first = publish(&store, "a");
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_ne!(publish(&store, "b"), first);
    assert_eq!(store.hold("a").unwrap().numbers(), first);
}

/// Publishes an empty layer and adds an image on it.
fn add_image(store: &Arc<Store>, name: &str) -> ImageRecord {
    let new =
        NewLayer { scratch: store.scratch().unwrap(), key: name.to_owned(), size: LayerSize::default() };
    let pin = store.publish(new).unwrap();
    let image = NewImage {
        id: diff(name).to_string(),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        download_size: 0,
        created: String::new(),
        platform: crate::manifest::Platform::of_this_machine(),
        config: crate::config::ImageConfig::default(),
        is_pinned: false,
        layers: pin.numbers().to_vec(),
    };
    let names = Names { tag: Some(format!("docker.io/library/{name}:latest")), digest: None };
    store.add(image, &names).unwrap()
}

/// What the disk has after the machine went down: the records that were of its boot are of another one now.
fn restart_machine(dir: &Path) -> usize {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let records = std::fs::read_dir(dir.join("layer-records")).unwrap().map(|entry| entry.unwrap().path());
    let of_this_boot: Vec<PathBuf> =
        records.filter(|path| path.to_str().unwrap().contains(boot.trim())).collect();
    for path in &of_this_boot {
        let other = path.to_str().unwrap().replace(boot.trim(), "5b0e7a0c-1111-4222-8333-444455556666");
        std::fs::rename(path, other).unwrap();
    }
    of_this_boot.len()
}

#[test]
fn an_image_that_the_disk_did_not_have_is_gone_whole_after_a_restart_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let settled = add_image(&store, "settled");
    store.make_durable().unwrap();
    add_image(&store, "unsettled");
    drop(store);
    assert_eq!(restart_machine(dir.path()), 1);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), std::slice::from_ref(&settled));
    for name in ["layers", "layer-records", "images"] {
        assert_eq!(std::fs::read_dir(dir.path().join(name)).unwrap().count(), 1, "{name}");
    }
    add_image(&store, "unsettled");
}

#[test]
fn an_image_of_a_process_that_was_killed_is_there_and_made_durable_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let image = add_image(&store, "unsettled");
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), std::slice::from_ref(&image));
    store.make_durable().unwrap();
    drop(store);
    assert_eq!(restart_machine(dir.path()), 0);
    assert_eq!(Store::open(dir.path()).unwrap().list(), [image]);
}

#[test]
fn a_layer_that_was_removed_meanwhile_gets_no_record_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    add_image(&store, "removed");
    assert!(store.remove("removed").unwrap());
    store.collect().unwrap();
    store.make_durable().unwrap();
    for name in ["layers", "layer-records", "images", "tmp"] {
        assert_eq!(std::fs::read_dir(dir.path().join(name)).unwrap().count(), 0, "{name}");
    }
}
