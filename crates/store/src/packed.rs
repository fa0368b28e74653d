//! How a value lies in the file: after one byte that says how, as it is or as an LZ4 block. What Kubernetes stores says
//! the same names again and again, so most values become a fraction; a start and a check after a crash read less, and a
//! write waits for less.

use std::borrow::Cow;

use bytes::Bytes;
use redb::{Error, StorageError};

/// The value follows as it is.
const PLAIN: u8 = 0;
/// Its length in four bytes follows, the lowest first, and an LZ4 block.
const LZ4: u8 = 1;
/// Shorter values are left as they are: they have nothing to repeat.
const LEAST: usize = 256;
/// An LZ4 block makes at most so many bytes of each of its own.
const MOST_OF_A_BYTE: usize = 255;
const LENGTH: usize = size_of::<u32>();

/// A value as the file has it.
pub(crate) fn pack(value: &[u8]) -> Vec<u8> {
    if let Ok(length) = u32::try_from(value.len())
        && value.len() >= LEAST
    {
        let block = lz4_flex::block::compress(value);
        if block.len() + LENGTH < value.len() {
            let mut packed = Vec::with_capacity(1 + LENGTH + block.len());
            packed.push(LZ4);
            packed.extend_from_slice(&length.to_le_bytes());
            packed.extend_from_slice(&block);
            return packed;
        }
    }
    let mut packed = Vec::with_capacity(1 + value.len());
    packed.push(PLAIN);
    packed.extend_from_slice(value);
    packed
}

/// The value that the file has as `packed`.
///
/// # Errors
/// [`StorageError::Corrupted`] when no value is packed like that.
pub(crate) fn unpack(packed: &[u8]) -> Result<Bytes, Error> {
    match parts(packed)? {
        (0, plain) => Ok(Bytes::copy_from_slice(plain)),
        (length, block) => {
            let mut value = vec![0; length];
            fill(block, &mut value)?;
            Ok(value.into())
        }
    }
}

/// Appends the value that the file has as `packed`.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_to(packed: &[u8], values: &mut Vec<u8>) -> Result<(), Error> {
    match parts(packed)? {
        (0, plain) => {
            values.extend_from_slice(plain);
            Ok(())
        }
        (length, block) => {
            let from = values.len();
            values.resize(from + length, 0);
            fill(block, values.get_mut(from..).unwrap_or_default())
        }
    }
}

/// The length of the value and its block, or 0 and the value itself.
fn parts(packed: &[u8]) -> Result<(usize, &[u8]), Error> {
    let (how, rest) = packed.split_first().ok_or_else(|| corrupted("it is empty"))?;
    match *how {
        PLAIN => Ok((0, rest)),
        LZ4 => {
            let (length, block) = rest.split_first_chunk().ok_or_else(|| corrupted("it has no length"))?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            if length == 0 || length / MOST_OF_A_BYTE > block.len() {
                return Err(corrupted("its length is not its block's"));
            }
            Ok((length, block))
        }
        how => Err(corrupted(format!("nobody packs a value in the way {how}"))),
    }
}

fn fill(block: &[u8], value: &mut [u8]) -> Result<(), Error> {
    match lz4_flex::block::decompress_into(block, value) {
        Ok(length) if length == value.len() => Ok(()),
        Ok(length) => Err(corrupted(format!("{length} bytes of {}", value.len()))),
        Err(error) => Err(corrupted(error.to_string())),
    }
}

fn corrupted(why: impl Into<Cow<'static, str>>) -> Error {
    StorageError::Corrupted(format!("a value can't be unpacked: {}", why.into())).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_as_it_was(
            value in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..2000),
                proptest::collection::vec(0..3_u8, 0..20_000),
            ],
            before in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let packed = pack(&value);
            prop_assert!(packed.len() <= value.len() + 1);
            prop_assert_eq!(&unpack(&packed).unwrap()[..], &value[..]);
            let mut values = before.clone();
            unpack_to(&packed, &mut values).unwrap();
            prop_assert_eq!(values, [before, value].concat());
        }

        #[test]
        fn what_nobody_packed_is_an_error_and_no_panic(packed in proptest::collection::vec(any::<u8>(), 0..600)) {
            // Most are none; what is one by chance is a value.
            unpack(&packed).ok();
            let lz4 = [&[LZ4][..], &packed].concat();
            unpack(&lz4).ok();
            unpack_to(&lz4, &mut Vec::new()).ok();
        }
    }

    #[test]
    fn a_pod_takes_a_fraction_of_its_size() {
        let settings: Vec<String> =
            (0..40).map(|n| format!(r#"{{"name":"SETTING_{n}","value":"{}"}}"#, n * 7919)).collect();
        let pod = format!(r#"{{"kind":"Pod","spec":{{"containers":[{{"env":[{}]}}]}}}}"#, settings.join(","));
        assert!(pack(pod.as_bytes()).len() * 2 < pod.len());
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        let packed = pack(&[7; 1000]);
        let cut = &packed[..packed.len() - 1];
        for (packed, why) in [
            (&[][..], "it is empty"),
            (&[9, 1, 2], "in the way 9"),
            (&[LZ4, 1, 0], "no length"),
            (&[LZ4, 0, 0, 0, 0], "not its block's"),
            (&[LZ4, 255, 255, 255, 255, 0], "not its block's"),
            (cut, "can't be unpacked"),
        ] {
            let error = unpack(packed).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
