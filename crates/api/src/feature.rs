//! Feature gates: one table that the command line, the documentation and all roles read.
//! Gates are parsed once, at start, into [`Gates`]; nothing reads them from text later.

use thiserror::Error;

/// How settled a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default, may change or go.
    Alpha,
    /// Well tested; its default is in the table.
    Beta,
    /// Settled.
    Stable,
}

impl Stage {
    /// Upstream's word: `ALPHA`, `BETA` or `GA`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "GA",
        }
    }
}

/// A feature that can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Feature {
    /// `spec.hostUsers: false` gives a Pod its own user namespace (KEP-127).
    UserNamespacesSupport,
    /// `hostUsers: false` together with `hostNetwork: true` (KEP-5607).
    UserNamespacesHostNetworkSupport,
    /// `securityContext.procMount: Unmasked` (KEP-4265).
    ProcMountType,
}

/// A row of the table of gates.
#[derive(Clone, Copy, Debug)]
pub struct FeatureInfo {
    /// The gate as the program knows it.
    pub feature: Feature,
    /// The gate's name on the command line.
    pub name: &'static str,
    /// Earlier names that are still understood, with a warning.
    pub aliases: &'static [&'static str],
    /// How settled it is.
    pub stage: Stage,
    /// Its value when nobody says anything.
    pub default: bool,
    /// Whether a value other than the default is refused.
    pub is_locked: bool,
    /// The Kubernetes version that gave it this stage.
    pub since: &'static str,
    /// One sentence for help and reference pages.
    pub docs: &'static str,
}

/// All gates, by name.
pub const FEATURES: &[FeatureInfo] = &[
    FeatureInfo {
        feature: Feature::ProcMountType,
        name: "ProcMountType",
        aliases: &[],
        stage: Stage::Stable,
        default: true,
        is_locked: true,
        since: "1.36",
        docs: "Allows `procMount: Unmasked` in Pods with `hostUsers: false`.",
    },
    FeatureInfo {
        feature: Feature::UserNamespacesHostNetworkSupport,
        name: "UserNamespacesHostNetworkSupport",
        aliases: &[],
        stage: Stage::Alpha,
        default: false,
        is_locked: false,
        since: "1.35",
        docs: "Allows `hostNetwork: true` together with `hostUsers: false`.",
    },
    FeatureInfo {
        feature: Feature::UserNamespacesSupport,
        name: "UserNamespacesSupport",
        aliases: &["UserNamespacesStatelessPodsSupport"],
        stage: Stage::Stable,
        default: true,
        is_locked: false,
        since: "1.36",
        docs: "Runs Pods with `hostUsers: false` in a user namespace of their own; off, the API server drops the field from new Pods.",
    },
];

/// Which features are on. Small and freely copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates(u32);

impl Default for Gates {
    fn default() -> Self {
        FEATURES.iter().fold(Self(0), |gates, info| gates.with(info.feature, info.default))
    }
}

/// A remark about a gate that was set by an old name or without need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateWarning(pub String);

impl std::fmt::Display for GateWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a list of gates is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GateError {
    /// `A` without `=true` or `=false`.
    #[error("cannot read feature gates: missing bool value for {0}: write `{0}=true` or `{0}=false`")]
    MissingValue(String),
    /// `A=perhaps`.
    #[error("cannot read feature gates: invalid value of {name}={value}: write `true` or `false`")]
    BadValue {
        /// The gate.
        name: String,
        /// What stands after `=`.
        value: String,
    },
    /// No such gate.
    #[error("unrecognized feature gate: {0}: `kakoi up --help` lists the gates that exist")]
    Unknown(String),
    /// A gate that can no longer be changed.
    #[error("cannot set feature gate {name} to {value}, feature is locked to {locked}: leave the gate out")]
    Locked {
        /// The gate.
        name: &'static str,
        /// What was asked.
        value: bool,
        /// What it stays at.
        locked: bool,
    },
    /// A gate that is on while the one it builds on is off.
    #[error(
        "feature gate {name} is enabled, but it needs {needs}, which is disabled: enable both or neither"
    )]
    Dependency {
        /// The gate that is on.
        name: &'static str,
        /// The gate that is off.
        needs: &'static str,
    },
}

impl Gates {
    /// Whether a feature is on.
    pub const fn is_enabled(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    /// The same gates with one of them set.
    #[must_use]
    pub const fn with(self, feature: Feature, value: bool) -> Self {
        let bit = 1 << feature as u8;
        if value { Self(self.0 | bit) } else { Self(self.0 & !bit) }
    }

    /// Reads `A=true,B=false` over the defaults. `AllAlpha` and `AllBeta` set a whole stage first.
    ///
    /// # Errors
    /// A gate that does not exist or is locked, a value that is not a boolean, or a gate without the one it needs.
    pub fn parse(text: &str) -> Result<(Self, Vec<GateWarning>), GateError> {
        let settings = split_settings(text)?;
        let mut gates = Self::default();
        for (name, value) in &settings {
            match *name {
                "AllAlpha" => gates = gates.with_stage(Stage::Alpha, *value),
                "AllBeta" => gates = gates.with_stage(Stage::Beta, *value),
                _ => {}
            }
        }
        let mut warnings = Vec::new();
        for (name, value) in settings {
            if !matches!(name, "AllAlpha" | "AllBeta") {
                gates = gates.set_by_name(name, value, &mut warnings)?;
            }
        }
        gates.check_dependencies()?;
        Ok((gates, warnings))
    }

    fn with_stage(self, stage: Stage, value: bool) -> Self {
        FEATURES
            .iter()
            .filter(|info| info.stage == stage && !info.is_locked)
            .fold(self, |gates, info| gates.with(info.feature, value))
    }

    fn set_by_name(
        self,
        name: &str,
        value: bool,
        warnings: &mut Vec<GateWarning>,
    ) -> Result<Self, GateError> {
        let info = FEATURES
            .iter()
            .find(|info| info.name == name || info.aliases.contains(&name))
            .ok_or_else(|| GateError::Unknown(name.to_owned()))?;
        if info.is_locked && value != info.default {
            return Err(GateError::Locked { name: info.name, value, locked: info.default });
        }
        if info.name != name {
            warnings.push(GateWarning(format!(
                "feature gate {name} is the alpha name of {}: set {}={value} instead",
                info.name, info.name
            )));
        } else if info.stage == Stage::Stable && value == info.default {
            warnings.push(GateWarning(format!(
                "Setting GA feature gate {name}={value}. It will be removed in a future release."
            )));
        }
        Ok(self.with(info.feature, value))
    }

    fn check_dependencies(self) -> Result<(), GateError> {
        let on = |feature| self.is_enabled(feature);
        if on(Feature::UserNamespacesHostNetworkSupport) && !on(Feature::UserNamespacesSupport) {
            return Err(GateError::Dependency {
                name: "UserNamespacesHostNetworkSupport",
                needs: "UserNamespacesSupport",
            });
        }
        Ok(())
    }
}

fn split_settings(text: &str) -> Result<Vec<(&str, bool)>, GateError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(split_setting).collect()
}

fn split_setting(part: &str) -> Result<(&str, bool), GateError> {
    let (name, value) = part.split_once('=').ok_or_else(|| GateError::MissingValue(part.to_owned()))?;
    let (name, value) = (name.trim(), value.trim());
    let value = match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err(GateError::BadValue { name: name.to_owned(), value: value.to_owned() }),
    };
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_namespaces_are_on_by_default_and_can_be_turned_off() {
        assert!(Gates::default().is_enabled(Feature::UserNamespacesSupport));
        let (gates, warnings) = Gates::parse("UserNamespacesSupport=false").unwrap();
        assert!(!gates.is_enabled(Feature::UserNamespacesSupport));
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_alpha_name_is_understood_and_names_its_successor() {
        let (gates, warnings) = Gates::parse("UserNamespacesStatelessPodsSupport=true").unwrap();
        assert!(gates.is_enabled(Feature::UserNamespacesSupport));
        assert_eq!(
            warnings[0].to_string(),
            "feature gate UserNamespacesStatelessPodsSupport is the alpha name of UserNamespacesSupport: set UserNamespacesSupport=true instead"
        );
    }

    #[test]
    fn bad_gates_are_refused_by_name() {
        let refused = |text: &str| Gates::parse(text).unwrap_err();
        assert_eq!(refused("Nope=true"), GateError::Unknown("Nope".into()));
        assert_eq!(refused("ProcMountType"), GateError::MissingValue("ProcMountType".into()));
        assert_eq!(
            refused("ProcMountType=false"),
            GateError::Locked { name: "ProcMountType", value: false, locked: true }
        );
        assert!(matches!(refused("ProcMountType=maybe"), GateError::BadValue { .. }));
        assert!(matches!(
            refused("UserNamespacesSupport=false,UserNamespacesHostNetworkSupport=true"),
            GateError::Dependency { .. }
        ));
    }

    #[test]
    fn a_whole_stage_can_be_set_and_a_single_gate_wins_over_it() {
        let (gates, _) = Gates::parse("AllAlpha=true").unwrap();
        assert!(gates.is_enabled(Feature::UserNamespacesHostNetworkSupport));
        let (gates, _) = Gates::parse("UserNamespacesHostNetworkSupport=false,AllAlpha=true").unwrap();
        assert!(!gates.is_enabled(Feature::UserNamespacesHostNetworkSupport));
    }
}
