//! Names: what may be a name, a label or a port name, and how generated names end.
//! Each check returns the texts of `k8s.io/apimachinery/pkg/util/validation`; none means that the value is good.

use std::fmt::Write as _;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
/// Longest DNS label.
pub const DNS_LABEL_MAX: usize = 63;
/// Longest DNS subdomain, and so the longest name of most objects.
pub const DNS_SUBDOMAIN_MAX: usize = 253;
/// Letters of generated names: no vowels and no letters that look alike, so that no words come out.
const SUFFIX_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

/// Whether a value is a lowercase RFC 1123 label.
pub fn is_dns_label(value: &str) -> bool {
    value.len() <= DNS_LABEL_MAX && matches_label(value)
}

/// Faults of a lowercase RFC 1123 label, such as a namespace's or container's name.
pub fn dns_label_faults(value: &str) -> Vec<String> {
    let mut faults = max_length(value, DNS_LABEL_MAX, "characters");
    if !matches_label(value) {
        if value.split('.').all(matches_label) {
            faults.push("must not contain dots".to_owned());
        } else {
            faults.push(regex_fault(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                &["my-name", "123-abc"],
                LABEL,
            ));
        }
    }
    faults
}

/// Faults of a lowercase RFC 1123 subdomain, such as a Pod's or Secret's name.
pub fn dns_subdomain_faults(value: &str) -> Vec<String> {
    subdomain_faults(value, "characters")
}

fn subdomain_faults(value: &str, unit: &str) -> Vec<String> {
    let mut faults = max_length(value, DNS_SUBDOMAIN_MAX, unit);
    if !value.split('.').all(matches_label) {
        faults.push(regex_fault(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            &format!("{LABEL}(\\.{LABEL})*"),
        ));
    }
    faults
}

/// As [`dns_subdomain_faults`], but labels may begin with and hold `_` (DNS search paths).
pub fn dns_subdomain_underscore_faults(value: &str) -> Vec<String> {
    const PART: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let is_part = |part: &str| {
        let part = part.strip_prefix('_').unwrap_or(part);
        matches_with(part, |c| matches!(c, b'a'..=b'z' | b'0'..=b'9'), |c| matches!(c, b'-' | b'_'))
    };
    let mut faults = max_length(value, DNS_SUBDOMAIN_MAX, "characters");
    if !value.split('.').all(is_part) {
        faults.push(regex_fault(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            &format!("{PART}(\\.{PART})*"),
        ));
    }
    faults
}

/// Faults of a qualified name: a label key, an annotation key, a condition type.
pub fn qualified_name_faults(value: &str) -> Vec<String> {
    const WHAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut faults = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults.extend(
                    subdomain_faults(prefix, "bytes").into_iter().map(|m| format!("prefix part {m}")),
                );
            }
            *name
        }
        _ => {
            let text = regex_fault(WHAT, EXAMPLES, QUALIFIED);
            return vec![format!(
                "a valid label key {text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else {
        faults.extend(max_length(name, DNS_LABEL_MAX, "bytes").into_iter().map(|m| format!("name part {m}")));
    }
    if !matches_qualified(name) {
        faults.push(format!("name part {}", regex_fault(WHAT, EXAMPLES, QUALIFIED)));
    }
    faults
}

/// Faults of a label's value.
pub fn label_value_faults(value: &str) -> Vec<String> {
    let mut faults = max_length(value, DNS_LABEL_MAX, "bytes");
    if !value.is_empty() && !matches_qualified(value) {
        faults.push(regex_fault(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["MyValue", "my_value", "12345"],
            &format!("({QUALIFIED})?"),
        ));
    }
    faults
}

/// Faults of a key of a `ConfigMap` or Secret.
pub fn config_key_faults(value: &str) -> Vec<String> {
    let mut faults = max_length(value, DNS_SUBDOMAIN_MAX, "characters");
    let is_good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(is_good) {
        faults.push(regex_fault(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            &["key.name", "KEY_NAME", "key-name"],
            "[-._a-zA-Z0-9]+",
        ));
    }
    match value {
        "." => faults.push("must not be '.'".to_owned()),
        ".." => faults.push("must not be '..'".to_owned()),
        v if v.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// Faults of the name of an environment variable: printable ASCII without `=`.
pub fn env_name_faults(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.is_empty() {
        faults.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        faults.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    faults
}

/// Faults of a port's name.
pub fn port_name_faults(value: &str) -> Vec<String> {
    let mut faults = max_length(value, 15, "characters");
    if value.is_empty() || !value.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// Faults of the name of an HTTP header.
pub fn http_header_faults(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    vec![regex_fault(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        &["X-Header-Name"],
        "[-A-Za-z0-9]+",
    )]
}

/// Faults of a number outside a range, both ends included.
pub fn range_faults(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {low} and {high}, inclusive")]
    }
}

/// Whether a name is one of a sysctl, with `.` or `/` between its parts.
pub fn is_sysctl_name(value: &str) -> bool {
    let is_part = |part: &str| {
        matches_with(part, |c| matches!(c, b'a'..=b'z' | b'0'..=b'9'), |c| matches!(c, b'-' | b'_'))
    };
    value.len() <= DNS_SUBDOMAIN_MAX && value.split(['.', '/']).all(is_part)
}

/// The name that `generateName` gives: the prefix, cut to 58 bytes, and five letters taken from `random`.
pub fn generate(prefix: &str, random: u64) -> String {
    let end = (0..=prefix.len().min(DNS_LABEL_MAX - SUFFIX_LENGTH))
        .rev()
        .find(|end| prefix.is_char_boundary(*end))
        .unwrap_or_default();
    format!("{}{}", prefix.get(..end).unwrap_or_default(), suffix(random))
}

/// Five letters taken from `random`.
pub fn suffix(random: u64) -> String {
    let base = SUFFIX_LETTERS.len() as u64;
    let mut rest = random;
    (0..SUFFIX_LENGTH)
        .map(|_| {
            let letter = usize::try_from(rest % base).ok().and_then(|i| SUFFIX_LETTERS.get(i)).copied();
            rest /= base;
            char::from(letter.unwrap_or(b'b'))
        })
        .collect()
}

fn matches_label(value: &str) -> bool {
    matches_with(value, |c| matches!(c, b'a'..=b'z' | b'0'..=b'9'), |c| c == b'-')
}

fn matches_qualified(value: &str) -> bool {
    matches_with(value, |c| c.is_ascii_alphanumeric(), |c| matches!(c, b'-' | b'_' | b'.'))
}

/// Not empty; every byte is `edge` or `inner`; the first and last are `edge`.
fn matches_with(value: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    edge(*first) && edge(*last) && bytes.iter().all(|c| edge(*c) || inner(*c))
}

fn max_length(value: &str, max: usize, unit: &str) -> Vec<String> {
    if value.len() > max { vec![format!("must be no more than {max} {unit}")] } else { Vec::new() }
}

fn regex_fault(what: &str, examples: &[&str], regex: &str) -> String {
    let mut text = format!("{what} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        let or = if i > 0 { " or " } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{or}'{example}', ");
    }
    text + "regex used for validation is '" + regex + "')"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_subdomain_is_told_with_the_regex() {
        assert_eq!(
            dns_subdomain_faults("P_0"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert!(dns_subdomain_faults("a.b-c.9").is_empty());
        assert_eq!(dns_label_faults("a.b"), ["must not contain dots"]);
        assert!(!dns_label_faults(&"a".repeat(64)).is_empty());
        assert!(is_dns_label("my-name") && !is_dns_label("-a") && !is_dns_label(""));
    }

    #[test]
    fn qualified_names_have_an_optional_prefix() {
        assert!(qualified_name_faults("example.com/MyName").is_empty());
        assert!(qualified_name_faults("a_b.c").is_empty());
        assert_eq!(qualified_name_faults("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name_faults("a/").len(), 2);
        assert!(qualified_name_faults("a/b/c")[0].starts_with("a valid label key must consist"));
    }

    #[test]
    fn values_keys_and_ports() {
        assert!(label_value_faults("").is_empty());
        assert!(!label_value_faults("-x").is_empty());
        assert_eq!(config_key_faults("..data"), ["must not start with '..'"]);
        assert!(config_key_faults("key.name_1-x").is_empty());
        assert_eq!(port_name_faults("80"), ["must contain at least one letter (a-z)"]);
        assert!(env_name_faults("MY-VAR 1").is_empty());
        assert!(!env_name_faults("A=B").is_empty());
        assert!(is_sysctl_name("net.ipv4.ip_unprivileged_port_start") && is_sysctl_name("net/ipv4/x"));
        assert!(!is_sysctl_name("net..x"));
    }

    #[test]
    fn generated_names_end_with_five_safe_letters() {
        let name = generate("pod-", 123_456_789);
        assert_eq!(name.len(), 9);
        assert!(name.starts_with("pod-") && name[4..].bytes().all(|c| SUFFIX_LETTERS.contains(&c)));
        assert_eq!(generate(&"x".repeat(100), 0).len(), 63);
        assert_ne!(suffix(1), suffix(2));
    }
}
