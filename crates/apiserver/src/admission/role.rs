//! Nobody grants what they do not have: a role or a binding must not give its writer's friends more than the writer may
//! do, unless the writer may `escalate` or `bind` that role.

use api::access::Access as _;
use api::kind;
use api::rbac::{GROUP, Rule};
use api::status::Status;
use serde_json::Value;

use super::Ask;
use crate::authz::{Attributes, Target};
use crate::identity::MASTERS;
use crate::meta;

pub(super) fn check(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let write = ask.write;
    if write.user.is_in(MASTERS) || is_unchanged(ask) {
        return Ok(Vec::new());
    }
    let namespace = write.info.namespace.as_str();
    let (wanted, may) = if write.kind.kind.ends_with("Binding") {
        let role = ask.object.field("roleRef").unwrap_or(&Value::Null);
        let of = if role.text("kind") == "Role" { namespace } else { "" };
        let plural = if of.is_empty() { "clusterroles" } else { "roles" };
        if is_allowed(ask, "bind", plural, of, role.text("name")) {
            return Ok(Vec::new());
        }
        let rules = write.server.authorizer.rules_of_role(&write.server.cache, of, role.text("name"));
        let known = kind::find(GROUP, "v1", plural);
        let rules = rules.ok_or_else(|| {
            known.map_or_else(Status::unknown_path, |kind| Status::not_found(kind, role.text("name")))
        })?;
        (rules.to_vec(), false)
    } else {
        let name = meta::text(ask.object, "name");
        let may = is_allowed(ask, "escalate", write.kind.plural, namespace, name);
        (rules_of(ask.object), may)
    };
    if may {
        return Ok(Vec::new());
    }
    let (held, _) = write.server.authorizer.rules_of(&write.server.cache, write.user, namespace);
    let gained = api::rbac::uncovered(&held, &wanted);
    if gained.is_empty() { Ok(Vec::new()) } else { Err(ask.forbidden(&refusal(ask, &gained))) }
}

/// Whether a change touches neither what is granted nor to whom.
fn is_unchanged(ask: Ask<'_>) -> bool {
    ask.old.is_some_and(|old| {
        ["rules", "aggregationRule", "roleRef", "subjects"]
            .iter()
            .all(|field| old.field(field) == ask.object.field(field))
    })
}

/// What a role grants. One that aggregates others could grant anything.
fn rules_of(role: &Value) -> Vec<Rule> {
    let mut rules = Rule::of_role(role);
    if role.field("aggregationRule").is_some() {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
    }
    rules
}

fn is_allowed(ask: Ask<'_>, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let target = Target::Resource { group: GROUP, resource, subresource: "", namespace, name, fields: "" };
    let question = Attributes { user: ask.write.user, verb, target };
    ask.write.server.authorizer.allows(&ask.write.server.cache, &question).is_some()
}

fn refusal(ask: Ask<'_>, gained: &[Rule]) -> String {
    let user = ask.write.user;
    let groups: Vec<String> = user.groups.iter().map(|group| api::validation::quote(group)).collect();
    let rules: Vec<String> = gained.iter().map(Rule::describe).collect();
    format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        api::validation::quote(&user.user),
        groups.join(" "),
        rules.join("\n")
    )
}
