//! A list of whole objects as the bytes that go over the wire, made piece by piece as the client takes them: of ten
//! thousand Pods no second copy is ever in memory.

use std::sync::Arc;

use api::kind::Kind;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::cache::Object;
use crate::view;

/// How long a piece is at least, but for the last, in bytes.
const PIECE: usize = 64 * 1024;
const FOOT: &str = "]}\n";

/// The pieces: a head, the objects without kind and version, a foot.
#[derive(Debug)]
pub(crate) struct Items {
    kind: &'static Kind,
    /// What comes before the first object; nothing after the first piece.
    head: String,
    is_first: bool,
    objects: std::vec::IntoIter<Arc<Object>>,
    has_ended: bool,
}

impl Items {
    pub(crate) fn new(kind: &'static Kind, metadata: &Value, objects: Vec<Arc<Object>>) -> Self {
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            kind.list_kind(),
            kind.api_version(),
        );
        Self { kind, head, is_first: true, objects: objects.into_iter(), has_ended: false }
    }

    /// The length of the next piece.
    fn room(&self) -> usize {
        let mut room = self.head.len() + FOOT.len();
        for object in self.objects.as_slice() {
            if room >= PIECE {
                break;
            }
            room += object.json().len();
        }
        room
    }
}

impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        let mut piece = BytesMut::with_capacity(self.room());
        piece.put_slice(std::mem::take(&mut self.head).as_bytes());
        while piece.len() < PIECE {
            let Some(object) = self.objects.next() else {
                piece.put_slice(FOOT.as_bytes());
                self.has_ended = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                piece.put_u8(b',');
            }
            view::put_item(self.kind, &object, &mut piece);
        }
        Some(piece.freeze())
    }
}
