use super::*;

fn unpack(bytes: &[u8], promise: &Promise) -> Result<Tree, UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let root = crate::store::open_directory(dir.path()).unwrap();
    unpack_layer(bytes, root, promise)
}

fn archive() -> Vec<u8> {
    // Two blocks of zeros: an archive without entries, which needs no rights to unpack.
    vec![0; 1024]
}

#[test]
fn a_layer_that_is_what_it_should_be_is_taken() {
    let bytes = archive();
    let promise = Promise { blob: Some((Digest::of(&bytes), 1024)), diff_id: Digest::of(&bytes) };
    assert!(unpack(&bytes, &promise).unwrap().is_self_contained());
}

#[test]
fn each_broken_promise_has_its_own_words() {
    let bytes = archive();
    let (good, other) = (Digest::of(&bytes), Digest::of(b"other"));
    let error = |blob, diff_id: &Digest, bytes: &[u8]| {
        unpack(bytes, &Promise { blob, diff_id: diff_id.clone() }).unwrap_err().to_string()
    };
    assert!(error(Some((other.clone(), 1024)), &good, &bytes).contains("wrong digest: expected"));
    assert!(error(Some((good.clone(), 1000)), &good, &bytes).contains("wrong size: expected 1000 bytes"));
    assert!(error(Some((good.clone(), 2000)), &good, &bytes).contains("expected 2000 bytes, got 1024"));
    assert!(error(Some((good, 1024)), &other, &bytes).contains("the image's configuration says"));
}

#[test]
fn damage_on_the_way_is_told_from_a_bad_image() {
    let bytes = vec![b'?'; 600];
    let promised = |digest| Promise { blob: Some((digest, 600)), diff_id: Digest::of(b"") };
    let on_the_way = unpack(&bytes, &promised(Digest::of(b"what was pushed"))).unwrap_err();
    assert!(matches!(on_the_way, UnpackError::Content(_)), "{on_the_way}");
    let as_pushed = unpack(&bytes, &promised(Digest::of(&bytes))).unwrap_err();
    assert!(matches!(as_pushed, UnpackError::Archive(_)), "{as_pushed}");
}

#[test]
fn damaged_compression_is_damage() {
    for magic in
        [b"\x1f\x8b\x08garbage".as_slice(), b"\x28\xb5\x2f\xfdgarbage", b"\x50\x2a\x4d\x18\xff\xff\xff\xff"]
    {
        let promise = Promise { blob: None, diff_id: Digest::of(b"") };
        let error = unpack(magic, &promise).unwrap_err();
        assert!(matches!(error, UnpackError::Archive(_) | UnpackError::DiffId { .. }), "{error}");
    }
}
