//! YAML text to `Node` by the rules of Kubernetes' own reader: the first document only, the implicit types of
//! YAML 1.1 (`yes` is a truth value, `0644` is octal), members sorted by name, repeated keys named by line.

use std::collections::HashMap;

use base64::Engine as _;
use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};

use super::json::MAX_DEPTH;
use super::node::{Node, go_float};

/// Aliases may multiply a document up to so many nodes.
const MAX_NODES: usize = 1_000_000;

/// A document with the repeated keys that strict reading complains about.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Node,
    /// One message per repeated key: `line 4: key "a" already set in map`.
    pub(super) repeated: Vec<String>,
}

/// Parses the first document of the text; the error begins with `yaml:`.
pub(super) fn parse(text: &[u8]) -> Result<Document, String> {
    let text = std::str::from_utf8(text).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    let mut reader = Reader::new(text);
    let root = loop {
        match reader.next()? {
            None | Some((Event::StreamEnd, _)) => break Node::Null,
            Some((Event::StreamStart | Event::DocumentStart(..), _)) => {}
            Some(event) => break reader.node(event)?,
        }
    };
    Ok(Document { root, repeated: reader.repeated })
}

/// Parses every document of the text; empty ones are left out.
pub(super) fn parse_all(text: &[u8]) -> Result<Vec<Node>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    let mut reader = Reader::new(text);
    let mut documents = Vec::new();
    loop {
        match reader.next()? {
            None | Some((Event::StreamEnd, _)) => return Ok(documents),
            Some((Event::DocumentStart(..), _)) => reader.anchors.clear(),
            Some((Event::StreamStart | Event::DocumentEnd, _)) => {}
            Some(event) => documents.push(reader.node(event)?),
        }
    }
}

type Spanned<'a> = (Event<'a>, Span);

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    repeated: Vec<String>,
    nodes: usize,
    depth: usize,
}

fn at_line(span: &Span, message: &str) -> String {
    format!("yaml: line {}: {message}", span.start.line())
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        let parser = Parser::new_from_str_with_options(text, options);
        Self { parser, anchors: HashMap::new(), repeated: Vec::new(), nodes: 0, depth: 0 }
    }

    fn next(&mut self) -> Result<Option<Spanned<'a>>, String> {
        self.parser
            .next_event()
            .transpose()
            .map_err(|error| format!("yaml: line {}: {}", error.marker().line(), error.info()))
    }

    fn must_next(&mut self) -> Result<Spanned<'a>, String> {
        self.next()?.ok_or_else(|| "yaml: unexpected end of the document".to_owned())
    }

    fn node(&mut self, (event, span): Spanned<'a>) -> Result<Node, String> {
        self.count(1, &span)?;
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref(), &span)?),
            Event::SequenceStart(_, anchor, _) => (anchor, self.nested(&span, Self::sequence)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.nested(&span, Self::mapping)?),
            Event::Alias(id) => return self.alias(id, &span),
            _ => return Err(at_line(&span, "did not find expected node content")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, span: &Span) -> Result<(), String> {
        self.nodes += more;
        if self.nodes > MAX_NODES {
            Err(at_line(span, "document contains excessive aliasing"))
        } else {
            Ok(())
        }
    }

    fn alias(&mut self, id: usize, span: &Span) -> Result<Node, String> {
        let node =
            self.anchors.get(&id).cloned().ok_or_else(|| at_line(span, "anchor value contains itself"))?;
        let (size, depth) = measure(&node);
        if self.depth + depth > MAX_DEPTH {
            return Err("yaml: exceeded max depth".to_owned());
        }
        self.count(size, span)?;
        Ok(node)
    }

    fn nested(&mut self, span: &Span, read: fn(&mut Self) -> Result<Node, String>) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(at_line(span, "exceeded max depth"));
        }
        let node = read(self)?;
        self.depth -= 1;
        Ok(node)
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut items = Vec::new();
        loop {
            match self.must_next()? {
                (Event::SequenceEnd, _) => return Ok(Node::Array(items)),
                event => items.push(self.node(event)?),
            }
        }
    }

    fn mapping(&mut self) -> Result<Node, String> {
        let mut members: Vec<(String, Node)> = Vec::new();
        let mut inherited: Vec<(String, Node)> = Vec::new();
        loop {
            let (event, span) = self.must_next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = if merges { String::new() } else { key(self.node((event, span))?, &span)? };
            let (event, value_span) = self.must_next()?;
            let value = self.node((event, value_span))?;
            if merges {
                merge_into(&mut inherited, value, &value_span)?;
            } else {
                self.insert(&mut members, key, value, &value_span);
            }
        }
        for (key, value) in inherited {
            if !members.iter().any(|(existing, _)| *existing == key) {
                members.push((key, value));
            }
        }
        members.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Node::Object(members))
    }

    fn insert(&mut self, members: &mut Vec<(String, Node)>, key: String, value: Node, span: &Span) {
        match members.iter_mut().find(|(existing, _)| *existing == key) {
            Some(member) => {
                self.repeated.push(format!("line {}: key {key:?} already set in map", span.start.line()));
                member.1 = value;
            }
            None => members.push((key, value)),
        }
    }
}

/// Nodes and nesting below and with this node.
fn measure(node: &Node) -> (usize, usize) {
    let children: Vec<(usize, usize)> = match node {
        Node::Array(items) => items.iter().map(measure).collect(),
        Node::Object(members) => members.iter().map(|(_, value)| measure(value)).collect(),
        _ => return (1, 0),
    };
    let size = children.iter().map(|child| child.0).sum::<usize>();
    let depth = children.iter().map(|child| child.1).max().unwrap_or_default();
    (size + 1, depth + 1)
}

/// `<<: *base`: members that the mapping itself does not set.
fn merge_into(merged: &mut Vec<(String, Node)>, value: Node, span: &Span) -> Result<(), String> {
    match value {
        Node::Object(members) => {
            for (key, value) in members {
                if !merged.iter().any(|(existing, _)| *existing == key) {
                    merged.push((key, value));
                }
            }
            Ok(())
        }
        Node::Array(items) => items.into_iter().try_for_each(|item| merge_into(merged, item, span)),
        _ => Err(at_line(span, "map merge requires map or sequence of maps as the value")),
    }
}

fn key(node: Node, span: &Span) -> Result<String, String> {
    match node {
        Node::String(text) | Node::Number(text) => Ok(text),
        Node::Bool(value) => Ok(value.to_string()),
        other => Err(at_line(span, &format!("unsupported map key of type {}", other.go_kind()))),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: &Span) -> Result<Node, String> {
    match tag.and_then(Tag::core_suffix) {
        Some("str") => Ok(Node::String(text.to_owned())),
        Some("binary") => base64::engine::general_purpose::STANDARD
            .decode(text.split_ascii_whitespace().collect::<String>())
            .map(|bytes| Node::String(String::from_utf8_lossy(&bytes).into_owned()))
            .map_err(|_| at_line(span, "!!binary value contains invalid base64 data")),
        Some(wanted @ ("int" | "float" | "bool" | "null")) => {
            let node = implicit(text, span)?;
            let fits = matches!(
                (wanted, &node),
                ("int" | "float", Node::Number(_)) | ("bool", Node::Bool(_)) | ("null", Node::Null)
            );
            if fits {
                Ok(node)
            } else {
                Err(at_line(span, &format!("cannot decode !!str `{text}` as a !!{wanted}")))
            }
        }
        _ if style == ScalarStyle::Plain => implicit(text, span),
        _ => Ok(Node::String(text.to_owned())),
    }
}

/// The implicit types of a plain scalar.
fn implicit(text: &str, span: &Span) -> Result<Node, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Node::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Node::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Node::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Err(at_line(span, &format!("{text} cannot be written as JSON"))),
        _ => number(text).map_or_else(|| Node::String(text.to_owned()), Node::Number),
    })
}

/// The JSON literal of a plain scalar that is a number.
fn number(text: &str) -> Option<String> {
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    whole(&plain).or_else(|| fraction(&plain))
}

fn whole(plain: &str) -> Option<String> {
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(plain)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', rest @ ..] => (16, rest),
        [b'0', b'b', rest @ ..] => (2, rest),
        [b'0', b'o', rest @ ..] => (8, rest),
        [b'0', rest @ ..] if !rest.is_empty() => (8, rest),
        all => (10, all),
    };
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_alphanumeric()))?;
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if negative { -value } else { value };
    (value >= i128::from(i64::MIN)).then(|| value.to_string())
}

fn fraction(plain: &str) -> Option<String> {
    let digits = plain.trim_start_matches(['+', '-']);
    let signs = plain.len() - digits.len();
    if signs > 1
        || !digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return None;
    }
    let value: f64 = plain.parse().ok()?;
    value.is_finite().then(|| go_float(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(text: &str) -> Value {
        parse(text.as_bytes()).unwrap().root.into()
    }

    #[test]
    fn implicit_types_are_those_of_yaml_1_1() {
        let text = "a: yes\nb: 'yes'\nc: 0644\nd: 1.0\ne: 1e3\nf: 2026-11-23\ng: ~\nh: 0x1F\ni: off\nj: 1_000\nk: 1.5\nl: -3\nm: 12:30\nn1: --x\nzz: +5";
        assert_eq!(
            read(text),
            json!({"a": true, "b": "yes", "c": 420, "d": 1, "e": 1000, "f": "2026-11-23", "g": null, "h": 31,
                   "i": false, "j": 1000, "k": 1.5, "l": -3, "m": "12:30", "n1": "--x", "zz": 5})
        );
    }

    #[test]
    fn keys_become_text() {
        assert_eq!(read("1: a\ntrue: b\n"), json!({"1": "a", "true": "b"}));
    }

    #[test]
    fn only_the_first_document_counts() {
        assert_eq!(read("---\na: 1\n---\nb: 2\n"), json!({"a": 1}));
        assert_eq!(read(""), Value::Null);
        assert_eq!(read("# nothing\n"), Value::Null);
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let text = "base: &b {x: 1, y1: 2}\nuse:\n  <<: *b\n  x: 3\nlist: [*b]\n";
        let base = json!({"x": 1, "y1": 2});
        assert_eq!(read(text), json!({"base": base, "list": [base], "use": {"x": 3, "y1": 2}}));
    }

    #[test]
    fn repeated_keys_are_named_with_their_line() {
        let document = parse(b"a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(document.repeated, ["line 3: key \"a\" already set in map"]);
        assert_eq!(Value::from(document.root), json!({"a": 3, "b": 2}));
    }

    #[test]
    fn block_text_and_tags_are_strings() {
        assert_eq!(
            read("a: |\n  x\n  y\nb: !!str 5\nc: !!int 5\n"),
            json!({"a": "x\ny\n", "b": "5", "c": 5})
        );
    }

    #[test]
    fn a_broken_document_names_its_line() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n   labels: b\n";
        let message = parse(text.as_bytes()).unwrap_err();
        assert!(message.starts_with("yaml: line 5: "), "{message}");
    }

    #[test]
    fn a_billion_laughs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            text = format!("{text}a{level}: &a{level} [{}]\n", vec![before; 9].join(", "));
        }
        let message = parse(text.as_bytes()).unwrap_err();
        assert!(message.contains("excessive aliasing"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends_in_a_document_or_a_message(text in "[ a-c0-9:\\-\\[\\]{}&*!|>'\"\n#.,~<%@`\t]{0,60}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn any_bytes_end_in_a_document_or_a_message(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
