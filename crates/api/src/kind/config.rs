//! What is a Secret's own: plain texts in `stringData` become bytes in `data`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::FieldReader;
use crate::access::{Access, object_at};

pub(super) const SECRET_SELECTABLE: &[(&str, FieldReader)] = &[("type", |o| o.text("type").to_owned())];

/// `stringData` wins over `data` and is never stored.
pub(super) fn default_secret(secret: &mut Value) {
    let texts = secret.as_object_mut().and_then(|s| s.shift_remove("stringData"));
    if let Some(Value::Object(texts)) = texts
        && !texts.is_empty()
    {
        let data = object_at(secret, "data");
        for (key, text) in texts {
            data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
        }
    }
    if secret.text("type").is_empty()
        && let Some(fields) = secret.as_object_mut()
    {
        fields.insert("type".into(), "Opaque".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_texts_become_bytes() {
        let mut secret = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"b": "hello"}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eA==", "b": "aGVsbG8="}, "type": "Opaque"}));
    }
}
