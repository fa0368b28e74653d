//! `/etc/kakoi/config.yaml` and the flags of `kakoi up`, joined into one checked configuration. A flag wins over
//! the file; a misspelt key is refused with its name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::feature::{GateError, GateWarning, Gates};
use kubelet::ShutdownSettings;
use network::{CidrError, Family, PodCidrs};
use runtime::{HandlerConfig, HandlerError};
use serde::Deserialize;
use userns::policy::Policy;

use crate::cgroup::CgroupDriver;
use crate::places::Places;
use crate::shutdown::{self, ShutdownError};

/// The file's content. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    node_name: Option<String>,
    bind_address: Option<IpAddr>,
    secure_port: Option<u16>,
    kubelet_port: Option<u16>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    max_pods: Option<u32>,
    #[serde(rename = "tokenAuthFile")]
    static_tokens: Option<PathBuf>,
    audit_log_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "crate::duration::deserialize")]
    cluster_signing_duration: Option<Duration>,
    /// Name and program.
    #[serde(default)]
    runtime_handlers: BTreeMap<String, String>,
    cgroup_driver: Option<CgroupDriver>,
    #[serde(default, deserialize_with = "crate::duration::deserialize")]
    shutdown_grace_period: Option<Duration>,
    #[serde(default, deserialize_with = "crate::duration::deserialize")]
    shutdown_grace_period_critical_pods: Option<Duration>,
    #[serde(default)]
    shutdown_grace_period_by_pod_priority: Vec<shutdown::Period>,
    #[serde(default)]
    user_namespaces: UserNamespaces,
    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserNamespaces {
    ids_per_pod: Option<i64>,
    policy: Option<Policy>,
}

/// What the command line says; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) secure_port: Option<u16>,
    pub(crate) kubelet_port: Option<u16>,
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) node_name: Option<String>,
    pub(crate) pod_cidr: Option<String>,
    pub(crate) runtime_handlers: Vec<String>,
    pub(crate) feature_gates: Option<String>,
    pub(crate) user_namespaces: Option<Policy>,
    pub(crate) cgroup_driver: Option<CgroupDriver>,
}

/// The settings of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where the API server listens.
    pub(crate) secure_listen: SocketAddr,
    /// Where the kubelet listens.
    pub(crate) kubelet_listen: SocketAddr,
    /// The Node's name.
    pub(crate) node_name: String,
    /// The Pods' addresses.
    pub(crate) pod_cidrs: PodCidrs,
    /// The most Pods that the node takes.
    pub(crate) max_pods: u32,
    /// `userNamespaces.idsPerPod`, checked when the ID space is opened.
    pub(crate) ids_per_pod: i64,
    /// `userNamespaces.policy`: what absent `hostUsers` means.
    pub(crate) userns_policy: Policy,
    /// `tokenAuthFile` and `auditLogPath`.
    pub(crate) access: apiserver::AccessConfig,
    /// `clusterSigningDuration`: how long certificates are good that are signed on request, at most.
    pub(crate) signing_duration: Option<Duration>,
    /// `runtimeHandlers`: OCI runtimes beside those that are found by themselves; the last of a name counts.
    pub(crate) handlers: Vec<HandlerConfig>,
    /// `cgroupDriver`: who makes cgroups.
    pub(crate) cgroup_driver: CgroupDriver,
    /// `shutdownGracePeriod` and those beside it.
    pub(crate) shutdown: ShutdownSettings,
    /// Feature gates.
    pub(crate) gates: Gates,
    /// Remarks on the settings, for the log.
    pub(crate) warnings: Vec<GateWarning>,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("can't read the configuration {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("the configuration {}: {cause}", .path.display())]
    Parse { path: PathBuf, cause: String },
    #[error("the configuration: {0}")]
    Shutdown(#[from] ShutdownError),
    #[error(transparent)]
    Gates(#[from] GateError),
    #[error("{0} (runtimeHandlers, --runtime-handler)")]
    Handler(#[from] HandlerError),
    #[error("the Pods' addresses `{text}`: {cause} (--pod-cidr)")]
    PodCidr { text: String, cause: CidrError },
    #[error(
        "the node's name `{0}` is not a DNS subdomain (lower case letters, digits, `-` and `.`); set --node-name"
    )]
    NodeName(String),
}

impl Config {
    /// Joins the file and the flags over the instance's defaults.
    ///
    /// # Errors
    /// When the file can't be read or parsed, or a value is unusable; the text names file, value and remedy.
    pub(crate) fn load(places: &Places, flags: &Flags) -> Result<Self, ConfigError> {
        let file = read(&flags.config.clone().unwrap_or_else(|| places.config()), flags.config.is_some())?;
        let (gates, warnings) = Gates::parse(&gate_settings(&file, flags))?;
        let from_file = file.runtime_handlers.iter().map(|(name, program)| format!("{name}={program}"));
        let handlers = from_file.chain(flags.runtime_handlers.iter().cloned());
        let handlers = handlers.map(|text| HandlerConfig::parse(&text)).collect::<Result<_, _>>()?;
        let shutdown = shutdown::Fields {
            total: file.shutdown_grace_period,
            critical: file.shutdown_grace_period_critical_pods,
            by_priority: file.shutdown_grace_period_by_pod_priority.clone(),
        };
        let shutdown = shutdown.settings()?;
        let pod_cidr = flags.pod_cidr.clone().or_else(|| file.pod_cidr.clone());
        let pod_cidrs = parse_cidrs(pod_cidr.unwrap_or_else(|| places.pod_cidr()))?;
        let bind = flags.bind_address.or(file.bind_address).unwrap_or_else(|| any(pod_cidrs));
        let port = |flag: Option<u16>, file: Option<u16>, own: u16| flag.or(file).unwrap_or(own);
        Ok(Self {
            secure_listen: (bind, port(flags.secure_port, file.secure_port, places.secure_port())).into(),
            kubelet_listen: (bind, port(flags.kubelet_port, file.kubelet_port, places.kubelet_port())).into(),
            node_name: node_name(flags.node_name.clone().or(file.node_name))?,
            pod_cidrs,
            max_pods: file.max_pods.unwrap_or(110),
            ids_per_pod: file
                .user_namespaces
                .ids_per_pod
                .unwrap_or_else(|| userns::DEFAULT_IDS_PER_POD.into()),
            userns_policy: flags.user_namespaces.or(file.user_namespaces.policy).unwrap_or_default(),
            access: apiserver::AccessConfig {
                token_file: file.static_tokens,
                audit_log: file.audit_log_path,
                role_kubeconfigs: None,
            },
            signing_duration: file.cluster_signing_duration,
            handlers,
            cgroup_driver: flags.cgroup_driver.or(file.cgroup_driver).unwrap_or_default(),
            shutdown,
            gates,
            warnings,
        })
    }
}

/// The file's content; the default file may be missing, one named by a flag may not.
fn read(path: &Path, is_named: bool) -> Result<File, ConfigError> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_named => return Ok(File::default()),
        Err(cause) => return Err(ConfigError::Read { path: path.to_owned(), cause }),
        Ok(text) => text,
    };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(File::default());
    }
    serde_saphyr::from_str(&text)
        .map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause: cause.to_string() })
}

/// The file's gates, then the flag's, which win.
fn gate_settings(file: &File, flags: &Flags) -> String {
    let from_file = file.feature_gates.iter().map(|(name, value)| format!("{name}={value}"));
    from_file.chain(flags.feature_gates.clone()).collect::<Vec<_>>().join(",")
}

/// All addresses of the node: IPv4's, or with Pods that have IPv6 those of both families.
fn any(pod_cidrs: PodCidrs) -> IpAddr {
    match pod_cidrs.of(Family::V6) {
        Some(_) => Ipv6Addr::UNSPECIFIED.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn parse_cidrs(text: String) -> Result<PodCidrs, ConfigError> {
    text.parse().map_err(|cause| ConfigError::PodCidr { text, cause })
}

/// The given name, or the machine's own in lower case.
pub(crate) fn node_name(given: Option<String>) -> Result<String, ConfigError> {
    let name = given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().to_lowercase());
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let fits = name.len() <= 253 && name.bytes().all(good);
    if fits && edge(name.bytes().next()) && edge(name.bytes().last()) {
        return Ok(name);
    }
    Err(ConfigError::NodeName(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, flags: &Flags) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(dir.path());
        fs::create_dir_all(places.config().parent().unwrap()).unwrap();
        fs::write(places.config(), yaml).unwrap();
        Config::load(&places, flags)
    }

    #[test]
    fn a_runtime_handler_of_a_flag_comes_after_those_of_the_file_and_a_bad_one_is_named() {
        let flags = Flags { runtime_handlers: vec!["crun=/opt/crun".into()], ..Flags::default() };
        let config = load("runtimeHandlers: {crun: /usr/local/bin/crun, kata: /opt/kata}\n", &flags).unwrap();
        let handlers: Vec<String> =
            config.handlers.iter().map(|it| format!("{}={}", it.name, it.program.display())).collect();
        assert_eq!(handlers, ["crun=/usr/local/bin/crun", "kata=/opt/kata", "crun=/opt/crun"]);
        let error = load("runtimeHandlers: {crun: crun}\n", &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("crun=crun") && error.contains("--runtime-handler"), "{error}");
    }

    #[test]
    fn no_setting_is_needed() {
        let config = Config::load(&Places::new(Path::new("/nonexistent")), &Flags::default()).unwrap();
        assert_eq!((config.max_pods, config.ids_per_pod), (110, 65_536));
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = Flags { secure_port: Some(7443), ..Flags::default() };
        let config =
            load("securePort: 8443\nnodeName: one\nuserNamespaces: {idsPerPod: 131072}\n", &flags).unwrap();
        assert_eq!((config.secure_listen.port(), config.ids_per_pod), (7443, 131_072));
        assert_eq!(config.node_name, "one");
    }

    #[test]
    fn the_policy_comes_from_the_flag_then_the_file_then_us() {
        let always = Flags { user_namespaces: Some(Policy::Always), ..Flags::default() };
        let file = "userNamespaces: {policy: opt-in}\n";
        assert_eq!(load(file, &always).unwrap().userns_policy, Policy::Always);
        assert_eq!(load(file, &Flags::default()).unwrap().userns_policy, Policy::OptIn);
        assert_eq!(load("", &Flags::default()).unwrap().userns_policy, Policy::Default);
        let text = load("userNamespaces: {policy: never}\n", &Flags::default()).unwrap_err().to_string();
        assert!(text.contains("opt-in") && text.contains("always"), "{text}");
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let text = load("securPort: 1\n", &Flags::default()).unwrap_err().to_string();
        assert!(text.contains("securPort") && text.contains("config.yaml"), "{text}");
    }

    #[test]
    fn the_signers_duration_is_one() {
        let config = load("clusterSigningDuration: 1h30m\n", &Flags::default()).unwrap();
        assert_eq!(config.signing_duration, Some(Duration::from_mins(90)));
        let text = load("clusterSigningDuration: soon\n", &Flags::default()).unwrap_err().to_string();
        assert!(text.contains("\"soon\" is no duration"), "{text}");
    }

    #[test]
    fn pods_get_time_before_a_shutdown_where_the_file_says_so() {
        assert!(load("", &Flags::default()).unwrap().shutdown.is_off());
        let config =
            load("shutdownGracePeriod: 1m\nshutdownGracePeriodCriticalPods: 20s\n", &Flags::default());
        assert_eq!(config.unwrap().shutdown.requested(), Duration::from_mins(1));
        let text = load("shutdownGracePeriod: 10ms\n", &Flags::default()).unwrap_err().to_string();
        assert!(text.contains("shutdownGracePeriod"), "{text}");
    }

    #[test]
    fn cgroups_are_directories_unless_the_flag_or_the_file_says_otherwise() {
        let flags = Flags { cgroup_driver: Some(CgroupDriver::Cgroupfs), ..Flags::default() };
        let file = "cgroupDriver: systemd\n";
        assert_eq!(load("", &Flags::default()).unwrap().cgroup_driver, CgroupDriver::Cgroupfs);
        assert_eq!(load(file, &Flags::default()).unwrap().cgroup_driver, CgroupDriver::Systemd);
        assert_eq!(load(file, &flags).unwrap().cgroup_driver, CgroupDriver::Cgroupfs);
        assert!(
            load("cgroupDriver: openrc\n", &Flags::default()).unwrap_err().to_string().contains("openrc")
        );
    }

    #[test]
    fn a_file_named_by_a_flag_must_exist() {
        let flags = Flags { config: Some("/nonexistent/c.yaml".into()), ..Flags::default() };
        assert!(load("", &flags).unwrap_err().to_string().contains("/nonexistent/c.yaml"));
    }

    #[test]
    fn gates_of_the_file_and_of_the_flag_are_joined() {
        let flags = Flags { feature_gates: Some("UserNamespacesSupport=true".into()), ..Flags::default() };
        let config = load("featureGates: {UserNamespacesSupport: false}\n", &flags).unwrap();
        assert!(config.gates.is_enabled(api::feature::Feature::UserNamespacesSupport));
    }

    #[test]
    fn bad_values_are_refused_with_the_flags_name() {
        for cidr in ["10.0.0.0", "10.0.0.1/24", "x/24", "10.0.0.0/33", "10.0.0.0/24,10.1.0.0/24"] {
            let flags = Flags { pod_cidr: Some(cidr.into()), ..Flags::default() };
            assert!(load("", &flags).unwrap_err().to_string().contains("--pod-cidr"), "{cidr}");
        }
        for name in ["", "Node", "-a", "a_b", "a."] {
            let flags = Flags { node_name: Some(name.into()), ..Flags::default() };
            assert!(load("", &flags).unwrap_err().to_string().contains("--node-name"), "{name}");
        }
    }
}
