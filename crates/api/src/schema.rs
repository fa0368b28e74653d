//! The schema table: every field of every served type, with what decoding, defaulting, patching,
//! `OpenAPI` and protobuf need to know. It is text made by `cargo xtask schema`, parsed at first use;
//! a per-kind decoder, defaulter or merge by hand has no place beside it.

use std::sync::LazyLock;

use serde_json::Value;

mod parse;

/// Index of a type in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeRef(u16);

impl TypeRef {
    /// The type itself.
    pub fn get(self) -> &'static Type {
        TABLE.types.get(usize::from(self.0)).unwrap_or(&NOTHING)
    }
}

/// Group, version and kind of a top-level object; the group of `v1` is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupVersionKind {
    /// API group, such as `apps`.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Kind, such as `Deployment`.
    pub kind: &'static str,
}

/// One API type.
#[derive(Debug)]
pub struct Type {
    /// Short name: group directory, version and type, such as `core.v1.PodSpec`.
    pub name: &'static str,
    /// Set when objects of this type stand alone.
    pub kind: Option<GroupVersionKind>,
    /// Whether server-side apply owns objects of this type as a whole, unless a field is `granular`.
    pub is_atomic: bool,
    /// Fields, sorted by JSON name.
    pub fields: &'static [Field],
}

static NOTHING: Type = Type { name: "", kind: None, is_atomic: false, fields: &[] };

impl Type {
    /// The field of this JSON name; names are case-sensitive.
    pub fn field(&self, json: &str) -> Option<&'static Field> {
        let index = self.fields.binary_search_by(|field| field.json.cmp(json)).ok()?;
        self.fields.get(index)
    }

    /// The bare type name, such as `PodSpec`, as error texts print it.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The type as Go prints it, such as `v1.PodSpec`.
    pub fn go_type(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, rest)| rest)
    }

    /// Name of the type's definition in `OpenAPI` documents.
    pub fn definition(&self) -> String {
        let group = self.name.split('.').next().unwrap_or_default();
        match group {
            "meta" => format!("io.k8s.apimachinery.pkg.apis.{}", self.name),
            "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.{}", self.name),
            "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.{}", self.name),
            _ => format!("io.k8s.api.{}", self.name),
        }
    }
}

/// One field of a type.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent word of the table")]
pub struct Field {
    /// Name in JSON.
    pub json: &'static str,
    /// Shape of the value.
    pub kind: FieldKind,
    /// Whether the API reference calls it required. Only such fields keep zero values.
    pub required: bool,
    /// How server-side apply and `OpenAPI` see a list.
    pub list: ListKind,
    /// Whether a map or struct is owned and replaced as a whole.
    pub atomic: bool,
    /// Whether a struct of an atomic type is owned field by field here.
    pub granular: bool,
    /// How a strategic merge patch treats it.
    pub patch: Patch,
    /// Static default.
    pub default: Option<Value>,
    /// Protobuf numbers from the message to the field: more than one where JSON inlines messages.
    pub pb: &'static [u32],
    /// Whether zero (`0`, `""`, `false`) differs from absence.
    pub nullable: bool,
    /// Whether it is a struct that is always present, if only as `{}`.
    pub embedded: bool,
    /// The Go type where it is not the plain one of `kind`, such as `v1.RestartPolicy`.
    pub go: Option<&'static str>,
}

/// Shape of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// An object of another type.
    Ref(TypeRef),
    /// A list.
    List(&'static FieldKind),
    /// An object with free keys.
    Map(&'static FieldKind),
    /// Text.
    Str,
    /// Whole number of 32 bits.
    Int32,
    /// Whole number of 64 bits.
    Int64,
    /// Number.
    Float,
    /// Truth value.
    Bool,
    /// Bytes: base64 in JSON.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// A whole number or text.
    IntOrString,
    /// RFC 3339 time in seconds.
    Time,
    /// RFC 3339 time in microseconds.
    MicroTime,
    /// An embedded object of any type (`RawExtension`).
    Raw,
    /// Any JSON value.
    Json,
    /// Field ownership (`FieldsV1`).
    Fields,
    /// A JSON schema or a list of such.
    SchemaOrArray,
    /// A JSON schema or a truth value.
    SchemaOrBool,
    /// A JSON schema or a list of strings.
    SchemaOrStrings,
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Each value is an item of its own.
    Set,
    /// Items are told apart by these fields.
    Map(&'static [&'static str]),
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patch {
    /// Lists are merged instead of replaced.
    pub merge: bool,
    /// Maps are replaced instead of merged.
    pub replace: bool,
    /// Only the keys that the patch names are kept.
    pub retain_keys: bool,
    /// The field by which items of a merged list are told apart; absent for lists of scalars.
    pub key: Option<&'static str>,
}

#[derive(Debug)]
struct Table {
    /// Sorted by name.
    types: Vec<Type>,
}

static TABLE: LazyLock<Table> = LazyLock::new(parse::table);

/// The type of a short name such as `core.v1.Pod`.
pub fn type_named(name: &str) -> Option<&'static Type> {
    let index = TABLE.types.binary_search_by(|ty| ty.name.cmp(name)).ok()?;
    TABLE.types.get(index)
}

/// All types, sorted by name.
pub fn types() -> &'static [Type] {
    &TABLE.types
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(ty: &str, json: &str) -> &'static Field {
        type_named(ty).unwrap().field(json).unwrap()
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        assert_eq!(parse::bad_lines(), Vec::<&str>::new());
        assert!(types().len() > 500, "{}", types().len());
    }

    #[test]
    fn containers_are_a_keyed_list_in_both_merges() {
        let containers = field("core.v1.PodSpec", "containers");
        assert_eq!(containers.list, ListKind::Map(&["name"]));
        assert!(containers.patch.merge);
        assert_eq!(containers.patch.key, Some("name"));
        assert!(containers.required);
        let FieldKind::List(FieldKind::Ref(item)) = containers.kind else { panic!("{:?}", containers.kind) };
        assert_eq!(item.get().name, "core.v1.Container");
    }

    #[test]
    fn inlined_messages_have_a_path_of_numbers() {
        assert_eq!(field("core.v1.Volume", "configMap").pb, [2, 19]);
        assert_eq!(field("core.v1.Volume", "name").pb, [1]);
    }

    #[test]
    fn volumes_retain_keys() {
        let volumes = field("core.v1.PodSpec", "volumes");
        assert!(volumes.patch.merge && volumes.patch.retain_keys);
    }

    #[test]
    fn kinds_know_their_group() {
        let kind = type_named("apps.v1.Deployment").unwrap().kind.unwrap();
        assert_eq!((kind.group, kind.version, kind.kind), ("apps", "v1", "Deployment"));
        assert_eq!(type_named("core.v1.Pod").unwrap().kind.unwrap().group, "");
    }

    #[test]
    fn definitions_have_the_names_that_clients_know() {
        assert_eq!(type_named("core.v1.Pod").unwrap().definition(), "io.k8s.api.core.v1.Pod");
        assert_eq!(
            type_named("meta.v1.ObjectMeta").unwrap().definition(),
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
        );
    }
}
