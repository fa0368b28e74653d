//! Capability sets from the request's `add` and `drop`.

use std::collections::BTreeSet;

use sys::capability::{DEFAULT, NAMES as ALL};

/// The sets to give a process, as bit masks by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    /// Bounding, permitted and effective of a root process.
    pub(crate) granted: u64,
    /// Kept across `execve` by a process that is not root; also inheritable.
    pub(crate) ambient: u64,
}

/// A name that is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability to add: {0:?}; names are those of capabilities(7), with or without `CAP_`")]
pub(crate) struct UnknownCapability(String);

/// Works out the sets. `ALL` in `add` or `drop` means every one; what is named alone wins over `ALL`, as
/// upstream has it. Unknown names to drop are already absent, so they are no error.
pub(crate) fn plan(
    add: &[String],
    drop: &[String],
    ambient: &[String],
    is_privileged: bool,
) -> Result<CapabilitySets, UnknownCapability> {
    if is_privileged {
        return Ok(CapabilitySets { granted: mask(ALL), ambient: 0 });
    }
    let (add, drop) = (names(add), names(drop));
    let mut granted = mask(DEFAULT);
    if drop.contains("ALL") {
        granted = 0;
    }
    if add.contains("ALL") {
        granted = mask(ALL);
    }
    for name in drop.iter().filter(|name| *name != "ALL") {
        granted &= !bit(name).unwrap_or(0);
    }
    for name in add.iter().filter(|name| *name != "ALL") {
        granted |= bit(name).ok_or_else(|| UnknownCapability(name.clone()))?;
    }
    let mut kept = 0;
    for name in names(ambient) {
        kept |= bit(&name).ok_or_else(|| UnknownCapability(name.clone()))?;
    }
    Ok(CapabilitySets { granted: granted | kept, ambient: kept })
}

fn names(list: &[String]) -> BTreeSet<String> {
    let bare = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
    };
    list.iter().map(bare).collect()
}

fn bit(name: &str) -> Option<u64> {
    ALL.iter().position(|known| *known == name).map(|number| 1 << number)
}

fn mask<const N: usize>(names: [&str; N]) -> u64 {
    names.iter().filter_map(|name| bit(name)).fold(0, |mask, bit| mask | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(add: &[&str], drop: &[&str]) -> u64 {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        plan(&owned(add), &owned(drop), &[], false).unwrap().granted
    }

    #[test]
    fn the_default_set_is_the_known_mask() {
        assert_eq!(granted(&[], &[]), 0x0000_0000_a804_25fb, "CapEff of a default container, proc(5)");
    }

    #[test]
    fn names_are_taken_with_and_without_prefix_in_any_case() {
        assert_eq!(granted(&["NET_ADMIN"], &["ALL"]), 1 << 12);
        assert_eq!(granted(&["cap_net_admin"], &["all"]), 1 << 12);
    }

    #[test]
    fn a_single_name_wins_over_all() {
        assert_eq!(granted(&["ALL"], &["SYS_ADMIN"]), ((1 << 41) - 1) & !(1 << 21));
        assert_eq!(granted(&["CHOWN"], &["ALL"]), 1);
    }

    #[test]
    fn an_unknown_name_to_add_is_refused_and_to_drop_is_not() {
        plan(&["NO_SUCH".into()], &[], &[], false).unwrap_err();
        assert_eq!(granted(&[], &["NO_SUCH"]), granted(&[], &[]));
    }

    #[test]
    fn privileged_means_all_of_them() {
        assert_eq!(plan(&[], &["ALL".into()], &[], true).unwrap().granted, (1 << 41) - 1);
    }

    #[test]
    fn an_ambient_capability_is_granted_too() {
        let sets = plan(&[], &["ALL".into()], &["NET_BIND_SERVICE".into()], false).unwrap();
        assert_eq!(sets, CapabilitySets { granted: 1 << 10, ambient: 1 << 10 });
    }
}
