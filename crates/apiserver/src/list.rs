//! Lists: which objects, from which revision, in which pages.

use api::kind::Kind;
use api::selector::{FieldSelector, LabelSelector, Selectable};
use api::status::Status;
use api::validation::{FieldErrors, Path};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cache::{Cache, Object, Snapshot};
use crate::items::Items;
use crate::request::{Query, RequestInfo};
use crate::response::Form;
use crate::view;

/// Which objects of a resource are meant.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    kind: &'static Kind,
    /// `namespace/`, or empty for all.
    prefix: String,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Filter {
    pub(crate) fn parse(kind: &'static Kind, info: &RequestInfo) -> Result<Self, Status> {
        let prefix = if kind.namespaced && !info.namespace.is_empty() {
            format!("{}/", info.namespace)
        } else {
            String::new()
        };
        let labels = LabelSelector::parse(info.query.get("labelSelector"))
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let fields = FieldSelector::parse(kind, info.query.get("fieldSelector"))
            .map_err(|error| Status::bad_request(error.to_string()))?;
        Ok(Self { kind, prefix, labels, fields })
    }

    /// Whether everything below the prefix is meant.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether an object is meant.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        if !object.key().starts_with(&self.prefix) {
            return false;
        }
        let matches = |named: &Selectable| self.labels.matches_object(named) && self.fields.matches(named);
        match () {
            () if self.is_empty() => true,
            () if view::is_stored_form(self.kind) => matches(object.selectable(self.kind)),
            () => matches(&Selectable::of(self.kind, &view::value(self.kind, object))),
        }
    }
}

/// Where the next page begins.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Continue {
    v: String,
    rv: i64,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

impl Continue {
    fn new(revision: u64, prefix: &str, last: &str) -> Self {
        let start = last.strip_prefix(prefix).unwrap_or(last);
        let rv = i64::try_from(revision).unwrap_or(i64::MAX);
        Self { v: CONTINUE_VERSION.to_owned(), rv, start: format!("{start}\0") }
    }

    pub(crate) fn encode(&self) -> String {
        // Two texts and a number always make JSON.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(crate) fn decode(text: &str) -> Result<Self, Status> {
        let bad = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let engine = if text.ends_with('=') { &URL_SAFE } else { &URL_SAFE_NO_PAD };
        let bytes = engine.decode(text).map_err(|error| bad(&error.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        match (token.v.as_str(), token.start.is_empty()) {
            (CONTINUE_VERSION, false) => Ok(token),
            (CONTINUE_VERSION, true) => Err(bad("encoded start key empty (version meta.k8s.io/v1)")),
            (version, _) => {
                Err(bad(&format!("server does not recognize this encoded version \"{version}\"")))
            }
        }
    }
}

/// The parameters of a list.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    limit: usize,
    token: Option<Continue>,
    version: &'a str,
    /// The very state of that version; without a match also what a first page of some version means.
    exact: bool,
}

impl<'a> Options<'a> {
    pub(crate) fn parse(query: &'a Query) -> Result<Self, Status> {
        let version = query.get("resourceVersion");
        let token = query.get("continue");
        check_options(query)?;
        if !token.is_empty() && !matches!(version, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let limit = match query.get("limit") {
            "" => 0,
            text => text.parse::<i64>().map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {}: invalid syntax",
                    api::validation::quote(text)
                ))
            })?,
        };
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or(0),
            token: if token.is_empty() { None } else { Some(Continue::decode(token)?) },
            version,
            exact: match query.get("resourceVersionMatch") {
                "" => limit > 0 && !matches!(version, "" | "0"),
                asked => asked == "Exact",
            },
        })
    }
}

/// Refuses parameters that contradict each other, as `ListOptions` validation does.
fn check_options(query: &Query) -> Result<(), Status> {
    let wanted = query.get("resourceVersionMatch");
    let mut errors = FieldErrors::new();
    let path = Path::new("resourceVersionMatch");
    if !wanted.is_empty() {
        if query.get("resourceVersion").is_empty() {
            errors.forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !query.get("continue").is_empty() {
            errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(wanted, "Exact" | "NotOlderThan") {
            errors.not_supported(&path, wanted, &["Exact", "NotOlderThan", ""]);
        }
        if wanted == "Exact" && query.get("resourceVersion") == "0" {
            errors.forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if query.has("sendInitialEvents") {
        errors.forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors))
    }
}

/// Reads a resource version from a request.
pub(crate) fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        let mut errors = FieldErrors::new();
        let why = format!("strconv.ParseUint: parsing {}: invalid syntax", api::validation::quote(text));
        errors.invalid(&Path::new("resourceVersion"), text, why);
        Status::invalid_kind("", "ResourceVersion", "", &errors)
    })
}

/// The objects of one page.
#[derive(Debug)]
struct Page {
    revision: u64,
    objects: Vec<std::sync::Arc<Object>>,
    token: Option<String>,
    remaining: Option<usize>,
}

/// Lists a resource, in the form that the client wants.
pub(crate) fn list(
    cache: &Cache,
    kind: &'static Kind,
    info: &RequestInfo,
    form: Form,
) -> Result<Items, Status> {
    let filter = Filter::parse(kind, info)?;
    let options = Options::parse(&info.query)?;
    let page = page(cache, kind, &filter, &options)?;
    Ok(Items::new(kind, form, page.metadata(), page.objects))
}

fn page(cache: &Cache, kind: &Kind, filter: &Filter, options: &Options<'_>) -> Result<Page, Status> {
    let table = cache.table(kind).ok_or_else(|| Status::method_not_supported(kind, "list"))?;
    let start = options.token.as_ref().map(|token| format!("{}{}", filter.prefix, token.start));
    let snapshot = match &options.token {
        Some(token) if token.rv > 0 => {
            let revision = u64::try_from(token.rv).unwrap_or_default();
            table.snapshot_at(revision).map_err(|_| {
                let fresh = Continue { rv: -1, start: token.start.clone(), v: CONTINUE_VERSION.to_owned() };
                Status::expired(CONTINUE_EXPIRED).with_continue(&fresh.encode())
            })?
        }
        Some(_) => cache.snapshot(table),
        None => versioned(cache, table, options)?,
    };
    Ok(cut(&snapshot, filter, start.as_deref(), options.limit))
}

/// The state that the parameters `resourceVersion` and `resourceVersionMatch` ask for.
fn versioned(cache: &Cache, table: &crate::cache::Table, options: &Options<'_>) -> Result<Snapshot, Status> {
    let newest = cache.snapshot(table);
    if matches!(options.version, "" | "0") {
        return Ok(newest);
    }
    let wanted = parse_version(options.version)?;
    if wanted > newest.revision {
        return Err(Status::too_large_resource_version(wanted, newest.revision));
    }
    if options.exact {
        return table
            .snapshot_at(wanted)
            .map_err(|_| Status::expired("The resourceVersion for the provided list is too old."));
    }
    Ok(newest)
}

fn cut(snapshot: &Snapshot, filter: &Filter, start: Option<&str>, limit: usize) -> Page {
    let mut matching = snapshot.range(filter.prefix(), start).filter(|object| filter.matches(object));
    let most = if limit == 0 { usize::MAX } else { limit };
    let objects: Vec<_> = matching.by_ref().take(most).cloned().collect();
    let mut page = Page { revision: snapshot.revision, objects, token: None, remaining: None };
    if limit > 0
        && matching.next().is_some()
        && let Some(last) = page.objects.last()
    {
        page.token = Some(Continue::new(snapshot.revision, filter.prefix(), last.key()).encode());
        if filter.is_empty() {
            page.remaining = Some(matching.count() + 1);
        }
    }
    page
}

impl Page {
    fn metadata(&self) -> Value {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".to_owned(), self.revision.to_string().into());
        if let Some(token) = &self.token {
            metadata.insert("continue".to_owned(), token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
        Value::Object(metadata)
    }
}
