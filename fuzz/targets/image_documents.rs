//! What a registry says about an image: manifests, indexes, image configurations and names. What is understood can be
//! written down and is then understood the same.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    image::fuzz::document(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<image::Reference>() {
        let again = reference.to_string().parse::<image::Reference>().ok();
        assert_eq!(again, Some(reference), "a name that is not understood when it is written out");
    }
});
