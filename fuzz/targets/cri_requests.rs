//! CRI requests: decoding and everything that is worked out from them before a file or a namespace exists.
//!
//! The first byte names the request, the rest is protobuf, or JSON with the field names of the `.proto` files (which
//! is how most seeds are written; it is carried to protobuf and back).

#![no_main]

use cri::v1::{CreateContainerRequest, PullImageRequest, RunPodSandboxRequest};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => read::<RunPodSandboxRequest>(rest).into_iter().for_each(runtime::fuzz::sandbox),
        1 => read::<CreateContainerRequest>(rest).into_iter().for_each(runtime::fuzz::container),
        _ => read::<PullImageRequest>(rest).into_iter().for_each(runtime::fuzz::pull),
    }
});

fn read<M>(bytes: &[u8]) -> Option<M>
where
    M: Message + Default + PartialEq + std::fmt::Debug + DeserializeOwned,
{
    if bytes.first() != Some(&b'{') {
        return M::decode(bytes).ok();
    }
    let message: M = serde_json::from_slice(bytes).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&message), "a message that is another one after the wire");
    Some(message)
}
