//! Profiles for OCI runtimes, which compile them by themselves: the default one written out as a document, and documents
//! of the node's with only those entries that apply to a container.

use super::assemble::{Action, Comparison, Rule, Test};
use super::document::{ActionName, Arg, Document, DocumentError, Entry, Operator, applies, is_listed};
use super::{ABIS, profile, table};

/// The default profile for a container whose bounding set is `capabilities`, as an OCI runtime takes it.
pub fn default_document(capabilities: u64) -> Document {
    let mut allowed = entry(Vec::new(), ActionName::Allow, None, None);
    let mut others = Vec::new();
    for (name, ..) in table::TABLE {
        match profile::rule_of(name, capabilities) {
            Some(rule) if rule == Rule::always(Action::ALLOW) => allowed.names.push((*name).to_owned()),
            Some(rule) => others.extend(entries(name, &rule)),
            None => {}
        }
    }
    Document {
        default_action: ActionName::Errno,
        default_errno_ret: Some(errno_of(profile::DEFAULT)),
        architectures: ABIS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        arch_map: Vec::new(),
        flags: Vec::new(),
        listener_path: String::new(),
        syscalls: std::iter::once(allowed).chain(others).collect(),
    }
}

/// A rule as entries; each of them says when something else than the default happens.
fn entries(name: &str, rule: &Rule) -> Vec<Entry> {
    let one = |tests: &[Test], action: Action| {
        let args = (!tests.is_empty()).then(|| tests.iter().map(arg).collect());
        match action {
            Action::ALLOW => entry(vec![name.to_owned()], ActionName::Allow, None, args),
            refusal => entry(vec![name.to_owned()], ActionName::Errno, Some(errno_of(refusal)), args),
        }
    };
    let exceptions = rule.checks.iter().filter(|check| check.action != profile::DEFAULT);
    let mut all: Vec<Entry> = exceptions.map(|check| one(&check.tests, check.action)).collect();
    if rule.otherwise != profile::DEFAULT {
        // What is refused by its arguments is allowed where they are others.
        let refused = rule.checks.iter().filter(|check| check.action == profile::DEFAULT);
        let tests: Vec<Test> = refused.flat_map(|check| &check.tests).map(negated).collect();
        all.push(one(&tests, rule.otherwise));
    }
    all
}

fn negated(test: &Test) -> Test {
    Test { comparison: Comparison::NotEqual, ..*test }
}

fn arg(test: &Test) -> Arg {
    let Test { index, comparison, value } = *test;
    let with = |op, value, value_two| Arg { index, value, value_two, op };
    match comparison {
        Comparison::Equal => with(Operator::Equal, value, 0),
        Comparison::NotEqual => with(Operator::NotEqual, value, 0),
        Comparison::Less => with(Operator::Less, value, 0),
        Comparison::LessOrEqual => with(Operator::LessOrEqual, value, 0),
        Comparison::Greater => with(Operator::Greater, value, 0),
        Comparison::GreaterOrEqual => with(Operator::GreaterOrEqual, value, 0),
        Comparison::Masked(mask) => with(Operator::Masked, mask, value),
        Comparison::MaskedLow(mask) => with(Operator::Masked, mask.into(), value),
    }
}

fn entry(names: Vec<String>, action: ActionName, errno_ret: Option<u16>, args: Option<Vec<Arg>>) -> Entry {
    let (includes, excludes) = Default::default();
    Entry { names, action, errno_ret, args, includes, excludes }
}

/// The number that an `errno` action carries in its low half.
fn errno_of(action: Action) -> u16 {
    u16::try_from(action.0 & 0xffff).unwrap_or(u16::MAX)
}

impl Document {
    /// What of the document holds for a container: without `archMap`, `includes` and `excludes`, which are the container
    /// engines' own and unknown to OCI runtimes. Compile it first ([`super::compile_document`]): that refuses what can't
    /// be honoured.
    ///
    /// # Errors
    /// [`DocumentError::Kernel`]
    pub fn resolved(&self, capabilities: u64, kernel: &str) -> Result<Self, DocumentError> {
        let mut resolved = self.clone();
        resolved.syscalls.clear();
        for entry in &self.syscalls {
            if applies(entry, capabilities, kernel)? {
                resolved.syscalls.push(entry.clone());
            }
        }
        let listed = ABIS.iter().filter(|(name, ..)| is_listed(self, name));
        resolved.architectures = listed.map(|(name, ..)| (*name).to_owned()).collect();
        resolved.arch_map.clear();
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::super::{compile_default, compile_document};
    use super::*;

    /// The same answers as the program that the built-in launcher installs.
    #[test]
    fn the_document_means_what_the_compiled_default_profile_means() {
        let arguments =
            [[0, 0], [0x2000_0000, 0], [0x2_0000, 0], [0x8, 0], [2, 1], [40, 1], [0xffff_ffff, 7]];
        for capabilities in [crate::capability::default_mask(), 0, u64::MAX] {
            let ours = compile_default(capabilities);
            let document = default_document(capabilities);
            let theirs = compile_document(&document, capabilities, "6.1.0").unwrap().program;
            for (_, architecture, column) in ABIS {
                for (number, name) in super::super::numbers(*column) {
                    for arguments in arguments {
                        let answer = |program: &[u8]| run(program, *architecture, number, arguments);
                        assert_eq!(answer(&ours), answer(&theirs), "{name} {arguments:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_apply_is_left_out_and_no_word_of_the_engines_is_left() {
        let document: Document = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["chmod"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            ],
        }))
        .unwrap();
        let resolved = serde_json::to_value(document.resolved(0, "6.1.0").unwrap()).unwrap();
        assert_eq!(
            resolved["syscalls"],
            serde_json::json!([{"names": ["chmod"], "action": "SCMP_ACT_ALLOW"}])
        );
        assert!(resolved.get("archMap").is_none());
        #[cfg(target_arch = "x86_64")]
        assert_eq!(resolved["architectures"], serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
    }
}
