//! Expansion of `$(NAME)` references in commands, arguments and variables.
//!
//! A reference that nothing answers stays as written; `$$` is one literal dollar. Nothing else is special.
//! Source: API reference, `Container.command` and `EnvVar.value`.

/// Expands every `$(NAME)` of `input` for which `lookup` has a value.
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        let (before, from_dollar) = rest.split_at(at);
        out.push_str(before);
        rest = expand_one(from_dollar, &lookup, &mut out);
    }
    out.push_str(rest);
    out
}

/// Consumes one construct at the start of `text` (which begins with `$`) and returns what follows it.
fn expand_one<'a>(text: &'a str, lookup: &impl Fn(&str) -> Option<String>, out: &mut String) -> &'a str {
    let after = text.strip_prefix('$').unwrap_or(text);
    if let Some(rest) = after.strip_prefix('$') {
        out.push('$');
        return rest;
    }
    let Some((name, rest)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) else {
        out.push('$');
        return after;
    };
    if let Some(value) = lookup(name) {
        out.push_str(&value);
    } else {
        out.push_str("$(");
        out.push_str(name);
        out.push(')');
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_everything_else_stays() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(MISSING)", "$(MISSING)"),
            ("$(EMPTY)|", "|"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("trailing$", "trailing$"),
            ("$", "$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }
}
