//! What a CRI request says about user namespaces, checked before anything is touched: the rules that runtimes
//! share for `NamespaceOption.userns_options` (Kubernetes 1.36; critest's user namespace specs).

use cri::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption, UserNamespace};
use serde::{Deserialize, Serialize};
use userns::IdRange;

/// One contiguous map from the Pod's ID 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// Host ID of the Pod's ID 0.
    pub(crate) host: u32,
    /// How many IDs, at least 1.
    pub(crate) length: u32,
}

impl IdMap {
    /// Host ID of the Pod's `id`, if the map reaches that far.
    pub(crate) fn host_id(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.host + id)
    }
}

/// The two maps of a Pod's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodIds {
    /// User IDs.
    pub(crate) uids: IdMap,
    /// Group IDs.
    pub(crate) gids: IdMap,
}

/// Which of the two maps an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// `uids`
    Uids,
    /// `gids`
    Gids,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uids => "uids",
            Self::Gids => "gids",
        })
    }
}

/// Why a request's user namespace options are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MappingError {
    /// Mode CONTAINER, TARGET or a number this version doesn't know.
    #[error("userns_options.mode {0} is unsupported: a user namespace belongs to the POD or is the NODE's")]
    Mode(String),
    /// Mode NODE with maps.
    #[error("userns_options has mode NODE and ID mappings; leave the mappings out or use mode POD")]
    NodeWithMaps,
    /// Mode POD without a map.
    #[error("userns_options has mode POD and no {0} mapping; one is needed")]
    Missing(Which),
    /// Mode POD with several maps.
    #[error("userns_options has {1} {0} mappings; exactly one is supported")]
    Several(Which, usize),
    /// The map is empty.
    #[error("the {0} mapping has length 0; it must map at least the Pod's root")]
    Empty(Which),
    /// The map doesn't hold the Pod's ID 0.
    #[error("the {0} mapping starts at container ID {1}; container ID 0 must be mapped")]
    NoRoot(Which, u32),
    /// The host range leaves the ID space.
    #[error(
        "the {which} mapping of {length} IDs from host ID {host} passes 4294967294, the kernel's last usable ID"
    )]
    PastEnd {
        /// Which map.
        which: Which,
        /// First host ID.
        host: u32,
        /// Number of IDs.
        length: u32,
    },
    /// A container asks for another user namespace than its sandbox has.
    #[error(
        "the container's userns_options ({container}) differ from its sandbox's ({sandbox}); they must be equal"
    )]
    Differs {
        /// The container's, as text.
        container: String,
        /// The sandbox's, as text.
        sandbox: String,
    },
    /// A mount's maps are not those of the Pod.
    #[error(
        "the mount at {path} has ID mappings that are not those of its Pod ({sandbox}); \
         send the Pod's mappings, or none for a plain bind"
    )]
    Mount {
        /// Where the mount goes in the container.
        path: String,
        /// The sandbox's, as text.
        sandbox: String,
    },
}

/// Reads the options of a sandbox or a container. `None` is the node's own user namespace.
///
/// # Errors
/// As the rules of CRI demand; see [`MappingError`].
pub(crate) fn parse(options: Option<&NamespaceOption>) -> Result<Option<PodIds>, MappingError> {
    let Some(user) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(None) };
    match NamespaceMode::try_from(user.mode) {
        Ok(NamespaceMode::Node) if user.uids.is_empty() && user.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err(MappingError::NodeWithMaps),
        Ok(NamespaceMode::Pod) => pod_ids(user).map(Some),
        Ok(other) => Err(MappingError::Mode(other.as_str_name().to_owned())),
        Err(_) => Err(MappingError::Mode(user.mode.to_string())),
    }
}

/// Checks a container's options against those its sandbox was made with.
///
/// # Errors
/// When they are wrong in themselves or differ.
pub(crate) fn check_container(
    options: Option<&NamespaceOption>,
    sandbox: Option<PodIds>,
) -> Result<Option<PodIds>, MappingError> {
    let container = parse(options)?;
    if container == sandbox {
        return Ok(sandbox);
    }
    Err(MappingError::Differs { container: describe(container), sandbox: describe(sandbox) })
}

/// Whether a mount is shown through the Pod's map (`true`) or bound as it is on the node.
///
/// # Errors
/// When it has mappings that are not the Pod's.
pub(crate) fn check_mount(mount: &Mount, sandbox: Option<PodIds>) -> Result<bool, MappingError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let asked = UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: mount.uid_mappings.clone(),
        gids: mount.gid_mappings.clone(),
    };
    match (pod_ids(&asked), sandbox) {
        (Ok(asked), Some(ids)) if asked == ids => Ok(true),
        _ => Err(MappingError::Mount { path: mount.container_path.clone(), sandbox: describe(sandbox) }),
    }
}

/// The options in the form that status messages carry.
pub(crate) fn to_options(ids: Option<PodIds>) -> UserNamespace {
    let line = |map: IdMap| vec![IdMapping { host_id: map.host, container_id: 0, length: map.length }];
    match ids {
        None => UserNamespace { mode: NamespaceMode::Node.into(), ..UserNamespace::default() },
        Some(ids) => {
            UserNamespace { mode: NamespaceMode::Pod.into(), uids: line(ids.uids), gids: line(ids.gids) }
        }
    }
}

fn pod_ids(user: &UserNamespace) -> Result<PodIds, MappingError> {
    Ok(PodIds { uids: one(Which::Uids, &user.uids)?, gids: one(Which::Gids, &user.gids)? })
}

fn one(which: Which, lines: &[IdMapping]) -> Result<IdMap, MappingError> {
    let line = match lines {
        [] => return Err(MappingError::Missing(which)),
        [line] => line,
        several => return Err(MappingError::Several(which, several.len())),
    };
    if line.length == 0 {
        return Err(MappingError::Empty(which));
    }
    if line.container_id != 0 {
        return Err(MappingError::NoRoot(which, line.container_id));
    }
    match IdRange::new(line.host_id.into(), line.length.into()) {
        Ok(range) if range.is_mappable() => Ok(IdMap { host: line.host_id, length: line.length }),
        _ => Err(MappingError::PastEnd { which, host: line.host_id, length: line.length }),
    }
}

fn describe(ids: Option<PodIds>) -> String {
    let map = |map: IdMap| format!("0 {} {}", map.host, map.length);
    match ids {
        None => "mode NODE".to_owned(),
        Some(ids) => format!("mode POD, uids `{}`, gids `{}`", map(ids.uids), map(ids.gids)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { host_id, container_id, length }
    }

    fn options(mode: NamespaceMode, uids: Vec<IdMapping>, gids: Vec<IdMapping>) -> NamespaceOption {
        let user = UserNamespace { mode: mode.into(), uids, gids };
        NamespaceOption { userns_options: Some(user), ..NamespaceOption::default() }
    }

    fn pod(one: IdMapping) -> NamespaceOption {
        options(NamespaceMode::Pod, vec![one], vec![one])
    }

    #[test]
    fn f04_two_maps_are_refused() {
        let two = vec![line(0, 131_072, 65_536), line(65_536, 262_144, 65_536)];
        let error = parse(Some(&options(NamespaceMode::Pod, two.clone(), two))).unwrap_err();
        assert_eq!(error, MappingError::Several(Which::Uids, 2));
    }

    #[test]
    fn f05_a_map_without_the_pods_root_is_refused() {
        assert_eq!(
            parse(Some(&pod(line(1, 131_072, 10)))).unwrap_err(),
            MappingError::NoRoot(Which::Uids, 1)
        );
    }

    #[test]
    fn f06_modes_container_and_target_are_refused() {
        for mode in [NamespaceMode::Container, NamespaceMode::Target] {
            let error = parse(Some(&options(mode, vec![], vec![]))).unwrap_err();
            assert_eq!(error, MappingError::Mode(mode.as_str_name().to_owned()));
        }
    }

    #[test]
    fn f07_pod_without_maps_and_node_with_maps_are_refused() {
        assert_eq!(
            parse(Some(&options(NamespaceMode::Pod, vec![], vec![]))).unwrap_err(),
            MappingError::Missing(Which::Uids)
        );
        let node = options(NamespaceMode::Node, vec![line(0, 1, 1)], vec![]);
        assert_eq!(parse(Some(&node)).unwrap_err(), MappingError::NodeWithMaps);
    }

    #[test]
    fn f08_length_0_and_ranges_past_the_last_id_are_refused() {
        assert_eq!(parse(Some(&pod(line(0, 1, 0)))).unwrap_err(), MappingError::Empty(Which::Uids));
        for (host, length) in [(4_294_901_760, 65_536), (u32::MAX, 1), (65_536, u32::MAX)] {
            let error = parse(Some(&pod(line(0, host, length)))).unwrap_err();
            assert_eq!(error, MappingError::PastEnd { which: Which::Uids, host, length });
        }
        parse(Some(&pod(line(0, 4_294_901_760, 65_535)))).expect("the kernel takes this one");
    }

    #[test]
    fn f09_a_map_needs_no_alignment() {
        let ids = parse(Some(&pod(line(0, 1000, 100_000)))).unwrap().unwrap();
        assert_eq!(ids.uids, IdMap { host: 1000, length: 100_000 });
        assert_eq!(ids.uids.host_id(99_999), Some(100_999));
        assert_eq!(ids.uids.host_id(100_000), None);
    }

    #[test]
    fn f10_a_container_with_other_options_than_its_sandbox_is_refused() {
        let sandbox = parse(Some(&pod(line(0, 131_072, 65_536)))).unwrap();
        let other = pod(line(0, 196_608, 65_536));
        let error = check_container(Some(&other), sandbox).unwrap_err();
        assert!(error.to_string().contains("0 196608 65536") && error.to_string().contains("0 131072 65536"));
        assert!(check_container(None, sandbox).is_err(), "the node's namespace is another one too");
        check_container(Some(&pod(line(0, 131_072, 65_536))), sandbox).unwrap();
    }

    #[test]
    fn a_mount_has_the_pods_mappings_or_none() {
        let sandbox = parse(Some(&pod(line(0, 131_072, 65_536)))).unwrap();
        let mount = |lines: Vec<IdMapping>| Mount {
            container_path: "/data".into(),
            uid_mappings: lines.clone(),
            gid_mappings: lines,
            ..Mount::default()
        };
        assert_eq!(check_mount(&mount(vec![]), sandbox), Ok(false));
        assert_eq!(check_mount(&mount(vec![line(0, 131_072, 65_536)]), sandbox), Ok(true));
        check_mount(&mount(vec![line(0, 196_608, 65_536)]), sandbox).unwrap_err();
        check_mount(&mount(vec![line(0, 131_072, 65_536)]), None).unwrap_err();
    }

    #[test]
    fn absent_options_mean_the_nodes_user_namespace() {
        assert_eq!(parse(None), Ok(None));
        assert_eq!(parse(Some(&NamespaceOption::default())), Ok(None));
        assert_eq!(parse(Some(&options(NamespaceMode::Node, vec![], vec![]))), Ok(None));
        assert_eq!(to_options(None).mode, i32::from(NamespaceMode::Node));
    }
}
