//! Parses the table's text. It is compiled in and a test reads every line, so what cannot be read is skipped.

use super::{Field, FieldKind, GroupVersionKind, ListKind, Patch, Table, Type, TypeRef};

const TEXT: &str = include_str!("table.txt");

/// Parses the whole table.
pub(super) fn table() -> Table {
    let names: Vec<&'static str> = blocks().map(|(head, _)| head.split(' ').next().unwrap_or(head)).collect();
    let types = blocks().map(|(head, body)| read_type(head, body, &names)).collect();
    Table { types }
}

/// Lines that `table` would skip; for the test.
#[cfg(test)]
pub(super) fn bad_lines() -> Vec<&'static str> {
    let names: Vec<&'static str> = blocks().map(|(head, _)| head.split(' ').next().unwrap_or(head)).collect();
    blocks().flat_map(|(_, body)| body).filter(|line| read_field(line, &names).is_none()).collect()
}

/// Each type's first line with the lines of its fields.
fn blocks() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    let mut lines = TEXT.lines().filter(|line| !line.starts_with('#')).peekable();
    std::iter::from_fn(move || {
        let head = lines.next()?;
        let mut body = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
            body.push(line);
        }
        Some((head, body))
    })
}

fn read_type(head: &'static str, body: Vec<&'static str>, names: &[&str]) -> Type {
    let mut words = head.split(' ');
    let name = words.next().unwrap_or(head);
    let (mut kind, mut is_atomic) = (None, false);
    for word in words {
        match word {
            "atomic" => is_atomic = true,
            _ => kind = read_kind(word),
        }
    }
    let fields: Vec<Field> = body.into_iter().filter_map(|line| read_field(line, names)).collect();
    Type { name, kind, is_atomic, fields: fields.leak() }
}

fn read_kind(text: &'static str) -> Option<GroupVersionKind> {
    let (group, rest) = text.split_once('/')?;
    let (version, kind) = rest.split_once('/')?;
    Some(GroupVersionKind { group, version, kind })
}

fn read_field(line: &'static str, names: &[&str]) -> Option<Field> {
    let (line, default) = match line.split_once(" default=") {
        Some((line, default)) => (line, Some(serde_json::from_str(default).ok()?)),
        None => (line, None),
    };
    let mut words = line.split_ascii_whitespace();
    let mut field = Field {
        json: words.next()?,
        kind: read_shape(words.next()?, names)?,
        required: false,
        list: ListKind::Atomic,
        atomic: false,
        granular: false,
        patch: Patch::default(),
        default,
        pb: &[],
        nullable: false,
        embedded: false,
        go: None,
    };
    for word in words {
        read_fact(word, &mut field)?;
    }
    Some(field)
}

fn read_fact(word: &'static str, field: &mut Field) -> Option<()> {
    match word.split_once('=').unwrap_or((word, "")) {
        ("req", _) => field.required = true,
        ("atomic", _) => field.atomic = true,
        ("granular", _) => field.granular = true,
        ("null", _) => field.nullable = true,
        ("embed", _) => field.embedded = true,
        ("list", value) => field.list = read_list(value)?,
        ("patch", value) => field.patch = read_patch(value)?,
        ("pb", value) => field.pb = read_numbers(value)?,
        ("go", value) => field.go = Some(value),
        _ => return None,
    }
    Some(())
}

fn read_numbers(value: &str) -> Option<&'static [u32]> {
    let numbers: Option<Vec<u32>> = value.split('.').map(|number| number.parse().ok()).collect();
    Some(numbers?.leak())
}

fn read_list(value: &'static str) -> Option<ListKind> {
    Some(match value {
        "atomic" => ListKind::Atomic,
        "set" => ListKind::Set,
        _ => ListKind::Map(value.strip_prefix("map:")?.split(',').collect::<Vec<_>>().leak()),
    })
}

fn read_patch(value: &'static str) -> Option<Patch> {
    let (strategies, key) = match value.split_once(':') {
        Some((strategies, key)) => (strategies, Some(key)),
        None => (value, None),
    };
    let mut patch = Patch { key, ..Patch::default() };
    for strategy in strategies.split('+') {
        match strategy {
            "merge" => patch.merge = true,
            "replace" => patch.replace = true,
            "retainKeys" => patch.retain_keys = true,
            _ => return None,
        }
    }
    Some(patch)
}

fn read_shape(text: &str, names: &[&str]) -> Option<FieldKind> {
    if let Some(item) = text.strip_prefix("[]") {
        return Some(FieldKind::List(Box::leak(Box::new(read_shape(item, names)?))));
    }
    if let Some(item) = text.strip_prefix("{}") {
        return Some(FieldKind::Map(Box::leak(Box::new(read_shape(item, names)?))));
    }
    Some(match text {
        "str" => FieldKind::Str,
        "i32" => FieldKind::Int32,
        "i64" => FieldKind::Int64,
        "f64" => FieldKind::Float,
        "bool" => FieldKind::Bool,
        "bytes" => FieldKind::Bytes,
        "quantity" => FieldKind::Quantity,
        "intstr" => FieldKind::IntOrString,
        "time" => FieldKind::Time,
        "microtime" => FieldKind::MicroTime,
        "raw" => FieldKind::Raw,
        "json" => FieldKind::Json,
        "fields" => FieldKind::Fields,
        "schema-or-array" => FieldKind::SchemaOrArray,
        "schema-or-bool" => FieldKind::SchemaOrBool,
        "schema-or-strings" => FieldKind::SchemaOrStrings,
        name => FieldKind::Ref(TypeRef(u16::try_from(names.binary_search(&name).ok()?).ok()?)),
    })
}
