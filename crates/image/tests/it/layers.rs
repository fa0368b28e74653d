//! What layers may hold, and what they may not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::support::{Node, Tar};

async fn unpack(layer: Tar) -> (Node, PathBuf) {
    let node = Node::new();
    let record = node.pull_layers("x", &[layer.finish()]).await.unwrap();
    let root = record.layers[0].clone();
    (node, root)
}

/// The error of a pull, after which nothing may be left.
async fn refuse(layer: Tar) -> String {
    let node = Node::new();
    let outside = node.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let error = node.pull_layers("x", &[layer.finish()]).await.unwrap_err();
    assert_eq!(node.leftovers(), (0, 0), "{error}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{error}");
    assert!(node.store.list().is_empty());
    error
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn header(kind: EntryType, path: &str) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).unwrap();
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_uid(1000);
    header.set_gid(50);
    header.set_mtime(1_500_000_000);
    header.set_size(0);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_modes_times_and_kinds_are_kept() {
    let mut device = header(EntryType::Char, "null");
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let mut suid = header(EntryType::Regular, "suid");
    suid.set_mode(0o4755);
    suid.set_size(1);
    let (_node, root) = unpack(
        Tar::new()
            .dir("./", 0o711)
            .raw(header(EntryType::Directory, "dir/"), b"")
            .file("dir/late", "after its directory's time is set")
            .raw(header(EntryType::Fifo, "fifo"), b"")
            .raw(device, b"")
            .raw(suid, b"x")
            .symlink("absolute", "/etc/passwd")
            .hard_link("twin", "suid"),
    )
    .await;
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    let dir = meta("dir");
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777, dir.mtime()), (1000, 50, 0o640, 1_500_000_000));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!((meta("null").file_type().is_char_device(), meta("null").rdev()), (true, 0x103));
    assert_eq!((meta("suid").mode() & 0o7777, meta("suid").nlink()), (0o4755, 2));
    assert_eq!(meta("twin").ino(), meta("suid").ino());
    assert_eq!(std::fs::read_link(root.join("absolute")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o711, 1_700_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_cannot_reach_set_id_files_of_images() {
    let (node, root) = unpack(Tar::new().entry(EntryType::Regular, "su", 0o4755, "", b"x", &[])).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.path().join("images")), 0o700);
    assert_eq!(mode(root.parent().unwrap()), 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_kept_but_none_that_steer_overlayfs() {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pax: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.note", b"a\n\0b"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/secret"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("mtime", b"1600000000.25"),
        ("uid", b"70000"),
    ];
    let (node, root) = unpack(Tar::new().entry(EntryType::Regular, "ping", 0o755, "", b"x", pax)).await;
    let file = root.join("ping");
    assert_eq!(xattr(&file, "security.capability").as_deref(), Some(capability));
    if let Some(note) = xattr(&file, "user.note") {
        assert_eq!(note, b"a\n\0b");
    }
    for name in ["user.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        assert_eq!(xattr(&file, name), None, "{name}");
    }
    let meta = std::fs::metadata(&file).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.uid()), (1_600_000_000, 250_000_000, 70_000));
    assert_eq!(node.store.resolve("x").unwrap().highest_id, 70_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_become_overlayfs_own() {
    let node = Node::new();
    let lower =
        Tar::new().dir("etc/", 0o755).file("etc/a", "a").file("etc/b", "b").dir("var/", 0o755).finish();
    let upper = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/.wh.a", "")
        .dir("var/", 0o700)
        .file("var/.wh..wh..opq", "")
        .file("var/.wh..wh.plnk", "")
        .file("var/new", "n")
        .file(".wh.gone", "")
        .file(".wh.again", "")
        .dir("again/", 0o755)
        .finish();
    let record = node.pull_layers("x", &[lower, upper]).await.unwrap();
    let root = &record.layers[1];
    for name in ["etc/a", "gone"] {
        let meta = std::fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((meta.file_type().is_char_device(), meta.rdev()), (true, 0), "{name}");
    }
    assert_eq!(xattr(&root.join("var"), "trusted.overlay.opaque").as_deref(), Some(b"y".as_slice()));
    assert_eq!(xattr(&root.join("again"), "trusted.overlay.opaque").as_deref(), Some(b"y".as_slice()));
    assert!(!root.join("var/.wh..wh.plnk").exists() && root.join("var/new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_shows_the_image_as_its_layers_mean_it() {
    let node = Node::new();
    let lower = Tar::new()
        .dir("tmp/", 0o1777)
        .dir("gone/", 0o755)
        .file("gone/x", "x")
        .dir("kept/", 0o700)
        .file("kept/old", "old")
        .file("data", "lower")
        .finish();
    let upper = Tar::new()
        .file("tmp/implied", "its directory is in no archive of this layer")
        .file("gone/.wh.x", "")
        .file("kept/new", "new")
        .hard_link("kept/linked", "data")
        .finish();
    let record = node.pull_layers("x", &[lower, upper]).await.unwrap();
    let merged = tempfile::tempdir().unwrap();
    mount_overlay(&record.layers, merged.path());
    let at = |name: &str| merged.path().join(name);
    let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o7777;
    let seen =
        (mode("tmp"), mode("kept"), read(at("kept/old")), read(at("kept/new")), read(at("kept/linked")));
    let gone = at("gone/x").exists();
    rustix::mount::unmount(merged.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(seen, (0o1777, 0o700, "old".to_owned(), "new".to_owned(), "lower".to_owned()));
    assert!(!gone);
}

fn mount_overlay(layers: &[PathBuf], at: &Path) {
    let lower: Vec<_> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
    rustix::mount::mount("overlay", at, "overlay", rustix::mount::MountFlags::RDONLY, options.as_c_str())
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_lies_on_others_is_not_taken_for_one_that_lies_elsewhere() {
    let node = Node::new();
    let upper = Tar::new().file("tmp/x", "x").finish();
    let base = |mode| Tar::new().dir("tmp/", mode).finish();
    let one = node.pull_layers("one", &[base(0o1777), upper.clone()]).await.unwrap();
    let two = node.pull_layers("two", &[base(0o700), upper.clone()]).await.unwrap();
    let three = node.pull_layers("three", &[base(0o1777), upper]).await.unwrap();
    let mode = |record: &image::ImageRecord| {
        std::fs::metadata(record.layers[1].join("tmp")).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!((mode(&one), mode(&two)), (0o1777, 0o700));
    assert_eq!(one.layers, three.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_below_a_lower_layers_symbolic_link_go_where_it_leads() {
    let node = Node::new();
    let base = Tar::new().dir("usr/", 0o755).dir("usr/lib/", 0o711).symlink("lib", "usr/lib").finish();
    let upper = Tar::new().file("lib/modules/x", "x").file("usr/lib/y", "y").finish();
    let record = node.pull_layers("x", &[base, upper]).await.unwrap();
    let root = &record.layers[1];
    assert_eq!(read(root.join("usr/lib/modules/x")), "x");
    root.join("lib").symlink_metadata().unwrap_err();
    assert_eq!(std::fs::metadata(root.join("usr/lib")).unwrap().permissions().mode() & 0o7777, 0o711);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_out_are_refused_and_nothing_is_written() {
    let error = refuse(Tar::new().file("ok", "").file("../outside/x", "")).await;
    assert!(
        error.contains("the entry `../outside/x` is refused: its name leads out of the layer"),
        "{error}"
    );
    let error = refuse(Tar::new().file("a/../../../../outside/x", "")).await;
    assert!(error.contains("its name leads out of the layer"), "{error}");
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        let error = refuse(Tar::new().dir("a/", 0o755).file(name, "")).await;
        assert!(error.contains("is refused: its name is empty"), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_through_symbolic_links_that_lead_out_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    for layer in [
        Tar::new().symlink("evil", target).file("evil/x", ""),
        Tar::new().symlink("evil", "../../../../../../../../../../tmp").file("evil/x", ""),
        Tar::new().symlink("a", "b").symlink("b", target).dir("a/x/", 0o755),
        Tar::new().symlink("evil", target).symlink("evil/x", "y"),
        Tar::new().symlink("evil", target).entry(EntryType::Fifo, "evil/x", 0o644, "", b"", &[]),
        Tar::new().symlink("evil", target).file("evil/.wh.x", ""),
        Tar::new().symlink("evil", target).file("evil/.wh..wh..opq", ""),
        Tar::new().file("f", "").symlink("evil", target).hard_link("evil/x", "f"),
        Tar::new().symlink("loop", "loop").file("loop/x", ""),
    ] {
        let error = refuse(layer).await;
        assert!(error.contains("goes through the symbolic link"), "{error}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_link_is_read_from_the_layers_root() {
    let layer = Tar::new().dir("run/", 0o755).symlink("var-run", "/run").file("var-run/pid", "1");
    let (_node, root) = unpack(layer.symlink("up", "run/../run").file("up/two", "2")).await;
    assert_eq!((read(root.join("run/pid")), read(root.join("run/two"))), ("1".to_owned(), "2".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_links_cannot_reach_out() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let climbs = format!("../../../../../../../..{}", secret.display());
    let error = refuse(Tar::new().hard_link("x", &climbs)).await;
    assert!(error.contains("the hard link `x` to") && error.contains("leads out of the layer"), "{error}");
    let error =
        refuse(Tar::new().symlink("d", outside.path().to_str().unwrap()).hard_link("x", "d/secret")).await;
    assert!(error.contains("the hard link `x` to `d/secret` is refused"), "{error}");
    let error = refuse(Tar::new().hard_link("x", secret.to_str().unwrap())).await;
    assert!(error.contains("does not exist"), "{error}");
    let error = refuse(Tar::new().dir("d/", 0o755).hard_link("x", "d")).await;
    assert!(error.contains("it is a directory"), "{error}");
    assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_link_is_to_the_link_itself() {
    let (_node, root) = unpack(Tar::new().symlink("a", "/etc/passwd").hard_link("b", "a")).await;
    assert!(root.join("b").symlink_metadata().unwrap().file_type().is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_entry_of_a_name_counts() {
    let (_node, root) = unpack(
        Tar::new()
            .file("a", "first")
            .file("a", "second")
            .symlink("d", "/etc")
            .dir("d/", 0o755)
            .file("d/x", "in the layer")
            .dir("e/", 0o755)
            .file("e/deep/er", "")
            .file("e", "a file now"),
    )
    .await;
    assert_eq!(
        (read(root.join("a")), read(root.join("d/x"))),
        ("second".to_owned(), "in the layer".to_owned())
    );
    assert_eq!(read(root.join("e")), "a file now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cannot_be_a_directory_too() {
    let error = refuse(Tar::new().file("a", "").file("a/b", "")).await;
    assert!(error.contains("`a` in its path is not a directory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_bytes_and_lengths_work() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let odd = OsStr::from_bytes(b"caf\xe9 \n");
    let mut builder = tar::Builder::new(Vec::new());
    let mut gnu = tar::Header::new_gnu();
    gnu.set_mode(0o644);
    gnu.set_uid(0);
    gnu.set_gid(0);
    gnu.set_size(1);
    gnu.set_cksum();
    builder.append_data(&mut gnu, &long, b"1".as_slice()).unwrap();
    builder.append_data(&mut gnu.clone(), odd, b"2".as_slice()).unwrap();
    let mut link = gnu.clone();
    link.set_size(0);
    link.set_entry_type(EntryType::Symlink);
    builder.append_link(&mut link, "link", &long).unwrap();
    let node = Node::new();
    let record = node.pull_layers("x", &[builder.into_inner().unwrap()]).await.unwrap();
    let root = &record.layers[0];
    assert_eq!((read(root.join(&long)), read(root.join(odd))), ("1".to_owned(), "2".to_owned()));
    assert_eq!(std::fs::read_link(root.join("link")).unwrap(), Path::new(&long));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_is_said_to_be_damaged() {
    let mut truncated = Tar::new().file("big", &"x".repeat(10_000)).finish();
    truncated.truncate(3000);
    let node = Node::new();
    let error = node.pull_layers("x", &[truncated]).await.unwrap_err();
    assert!(error.contains("the archive ends") && error.contains("before the end of a file"), "{error}");
    let error = node.pull_layers("x", &[vec![b'?'; 1024]]).await.unwrap_err();
    assert!(error.contains("the archive is broken at byte"), "{error}");
    assert_eq!(node.leftovers(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_names_another_layer_is_refused() {
    let node = Node::new();
    let (real, other) = (Tar::new().file("a", "a").finish(), Tar::new().file("b", "b").finish());
    let mut image = crate::support::Image::of(&[real]);
    let config = String::from_utf8(image.blobs[&image.config].clone()).unwrap();
    let actual = config.split("\"diff_ids\":[\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let config = config.replace(&actual, image::Digest::of(&other).as_str()).into_bytes();
    let digest = image::Digest::of(&config);
    let manifest = String::from_utf8(image.manifest.clone()).unwrap();
    image.manifest = manifest.replace(image.config.as_str(), digest.as_str()).into_bytes();
    image.blobs.insert(digest, config);
    image.blobs.insert(image.digest(), image.manifest.clone());
    image.write_layout(&node.mirror().join("x"), "latest");
    let error = node.pull("x").await.unwrap_err();
    assert!(error.contains(&format!("the unpacked layer has the digest {actual}, but")), "{error}");
    assert_eq!(node.leftovers(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_gnu_tar_with_holes_and_attributes_come_out_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    for at in [0_u64, 1 << 20, (7 << 20) + 123] {
        std::os::unix::fs::FileExt::write_at(&sparse, b"island", at).unwrap();
    }
    sparse.set_len(9 << 20).unwrap();
    std::fs::write(tree.join("sub/plain"), "plain").unwrap();
    let node = Node::new();
    for (number, format) in [
        "gnu --sparse",
        "oldgnu --sparse",
        "posix --sparse",
        "posix --sparse --sparse-version=0.0",
        "posix --sparse --sparse-version=0.1",
        "ustar",
        "v7",
    ]
    .iter()
    .enumerate()
    {
        let archive = dir.path().join("a.tar");
        let status = std::process::Command::new("tar")
            .args(["--create", "--directory"])
            .arg(&tree)
            .arg("--file")
            .arg(&archive)
            .args(format!("--format={format}").split(' '))
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success(), "{format}");
        let record =
            node.pull_layers(&format!("x{number}"), &[std::fs::read(&archive).unwrap()]).await.unwrap();
        let root = &record.layers[0];
        assert_eq!(read(root.join("sub/plain")), "plain", "{format}");
        let (ours, theirs) =
            (std::fs::read(root.join("sparse")).unwrap(), std::fs::read(tree.join("sparse")).unwrap());
        assert!(ours == theirs, "{format}: another content");
        let is_sparse = std::fs::metadata(root.join("sparse")).unwrap().blocks() * 512 < 1 << 20;
        assert_eq!(is_sparse, format.contains("--sparse"), "{format}");
    }
}
