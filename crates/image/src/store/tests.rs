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
