//! The images that Pods of the tests run, made once from Debian's packages and kept between runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

/// A directory of OCI layouts with `busybox`, `debian` and `nginx` under `docker.io/library`'s names.
///
/// # Panics
/// When the images can't be made; the text has the script's output.
pub fn image_mirror() -> &'static Path {
    static MIRROR: OnceLock<PathBuf> = OnceLock::new();
    MIRROR.get_or_init(make)
}

/// The project's directory.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the project")
}

fn make() -> PathBuf {
    let target = project().join("target");
    let mirror = target.join("images");
    std::fs::create_dir_all(&target).expect("target/ can be made");
    let lock = File::create(target.join("images.lock")).expect("the lock of the images can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock of the images can be taken");
    let output = Command::new(project().join("hack/images/build.sh")).arg(&mirror).output();
    let output = output.expect("hack/images/build.sh can be run");
    assert!(output.status.success(), "hack/images/build.sh:\n{}", String::from_utf8_lossy(&output.stderr));
    mirror
}
