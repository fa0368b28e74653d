//! Images from directories and files, with no network.

use serde_json::json;

use crate::support::{Image, Node, PLAIN, Tar, ZSTD, config, gzip, reopen, zstd};

fn two_layers() -> Vec<Vec<u8>> {
    let lower = Tar::new().dir("bin/", 0o755).file("bin/sh", "#!").dir("tmp/", 0o1777).finish();
    let upper = Tar::new().file("etc", "x").finish();
    vec![lower, upper]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_layouts_is_a_mirror_of_docker_io() {
    let node = Node::new();
    let record = node.pull_layers("nginx", &two_layers()).await.unwrap();
    assert_eq!(record.repo_tags, ["docker.io/library/nginx:latest"]);
    assert_eq!(record.config.cmd, ["sh"]);
    assert_eq!(record.layers.len(), 2);
    assert!(record.layers.iter().all(|layer| layer.parent() == Some(node.store.layers_dir().as_path())));
    assert_eq!(std::fs::read_to_string(record.layers[0].join("bin/sh")).unwrap(), "#!");
    assert_eq!(std::fs::read_to_string(record.layers[1].join("etc")).unwrap(), "x");
    // Always pulling works too, and changes nothing.
    assert_eq!(node.pull("docker.io/library/nginx:latest").await.unwrap(), record);
    let by_digest = node.pull(&record.repo_digests[0]).await.unwrap();
    assert_eq!(by_digest.id, record.id);
    for name in
        ["nginx", &record.id, &record.id[7..], &record.id[..20], &record.id[7..17], &record.repo_digests[0]]
    {
        assert_eq!(node.store.resolve(name).map(|found| found.id), Some(record.id.clone()), "{name}");
    }
    assert_eq!(node.leftovers(), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_not_there_is_not_found_and_the_others_are_named() {
    let node = Node::new();
    node.pull_layers("nginx", &two_layers()).await.unwrap();
    let error = node.store.pull("nginx:9", None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), image::PullErrorKind::NotFound);
    assert!(error.to_string().contains("has no tag `9`, only: latest"), "{error}");
    let error = node.pull("redis").await.unwrap_err();
    assert!(error.contains("no OCI layout for `docker.io/library/redis`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_layers_and_removal_keeps_what_others_need() {
    let node = Node::new();
    let layers = two_layers();
    let one = node.pull_layers("one", &layers).await.unwrap();
    let third = Tar::new().file("third", "3").finish();
    let two = node.pull_layers("two", &[layers[0].clone(), third]).await.unwrap();
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(node.leftovers(), (0, 3));
    let pin = node.store.pin(&one.layers);
    assert!(node.store.remove("one").await.unwrap());
    assert!(one.layers.iter().all(|layer| layer.is_dir()), "a container still uses them");
    drop(pin);
    assert!(node.store.collect().await.unwrap() > 0);
    assert!(one.layers[0].is_dir() && !one.layers[1].exists());
    assert!(!node.store.remove("one").await.unwrap());
    assert!(node.store.remove(&two.id).await.unwrap());
    assert_eq!((node.leftovers(), node.store.usage().bytes), ((0, 0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_to_the_new_image_and_survives_a_reopening() {
    let node = Node::new();
    let old = node.pull_layers("app", &two_layers()).await.unwrap();
    let new = node.pull_layers("app", &[Tar::new().file("v2", "").finish()]).await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(node.store.resolve("app").unwrap().id, new.id);
    assert!(node.store.resolve(&old.id).unwrap().repo_tags.is_empty());
    let before = node.store.list();
    let Node { dir, store } = node;
    drop(store);
    let again = reopen(dir.path());
    assert_eq!(again.list(), before);
    let second = image::ImageStore::open(config(dir.path())).unwrap_err();
    assert!(second.to_string().contains("in use by another process"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_as_gzip_zstd_or_plain_whatever_their_media_type_says() {
    let node = Node::new();
    let tree = |name: &str| vec![Tar::new().file(name, &"0123456789".repeat(50_000)).finish()];
    let config = json!({});
    let frames = |bytes: &[u8]| {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        [zstd(first), skippable, zstd(second)].concat()
    };
    for (name, media_type, compress) in [
        ("zstd", ZSTD, zstd as fn(&[u8]) -> Vec<u8>),
        ("frames", ZSTD, frames),
        ("plain", PLAIN, <[u8]>::to_vec),
        ("mislabelled", PLAIN, gzip),
        ("members", PLAIN, |bytes| [gzip(&bytes[..700]), gzip(&bytes[700..])].concat()),
    ] {
        Image::with(&tree(name), media_type, compress, &config)
            .write_layout(&node.mirror().join(name), "latest");
        let record = node.pull(name).await.unwrap();
        assert_eq!(std::fs::metadata(record.layers[0].join(name)).unwrap().len(), 500_000, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_twice_is_used_once_and_no_layers_are_an_empty_one() {
    let node = Node::new();
    let (a, b) = (Tar::new().file("a", "a").finish(), Tar::new().file("b", "b").finish());
    let record = node.pull_layers("twice", &[a.clone(), b, a]).await.unwrap();
    let names: Vec<_> = record.layers.iter().map(|layer| layer.join("a").exists()).collect();
    assert_eq!(names, [false, true]);
    let record = node.pull_layers("scratch", &[]).await.unwrap();
    assert_eq!(std::fs::read_dir(&record.layers[0]).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_both_kinds_are_loaded() {
    let node = Node::new();
    let layers = two_layers();
    let image = Image::of(&layers);
    let layout = node.path().join("app");
    image.write_layout(&layout, "v1");
    let loaded = node.store.load(&layout, None).await.unwrap();
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/app:v1"]);
    let archive = node.path().join("oci.tar.gz");
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("", &layout).unwrap();
    std::fs::write(&archive, gzip(&builder.into_inner().unwrap())).unwrap();
    let nameless = node.store.load(&archive, None).await.unwrap_err().to_string();
    assert!(nameless.contains("the image has no name in it"), "{nameless}");
    let loaded = node.store.load(&archive, Some("registry.example/team/app:v2")).await.unwrap();
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/app:v1", "registry.example/team/app:v2"]);

    let saved = json!([{"Config": "config.json", "RepoTags": ["old:1", "old:2"], "Layers": ["0/layer.tar", "1/layer.tar"]}]);
    let carrier = Tar::new()
        .file("config.json", std::str::from_utf8(&image.blobs[&image.config]).unwrap())
        .entry(tar::EntryType::Regular, "x/layer.tar", 0o644, "", &layers[0], &[])
        .symlink("0/layer.tar", "../x/layer.tar")
        .entry(tar::EntryType::Regular, "1/layer.tar", 0o644, "", &layers[1], &[])
        .file("manifest.json", &saved.to_string())
        .finish();
    std::fs::write(node.path().join("docker.tar"), carrier).unwrap();
    let loaded = node.store.load(&node.path().join("docker.tar"), None).await.unwrap();
    assert_eq!(loaded.len(), 1);
    let names = &node.store.resolve("old:2").unwrap().repo_tags;
    assert!(names.contains(&"docker.io/library/old:1".to_owned()), "{names:?}");
    assert_eq!(node.leftovers(), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_image_is_refused() {
    let node = Node::new();
    let load = async |name: &str, content: &[u8]| {
        let path = node.path().join(name);
        std::fs::write(&path, content).unwrap();
        node.store.load(&path, None).await.unwrap_err().to_string()
    };
    assert!(load("empty.tar", &Tar::new().finish()).await.contains("holds no image"));
    assert!(load("text", b"no archive at all").await.contains("ends within a header"));
    let outside = json!([{"Config": "../../../etc/passwd", "RepoTags": ["x"], "Layers": []}]).to_string();
    let error = load("outside.tar", &Tar::new().file("manifest.json", &outside).finish()).await;
    assert!(error.contains("leads out of the archive") || error.contains("No such file"), "{error}");
    let missing = node.store.load(&node.path().join("missing.tar"), None).await.unwrap_err().to_string();
    assert!(missing.contains("No such file"), "{missing}");
    assert_eq!(node.leftovers(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_other_machines_is_refused_with_what_it_has() {
    let node = Node::new();
    let image = Image::of(&two_layers());
    let dir = node.mirror().join("foreign");
    image.write_layout(&dir, "latest");
    let index = json!({"schemaVersion": 2, "mediaType": image::OCI_INDEX, "manifests": [
        {"mediaType": image::OCI_MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
         "platform": {"os": "linux", "architecture": "s390x"}}]});
    let index = serde_json::to_vec(&index).unwrap();
    let digest = image::Digest::of(&index);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &index).unwrap();
    let error = node.pull(&format!("foreign@{digest}")).await.unwrap_err();
    assert!(error.contains("it has linux/s390x"), "{error}");
}
