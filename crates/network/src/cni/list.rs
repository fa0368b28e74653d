//! A network's configuration: which plugins it has, and what each is told on its standard input. Pure, but for
//! [`choose`], which reads the directory.
//!
//! Source: CNI specification 1.1, sections 1 and 4 (configuration format, deriving a plugin's configuration).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::NetworkError;
use crate::port::PortMapping;

/// Versions of the protocol in which a result lists interfaces and addresses as it does today, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Versions that have no `CHECK`.
const WITHOUT_CHECK: [&str; 2] = ["0.3.0", "0.3.1"];

/// The first version that has `STATUS` and `GC`.
const WITH_STATUS: &str = "1.1.0";

/// The attachments that are there, in what `GC` is told.
const VALID: &str = "cni.dev/valid-attachments";

/// The capability of a plugin that opens host ports.
const PORTS: &str = "portMappings";

/// A list of plugins that make a network together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct List {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) cni_version: String,
    /// Further versions that the network can be used with; the newest that kakoi speaks is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cni_versions: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) disable_check: bool,
    #[serde(default, rename = "disableGC", skip_serializing_if = "std::ops::Not::not")]
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin: the program's name, and the rest as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    #[serde(rename = "type")]
    pub(crate) program: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl List {
    /// Reads a `.conflist`, or a `.conf` with one plugin.
    ///
    /// # Errors
    /// A text that names what is missing or unusable.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let value = if value.get("plugins").is_some() { value } else { alone(&value) };
        let mut list: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let offers = |version: &&str| {
            list.cni_version == *version || list.cni_versions.iter().any(|other| other == version)
        };
        if let Some(newest) = VERSIONS.iter().copied().rev().find(offers) {
            newest.clone_into(&mut list.cni_version);
        }
        list.check().map(|()| list)
    }

    fn check(&self) -> Result<(), String> {
        if !is_plain(&self.name) {
            return Err(format!("its name {:?} is not made of letters, digits, `-`, `_` and `.`", self.name));
        }
        if !VERSIONS.contains(&self.cni_version.as_str()) {
            let known = VERSIONS.join(", ");
            return Err(format!("its cniVersion is {:?}; kakoi speaks {known}", self.cni_version));
        }
        if self.plugins.is_empty() {
            return Err("it has no plugins".to_owned());
        }
        let wrong = self.plugins.iter().find(|plugin| !is_plain(&plugin.program));
        wrong.map_or(Ok(()), |plugin| Err(format!("the type {:?} is not a program's name", plugin.program)))
    }

    /// Whether the network can be asked if a sandbox still is as it was made.
    pub(crate) fn has_check(&self) -> bool {
        !self.disable_check && !WITHOUT_CHECK.contains(&self.cni_version.as_str())
    }

    /// Whether the network can be asked if it takes sandboxes.
    pub(crate) fn has_status(&self) -> bool {
        self.cni_version == WITH_STATUS
    }

    /// Whether the network can be told which sandboxes there are, so that it removes what is of others.
    pub(crate) fn has_gc(&self) -> bool {
        self.has_status() && !self.disable_gc
    }

    /// What `plugin` gets on its standard input when it is told which sandboxes have the link `link`.
    pub(crate) fn plan_gc(&self, plugin: &Plugin, sandboxes: &[String], link: &str) -> Value {
        let mut input = self.plan_input(plugin, &[], None);
        let valid = sandboxes.iter().map(|id| json!({"containerID": id, "ifname": link}));
        if let Some(fields) = input.as_object_mut() {
            fields.insert(VALID.to_owned(), valid.collect());
        }
        input
    }

    /// Whether a plugin of the network opens host ports.
    pub(crate) fn opens_ports(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.has_capability(PORTS))
    }

    /// What `plugin` gets on its standard input.
    pub(crate) fn plan_input(&self, plugin: &Plugin, ports: &[PortMapping], before: Option<&Value>) -> Value {
        let mut input = plugin.rest.clone();
        input.remove("capabilities");
        input.insert("type".to_owned(), json!(plugin.program));
        input.insert("name".to_owned(), json!(self.name));
        input.insert("cniVersion".to_owned(), json!(self.cni_version));
        if plugin.has_capability(PORTS) && !ports.is_empty() {
            let ports: Vec<Value> = ports.iter().map(port).collect();
            input.insert("runtimeConfig".to_owned(), json!({ PORTS: ports }));
        }
        if let Some(before) = before {
            input.insert("prevResult".to_owned(), before.clone());
        }
        Value::Object(input)
    }
}

impl Plugin {
    fn has_capability(&self, name: &str) -> bool {
        let declared = self.rest.get("capabilities").and_then(|all| all.get(name));
        declared.and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A configuration of one plugin, as a list of it.
fn alone(plugin: &Value) -> Value {
    let part = |key: &str| plugin.get(key).cloned().unwrap_or(Value::String(String::new()));
    json!({ "name": part("name"), "cniVersion": part("cniVersion"), "plugins": [plugin] })
}

fn port(port: &PortMapping) -> Value {
    json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.to_string(),
        "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

/// Names become parts of paths: of a plugin's program, and of what plugins keep on disk.
fn is_plain(name: &str) -> bool {
    let is_known = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) && name.chars().all(is_known)
}

/// The network in `dir`: the first file by name that ends in `.conflist`, `.conf` or `.json`.
///
/// # Errors
/// When there is none, or it can't be read or used.
pub(crate) fn choose(dir: &Path) -> Result<List, NetworkError> {
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| ["conflist", "conf", "json"].contains(&extension))
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(NetworkError::file("read the directory", dir)(error)),
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(is_configuration).collect(),
    };
    let path = entries.into_iter().min().ok_or_else(|| NetworkError::CniMissing { dir: dir.to_owned() })?;
    let text = fs::read_to_string(&path).map_err(NetworkError::file("read", &path))?;
    List::parse(&text).map_err(|reason| NetworkError::CniConfig { path, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
        {"type":"bridge","bridge":"cni0","ipam":{"type":"host-local"}},
        {"type":"portmap","snat":true,"capabilities":{"portMappings":true}}]}"#;

    fn ports() -> Vec<PortMapping> {
        vec![PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }]
    }

    #[test]
    fn each_plugin_is_told_its_own_part_and_what_came_before() {
        let list = List::parse(LIST).unwrap();
        let before = json!({"ips": []});
        let [bridge, portmap] = list.plugins.as_slice() else { panic!("two plugins") };
        assert_eq!(
            list.plan_input(bridge, &ports(), None),
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0",
                "ipam": {"type": "host-local"}})
        );
        assert_eq!(
            list.plan_input(portmap, &ports(), Some(&before)),
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "snat": true, "prevResult": before,
                "runtimeConfig": {"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]}})
        );
        assert!(list.opens_ports() && list.has_check());
    }

    #[test]
    fn a_list_is_the_same_when_it_is_written_down_and_read() {
        let list = List::parse(LIST).unwrap();
        assert_eq!(List::parse(&serde_json::to_string(&list).unwrap()), Ok(list));
    }

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        let with = |versions: &str| {
            let text = format!(
                r#"{{"cniVersion":"1.0.0","cniVersions":{versions},"name":"n","plugins":[{{"type":"x"}}]}}"#
            );
            let list = List::parse(&text).unwrap();
            (list.cni_version.clone(), list.has_status(), list.has_gc())
        };
        assert_eq!(with("[]"), ("1.0.0".to_owned(), false, false));
        assert_eq!(with(r#"["1.1.0","0.4.0"]"#), ("1.1.0".to_owned(), true, true));
        assert_eq!(with(r#"["2.0.0"]"#), ("1.0.0".to_owned(), false, false));
        let kept =
            List::parse(r#"{"cniVersion":"1.1.0","disableGC":true,"name":"n","plugins":[{"type":"x"}]}"#);
        assert!(!kept.unwrap().has_gc());
    }

    #[test]
    fn a_configuration_of_one_plugin_is_a_list_of_it() {
        let list = List::parse(r#"{"cniVersion":"0.3.1","name":"one","type":"ptp","mtu":1400}"#).unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("one", 1));
        let input = list.plan_input(&list.plugins[0], &[], None);
        assert_eq!(input, json!({"cniVersion": "0.3.1", "name": "one", "type": "ptp", "mtu": 1400}));
        assert!(!list.has_check() && !list.opens_ports());
    }

    #[test]
    fn what_is_unusable_is_named() {
        let refused = |text: &str| List::parse(text).unwrap_err();
        assert!(refused("{").contains("not JSON"));
        assert!(refused(r#"{"cniVersion":"1.0.0","name":"a/b","plugins":[{"type":"x"}]}"#).contains("a/b"));
        assert!(refused(r#"{"cniVersion":"0.2.0","name":"a","plugins":[{"type":"x"}]}"#).contains("0.2.0"));
        assert!(refused(r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#).contains("no plugins"));
        assert!(
            refused(r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../sh"}]}"#).contains("../sh")
        );
    }

    #[test]
    fn the_first_configuration_by_name_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(choose(dir.path()), Err(NetworkError::CniMissing { .. })));
        assert!(matches!(choose(&dir.path().join("none")), Err(NetworkError::CniMissing { .. })));
        fs::write(dir.path().join("00-notes.txt"), "not ours").unwrap();
        fs::write(dir.path().join("20-b.conflist"), "{").unwrap();
        fs::write(dir.path().join("10-a.conflist"), LIST).unwrap();
        assert_eq!(choose(dir.path()).unwrap().name, "pods");
        fs::write(dir.path().join("05-broken.conf"), "{").unwrap();
        let broken = choose(dir.path()).unwrap_err().to_string();
        assert!(broken.contains("05-broken.conf") && broken.contains("not JSON"), "{broken}");
    }
}
