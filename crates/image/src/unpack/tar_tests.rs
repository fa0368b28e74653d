use std::io::Write;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        all.push((entry, data));
    }
    Ok(all)
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_cksum();
    header
}

#[test]
fn numbers_are_octal_or_binary() {
    assert_eq!(parse_number(b"0000644\0"), Some(0o644));
    assert_eq!(parse_number(b"   644 \0"), Some(0o644));
    assert_eq!(parse_number(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(parse_number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    assert_eq!(parse_number(b"0000699\0"), None);
    assert_eq!(parse_number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
}

#[test]
fn a_file_larger_than_octal_can_say_is_measured_by_pax() {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("size", b"5".as_slice()), ("path", b"long/name")]).unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(1024);
    let mut header = header(0);
    header.set_path("short").unwrap();
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(b"12345");
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    let all = read_all(&archive).unwrap();
    assert_eq!(
        (all[0].0.path.as_slice(), all[0].1.as_slice()),
        (b"long/name".as_slice(), b"12345".as_slice())
    );
}

#[test]
fn too_long_names_are_refused_before_they_are_read() {
    let mut archive = Vec::new();
    let mut header = header(1 << 40);
    header.set_entry_type(EntryType::GNULongName);
    header.set_cksum();
    archive.write_all(header.as_bytes()).unwrap();
    let error = read_all(&archive).unwrap_err().to_string();
    assert!(error.contains("at most 1 MiB is read"), "{error}");
}

#[test]
fn sparse_maps_that_contradict_the_size_are_refused() {
    for map in ["0,10", "10,5,0,5", "0,3", "0,5,3,5", "18446744073709551615,5", "0"] {
        let mut builder = Builder::new(Vec::new());
        let pax = [
            ("GNU.sparse.major", b"0".as_slice()),
            ("GNU.sparse.size", b"8"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        builder.append_pax_extensions(pax).unwrap();
        let mut header = header(5);
        builder.append_data(&mut header, "x", b"12345".as_slice()).unwrap();
        assert!(matches!(read_all(&builder.into_inner().unwrap()), Err(TarError::Malformed { .. })), "{map}");
    }
}

#[test]
fn an_owner_beyond_linux_is_refused() {
    let mut header = header(0);
    header.set_uid(u64::from(u32::MAX));
    header.set_cksum();
    let error = read_all(header.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("uid 4294967295 is beyond what Linux knows"), "{error}");
}

proptest! {
    #[test]
    fn what_tar_writes_is_read_back(
        files in prop::collection::vec(("[a-z/]{1,200}", prop::collection::vec(any::<u8>(), 0..2000)), 0..8)
    ) {
        let mut builder = Builder::new(Vec::new());
        let mut written = Vec::new();
        for (name, data) in files {
            let mut header = header(data.len() as u64);
            if builder.append_data(&mut header, name.trim_matches('/'), data.as_slice()).is_ok() {
                written.push(data);
            }
        }
        let read = read_all(&builder.into_inner().unwrap()).unwrap();
        prop_assert_eq!(read.iter().map(|(_, data)| data.clone()).collect::<Vec<_>>(), written);
        prop_assert!(read.iter().all(|(entry, _)| (entry.uid, entry.gid, entry.mtime.seconds) == (1, 2, 3)));
    }

    #[test]
    fn damage_is_an_error_or_another_entry_but_never_a_panic(
        at in 0_usize..2048, byte in any::<u8>(), cut in 0_usize..4096
    ) {
        let mut builder = Builder::new(Vec::new());
        builder.append_pax_extensions([("GNU.sparse.map", b"0,5".as_slice()), ("GNU.sparse.size", b"9"), ("mtime", b"1.5")]).unwrap();
        builder.append_data(&mut header(5), "x", b"12345".as_slice()).unwrap();
        let mut archive = builder.into_inner().unwrap();
        archive[at] = byte;
        archive.truncate(cut);
        let _ = read_all(&archive);
    }

    #[test]
    fn any_bytes_behind_a_right_checksum_never_panic(
        mut block in prop::collection::vec(any::<u8>(), 512), kind in "[0-7LKxgS]", rest in prop::collection::vec(any::<u8>(), 0..3000)
    ) {
        block[156] = kind.as_bytes()[0];
        block[124..136].copy_from_slice(b"00000001000\0");
        for field in [100..108, 108..116, 116..124, 136..148] {
            block[field].fill(0);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        header.set_cksum();
        let archive = [header.as_bytes().as_slice(), &rest].concat();
        let _ = read_all(&archive);
    }
}
