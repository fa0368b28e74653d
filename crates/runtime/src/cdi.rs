//! CDI: devices that a vendor describes in files of the node (Container Device Interface, 0.3 to 1.0). What a device
//! needs becomes part of the container's own request: device nodes, mounts, environment, groups.
//!
//! Programs that a description wants run (hooks) and what the kernel has elsewhere (RDT, network devices) are refused:
//! a container without them would not be what its device needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cri::v1::{ContainerConfig, Device, KeyValue, Mount};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where descriptions lie besides `cdi` in the node's `/etc`: those made since boot, which win.
const SINCE_BOOT: &str = "/var/run/cdi";

/// A file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Described>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Bind>,
    #[serde(default)]
    additional_gids: Vec<u32>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default)]
    intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    #[serde(default)]
    host_path: String,
    #[serde(default)]
    permissions: String,
    #[serde(default)]
    file_mode: Option<u32>,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bind {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
}

/// What a description says of a device node against what the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeOwner {
    /// Path in the container.
    pub(crate) path: String,
    /// Permission bits.
    pub(crate) mode: Option<u32>,
    /// Owner and group, as the container sees them.
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// Puts what the request's CDI devices need into the request. Returns the owners of their nodes.
pub(crate) fn apply(config: &mut ContainerConfig, etc: &Path) -> Result<Vec<NodeOwner>> {
    if config.cdi_devices.is_empty() {
        return Ok(Vec::new());
    }
    let specs = read(&[etc.join("cdi"), PathBuf::from(SINCE_BOOT)])?;
    let names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    let mut owners = Vec::new();
    for edits in plan(&specs, &names)? {
        edit(config, edits, &mut owners)?;
    }
    Ok(owners)
}

/// All descriptions, those of the later directories last. A file that can't be read hides its devices only.
fn read(directories: &[PathBuf]) -> Result<Vec<Spec>> {
    let mut specs = Vec::new();
    for directory in directories {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => {
                entries.map_err(|error| Error::failed(format!("read {}", directory.display()), error))?
            }
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            match parse(&file) {
                Ok(spec) => specs.extend(spec),
                Err(error) => tracing::warn!(file = %file.display(), error, "the CDI file can't be used"),
            }
        }
    }
    Ok(specs)
}

fn parse(file: &Path) -> Result<Option<Spec>, String> {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !matches!(extension, "json" | "yaml" | "yml") {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    // JSON is YAML too.
    serde_saphyr::from_str(&text).map(Some).map_err(|error| error.to_string())
}

/// The edits of the named devices, in order; those of a whole file once, before its first device.
fn plan<'s>(specs: &'s [Spec], names: &[String]) -> Result<Vec<&'s Edits>> {
    let devices: BTreeMap<String, (usize, &Described)> = specs
        .iter()
        .enumerate()
        .flat_map(|(at, spec)| {
            spec.devices.iter().map(move |device| (format!("{}={}", spec.kind, device.name), (at, device)))
        })
        .collect();
    let (mut planned, mut used) = (Vec::new(), Vec::new());
    for name in names {
        let Some((at, device)) = devices.get(name) else {
            return Err(Error::NotFound { what: "CDI device", id: name.clone() });
        };
        if !used.contains(at) {
            used.push(*at);
            planned.extend(specs.get(*at).map(|spec| &spec.container_edits));
        }
        planned.push(&device.container_edits);
    }
    Ok(planned)
}

fn edit(config: &mut ContainerConfig, edits: &Edits, owners: &mut Vec<NodeOwner>) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Unsupported(format!(
            "a CDI device of the container asks for {what}, which this runtime has not"
        )))
    };
    if let Some(hook) = edits.hooks.first() {
        return refuse(format!("the {} hook {}", hook.hook_name, hook.path));
    }
    if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
        return refuse("Intel RDT or network devices".to_owned());
    }
    for line in &edits.env {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        config.envs.push(KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() });
    }
    for node in &edits.device_nodes {
        let host_path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
        config.devices.push(Device {
            container_path: node.path.clone(),
            host_path: host_path.clone(),
            permissions: if node.permissions.is_empty() { "rw".to_owned() } else { node.permissions.clone() },
        });
        if node.file_mode.is_some() || node.uid.is_some() || node.gid.is_some() {
            let Node { path, file_mode, uid, gid, .. } = node.clone();
            owners.push(NodeOwner { path, mode: file_mode.map(|mode| mode & 0o7777), uid, gid });
        }
    }
    for bind in &edits.mounts {
        if !matches!(bind.kind.as_str(), "" | "bind" | "none") {
            return refuse(format!("a {} mount at {}", bind.kind, bind.container_path));
        }
        config.mounts.push(Mount {
            host_path: bind.host_path.clone(),
            container_path: bind.container_path.clone(),
            readonly: bind.options.iter().any(|option| option == "ro"),
            ..Mount::default()
        });
    }
    let groups = edits.additional_gids.iter().filter(|gid| **gid != 0).map(|gid| i64::from(*gid));
    if edits.additional_gids.iter().any(|gid| *gid != 0) {
        let linux = config.linux.get_or_insert_with(Default::default);
        linux.security_context.get_or_insert_with(Default::default).supplemental_groups.extend(groups);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::CdiDevice;

    const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/device
containerEdits:
  env: ["VENDOR=all"]
devices:
- name: one
  containerEdits:
    additionalGids: [0, 44]
    deviceNodes:
    - {path: /dev/inside, hostPath: /dev/null, permissions: r, fileMode: 432, gid: 44}
    mounts:
    - {hostPath: /usr/lib/vendor, containerPath: /opt/vendor, options: [ro, nosuid]}
- name: two
  containerEdits:
    env: ["TWO=2"]
- name: hooked
  containerEdits:
    hooks: [{hookName: createContainer, path: /usr/bin/nvidia-ctk}]
"#;

    fn config(names: &[&str]) -> ContainerConfig {
        let device = |name: &&str| CdiDevice { name: format!("vendor.com/device={name}") };
        ContainerConfig { cdi_devices: names.iter().map(device).collect(), ..ContainerConfig::default() }
    }

    fn node() -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("cdi")).unwrap();
        std::fs::write(etc.path().join("cdi/vendor.yaml"), SPEC).unwrap();
        std::fs::write(etc.path().join("cdi/broken.json"), "{").unwrap();
        etc
    }

    #[test]
    fn devices_become_part_of_the_request() {
        let (etc, mut config) = (node(), config(&["one", "two"]));
        let owners = apply(&mut config, etc.path()).unwrap();
        let env: Vec<_> = config.envs.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(env, ["VENDOR", "TWO"], "the file's once, before its devices'");
        let device = &config.devices[0];
        assert_eq!(
            (device.host_path.as_str(), device.container_path.as_str(), device.permissions.as_str()),
            ("/dev/null", "/dev/inside", "r")
        );
        assert!(config.mounts[0].readonly && config.mounts[0].host_path == "/usr/lib/vendor");
        let security = config.linux.unwrap().security_context.unwrap();
        assert_eq!(security.supplemental_groups, [44]);
        let owner = NodeOwner { path: "/dev/inside".into(), mode: Some(0o660), uid: None, gid: Some(44) };
        assert_eq!(owners, [owner]);
    }

    #[test]
    fn unknown_devices_and_hooks_are_refused_by_name() {
        let etc = node();
        let unknown = apply(&mut config(&["three"]), etc.path()).unwrap_err().to_string();
        assert!(unknown.contains("vendor.com/device=three"), "{unknown}");
        let hooked = apply(&mut config(&["hooked"]), etc.path()).unwrap_err().to_string();
        assert!(hooked.contains("/usr/bin/nvidia-ctk"), "{hooked}");
    }
}
