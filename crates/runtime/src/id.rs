//! IDs of sandboxes and containers: 64 hexadecimal digits, as the field has them, so that tools which cut them
//! to 13 digits work.

use uuid::Uuid;

/// A new random ID (244 random bits).
pub(crate) fn new() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Whether `text` can be an ID of ours and so the name of one directory.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_recognised() {
        let (a, b) = (new(), new());
        assert!(a != b && is_id(&a) && is_id(&b));
        assert!(!is_id("../../../../../../../../../../../../../../../../../../../../../../../.."));
        assert!(!is_id(""));
    }
}
