//! `componentstatuses`: what the server itself can vouch for, made when it is asked. Nothing is stored, and nothing is
//! said of components that the server does not see.

use api::kind::Kind;
use api::status::Status;
use api::table;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::request::RequestInfo;
use crate::response::{Form, to_bytes};
use crate::server::Server;
use crate::view;

fn components(server: &Server) -> Vec<Value> {
    let condition = if server.cache.store().is_writable() {
        json!({"type": "Healthy", "status": "True", "message": "ok"})
    } else {
        json!({"type": "Healthy", "status": "False", "error": "the store takes no writes"})
    };
    vec![json!({"metadata": {"name": "store"}, "conditions": [condition]})]
}

/// Answers `get` and `list` in the form that the client wants.
pub(crate) fn answer(server: &Server, kind: &Kind, info: &RequestInfo, form: Form) -> Result<Bytes, Status> {
    let mut items = components(server);
    if info.verb == "get" {
        items.retain(|item| crate::meta::text(item, "name") == info.name);
        let item = items.pop().ok_or_else(|| Status::not_found(kind, &info.name))?;
        return Ok(to_bytes(&view::in_form(kind, view::with_type(kind, item), form)));
    }
    let now = jiff::Timestamp::now();
    Ok(to_bytes(&match form {
        Form::Table(include) => {
            let rows = items.iter().map(|item| table::row(kind, item, include, now)).collect();
            table::table(kind, json!({}), rows, true)
        }
        Form::Metadata => {
            let items: Vec<Value> = items.iter().map(table::partial_object_metadata).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items})
        }
        Form::Object => {
            json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": {}, "items": items})
        }
    }))
}
