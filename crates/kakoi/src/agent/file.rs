//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): what of it is honoured, what is ignored with a warning that
//! names it, and what is refused: a misspelt field, or a setting that would leave the node open.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kubelet::{EvictionSettings, LogLimits, ShutdownSettings, Threshold};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::eviction::{self, EvictionError};
use crate::cgroup::CgroupDriver;
use crate::shutdown::{self, ShutdownError};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// Fields that upstream has and this kubelet does not follow.
const IGNORED: &[&str] = &[
    "cgroupRoot",
    "cgroupsPerQOS",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "contentType",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "crashLoopBackOff",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "failCgroupV1",
    "failSwapOn",
    "fileCheckFrequency",
    "hairpinMode",
    "healthzBindAddress",
    "healthzPort",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReserved",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "maxParallelImagePulls",
    "memoryManagerPolicy",
    "memorySwap",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "podPidsLimit",
    "podsPerCore",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "readOnlyPort",
    "registerNode",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "reservedSystemCPUs",
    "runOnce",
    "runtimeRequestTimeout",
    "serializeImagePulls",
    "showHiddenMetricsForVersion",
    "singleProcessOOMKill",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReserved",
    "systemReservedCgroup",
    "tlsCipherSuites",
    "tlsMinVersion",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// The fields that are honoured.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    #[serde(rename = "tlsCertFile")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    pub(crate) tls_private_key_file: Option<PathBuf>,
    pub(crate) rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    pub(crate) server_tls_bootstrap: Option<bool>,
    #[serde(default)]
    pub(crate) authentication: Authentication,
    #[serde(default)]
    authorization: Authorization,
    pub(crate) static_pod_path: Option<PathBuf>,
    pub(crate) pod_logs_dir: Option<PathBuf>,
    pub(crate) cluster_domain: Option<String>,
    #[serde(rename = "clusterDNS", default)]
    pub(crate) cluster_dns: Vec<String>,
    pub(crate) max_pods: Option<u32>,
    /// Where the runtime does not say which it has.
    pub(crate) cgroup_driver: Option<CgroupDriver>,
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    pub(crate) resolv_conf: Option<PathBuf>,
    #[serde(default)]
    pub(crate) feature_gates: BTreeMap<String, bool>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<usize>,
    pub(crate) seccomp_default: Option<bool>,
    pub(crate) container_runtime_endpoint: Option<String>,
    #[serde(default)]
    pub(crate) user_namespaces: UserNamespaces,
    #[serde(default)]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
}

/// `userNamespaces`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UserNamespaces {
    pub(crate) ids_per_pod: Option<i64>,
}

/// `authentication`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Authentication {
    #[serde(default)]
    pub(crate) x509: X509,
    #[serde(default)]
    webhook: Webhook,
    #[serde(default)]
    anonymous: Switch,
}

/// `authentication.x509`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct X509 {
    #[serde(rename = "clientCAFile")]
    pub(crate) client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Webhook {
    enabled: Option<bool>,
    /// Answers are kept as long as upstream keeps them by default.
    #[serde(rename = "cacheTTL")]
    _cache_ttl: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    enabled: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Authorization {
    mode: Option<String>,
    #[serde(rename = "webhook")]
    _webhook: Option<Value>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("can't read the KubeletConfiguration {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("the KubeletConfiguration {}: {cause}", .path.display())]
    Parse { path: PathBuf, cause: String },
    #[error("the KubeletConfiguration {}: strict decoding error: unknown field {field:?}", .path.display())]
    Unknown { path: PathBuf, field: String },
    #[error("the KubeletConfiguration {}: {field}: {why}", .path.display())]
    Refused { path: PathBuf, field: &'static str, why: &'static str },
    #[error("the KubeletConfiguration {}: {cause}", .path.display())]
    Eviction { path: PathBuf, cause: EvictionError },
    #[error("the KubeletConfiguration {}: invalid configuration: {cause}", .path.display())]
    Shutdown { path: PathBuf, cause: ShutdownError },
    #[error("the KubeletConfiguration {}: containerLogMaxSize {value:?} is no amount such as `10Mi`", .path.display())]
    LogSize { path: PathBuf, value: String },
}

/// The settings of a file, all of it as it was written (for `/configz`), and what of it is ignored.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) settings: Settings,
    pub(crate) eviction: EvictionSettings,
    pub(crate) logs: LogLimits,
    pub(crate) shutdown: ShutdownSettings,
    pub(crate) whole: Value,
    pub(crate) ignored: Vec<String>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read, has a field that does not exist, or a value that cannot be honoured and must be.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let text =
            fs::read_to_string(path).map_err(|cause| FileError::Read { path: path.to_owned(), cause })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let parse = |cause: &dyn std::fmt::Display| FileError::Parse {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let whole: Map<String, Value> = serde_saphyr::from_str(text).map_err(|error| parse(&error))?;
        let said = |field: &str| whole.get(field).and_then(Value::as_str).unwrap_or_default();
        if said("apiVersion") != API_VERSION || said("kind") != KIND {
            return Err(parse(&format!("it must have apiVersion {API_VERSION} and kind {KIND}")));
        }
        let mut kept = whole.clone();
        kept.retain(|field, _| !matches!(field.as_str(), "apiVersion" | "kind"));
        let is_ignored = |field: &&String| IGNORED.binary_search(&field.as_str()).is_ok();
        let ignored: Vec<String> = kept.keys().filter(is_ignored).cloned().collect();
        let is_elsewhere = |field: &str| eviction::NAMES.contains(&field) || shutdown::NAMES.contains(&field);
        kept.retain(|field, _| !ignored.contains(field) && !is_elsewhere(field));
        let fields: eviction::Fields =
            serde_json::from_value(Value::Object(whole.clone())).map_err(|error| parse(&error))?;
        let eviction = fields.settings();
        let eviction = eviction.map_err(|cause| FileError::Eviction { path: path.to_owned(), cause })?;
        let fields: shutdown::Fields =
            serde_json::from_value(Value::Object(whole.clone())).map_err(|error| parse(&error))?;
        let shutdown = fields.settings();
        let shutdown = shutdown.map_err(|cause| FileError::Shutdown { path: path.to_owned(), cause })?;
        let settings: Settings =
            serde_json::from_value(Value::Object(kept)).map_err(|error| unknown_or(path, &error))?;
        settings.refuse_open_doors(path)?;
        let logs = log_limits(path, &settings)?;
        Ok(Self { settings, eviction, logs, shutdown, whole: Value::Object(whole), ignored })
    }
}

/// serde's `unknown field` in upstream's words.
fn unknown_or(path: &Path, error: &serde_json::Error) -> FileError {
    let text = error.to_string();
    let field = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    match field {
        Some(field) => FileError::Unknown { path: path.to_owned(), field: field.to_owned() },
        None => FileError::Parse { path: path.to_owned(), cause: text },
    }
}

impl Settings {
    /// What would let everybody in is refused rather than ignored.
    fn refuse_open_doors(&self, path: &Path) -> Result<(), FileError> {
        let refuse = |field, why| Err(FileError::Refused { path: path.to_owned(), field, why });
        if self.authentication.anonymous.enabled == Some(true) {
            return refuse(
                "authentication.anonymous.enabled",
                "anonymous requests are not served; set it to false",
            );
        }
        if self.authentication.webhook.enabled == Some(false) {
            return refuse(
                "authentication.webhook.enabled",
                "tokens are always checked; take it away or set it to true",
            );
        }
        if self.authorization.mode.as_deref().is_some_and(|mode| mode != "Webhook") {
            return refuse(
                "authorization.mode",
                "the API server always says who may do what; set it to Webhook",
            );
        }
        Ok(())
    }
}

fn log_limits(path: &Path, settings: &Settings) -> Result<LogLimits, FileError> {
    let mut limits = LogLimits::default();
    if let Some(value) = &settings.container_log_max_size {
        let bad = || FileError::LogSize { path: path.to_owned(), value: value.clone() };
        match Threshold::parse(value) {
            Some(Threshold::Amount(bytes)) => limits.max_size = bytes,
            _ => return Err(bad()),
        }
    }
    limits.max_files = settings.container_log_max_files.unwrap_or(limits.max_files).max(2);
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<File, String> {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}");
        File::parse(Path::new("k.yaml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_honoured_ignored_by_name_or_refused() {
        let file = parse("maxPods: 20\nclusterDNS: [10.96.0.10]\nevictionHard: {memory.available: 5%}\nsyncFrequency: 1m\nhairpinMode: none\ncgroupDriver: systemd\n").unwrap();
        assert_eq!(file.settings.max_pods, Some(20));
        assert_eq!(file.settings.cluster_dns, ["10.96.0.10"]);
        assert_eq!(file.eviction.hard.memory, Threshold::Percent(5));
        assert_eq!(file.ignored, ["syncFrequency", "hairpinMode"], "in the order of the file");
        assert_eq!(file.settings.cgroup_driver, Some(CgroupDriver::Systemd));
        assert_eq!(file.whole["syncFrequency"], "1m");
        let graceful = parse("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n").unwrap();
        assert_eq!(graceful.shutdown.requested().as_secs(), 30);
        assert!(file.shutdown.is_off() && graceful.ignored.is_empty());
        let text = parse("shutdownGracePeriodCriticalPods: 10s\n").unwrap_err();
        assert!(
            text.contains("k.yaml: invalid configuration: shutdownGracePeriodCriticalPods 10s must be"),
            "{text}"
        );
        let text = parse("maxPod: 20\n").unwrap_err();
        assert_eq!(text, "the KubeletConfiguration k.yaml: strict decoding error: unknown field \"maxPod\"");
        assert!(parse("userNamespaces: {idsPerPods: 1}\n").unwrap_err().contains("idsPerPods"));
    }

    #[test]
    fn an_open_door_is_refused_with_its_field() {
        for (fields, field) in [
            ("authentication: {anonymous: {enabled: true}}", "authentication.anonymous.enabled"),
            ("authentication: {webhook: {enabled: false}}", "authentication.webhook.enabled"),
            ("authorization: {mode: AlwaysAllow}", "authorization.mode"),
            ("evictionHard: {memory.availabel: 1Mi}", "memory.availabel"),
        ] {
            assert!(parse(fields).unwrap_err().contains(field), "{fields}");
        }
        let other = File::parse(Path::new("k.yaml"), "kind: Pod\napiVersion: v1\n").unwrap_err();
        assert!(other.to_string().contains("KubeletConfiguration"), "{other}");
    }

    #[test]
    fn the_list_of_ignored_fields_can_be_searched() {
        assert!(IGNORED.is_sorted());
    }
}
