//! A list as the bytes that go over the wire, made piece by piece as the client takes them: of ten thousand Pods no second
//! copy is ever in memory, as objects, as rows of a Table or as metadata.

use std::sync::Arc;

use api::kind::Kind;
use api::table;
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::Object;
use crate::response::{Form, to_bytes};
use crate::view;

/// How long a piece is at least, but for the last, in bytes.
const PIECE: usize = 64 * 1024;
/// Objects of about so many bytes are read for a piece at most: rows are short, and others wait while they are made.
const READ: usize = 128 * 1024;
const FOOT: &str = "]}\n";

/// The pieces: a head, the items, a foot.
#[derive(Debug)]
pub(crate) struct Items {
    kind: &'static Kind,
    form: Form,
    /// Whether the objects are stored as the list shows them.
    is_stored_form: bool,
    /// What the ages in a Table are counted to.
    now: Timestamp,
    /// What comes before the first item; nothing after the first piece.
    head: Vec<u8>,
    is_first: bool,
    objects: std::vec::IntoIter<Arc<Object>>,
    has_ended: bool,
}

impl Items {
    pub(crate) fn new(kind: &'static Kind, form: Form, metadata: Value, objects: Vec<Arc<Object>>) -> Self {
        Self {
            kind,
            form,
            is_stored_form: view::is_stored_form(kind),
            now: Timestamp::now(),
            head: head(kind, form, metadata),
            is_first: true,
            objects: objects.into_iter(),
            has_ended: false,
        }
    }

    /// How many objects the next piece is made of, and their length.
    fn next_piece(&self) -> (usize, usize) {
        let most = if self.form == Form::Object { PIECE } else { READ };
        let (mut count, mut length) = (0, 0);
        for object in self.objects.as_slice() {
            if length >= most {
                break;
            }
            (count, length) = (count + 1, length + object.json().len() + 1);
        }
        (count, length)
    }

    fn put(&self, object: &Object, piece: &mut BytesMut) {
        match self.form {
            Form::Object if self.is_stored_form => {
                piece.put_u8(b'{');
                piece.put_slice(object.item());
            }
            Form::Object => view::put_item(self.kind, object, piece),
            Form::Table(include) => {
                let row = table::row(self.kind, &view::value(self.kind, object), include, self.now);
                piece.put_slice(&to_bytes(&row));
            }
            Form::Metadata => {
                piece.put_slice(&to_bytes(&table::partial_object_metadata(&object.value())));
            }
        }
    }
}

/// The list without its items and what comes after them.
fn head(kind: &Kind, form: Form, metadata: Value) -> Vec<u8> {
    let empty = match form {
        Form::Object => json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(),
            "metadata": metadata, "items": []}),
        Form::Table(_) => table::table(kind, metadata, Vec::new(), true),
        Form::Metadata => json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata, "items": []}),
    };
    let mut head = Vec::from(to_bytes(&empty));
    head.truncate(head.len().saturating_sub(FOOT.trim_end().len()));
    head
}

impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        let head = std::mem::take(&mut self.head);
        let (count, length) = self.next_piece();
        let mut piece = BytesMut::with_capacity(head.len() + length.min(PIECE * 2) + FOOT.len());
        piece.put_slice(&head);
        for _ in 0..count {
            let Some(object) = self.objects.next() else { break };
            if !std::mem::take(&mut self.is_first) {
                piece.put_u8(b',');
            }
            self.put(&object, &mut piece);
        }
        if self.objects.as_slice().is_empty() {
            piece.put_slice(FOOT.as_bytes());
            self.has_ended = true;
        }
        Some(piece.freeze())
    }
}
