//! The command line. Names, flags and exit codes are the project's promise: 0 done, 1 the thing asked failed,
//! 2 the command line is wrong.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::feature::{FEATURES, FeatureInfo};
use clap::{Args, Parser, Subcommand, ValueEnum};
use userns::policy::Policy;

use crate::cgroup::CgroupDriver;
use crate::config::Flags;
use crate::owner::Subject;

/// Run Kubernetes Pods on this machine, each in a user namespace of its own.
#[derive(Debug, Parser)]
#[command(name = "kakoi", version, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How log lines look (standard error). The level is in the variable `KAKOI_LOG`, `info` by default.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole node: API server, controllers, scheduler, kubelet and container runtime
    Up(Up),
    /// Stop the Pods and take the node's network down; what is stored stays for the next `up`
    Down(Down),
    /// Serve the container runtime alone, over CRI
    Runtime(Runtime),
    /// Run the node agent alone: under any API server, over any container runtime that serves CRI
    Kubelet(Kubelet),
    /// Run the API server alone
    Apiserver(Apiserver),
    /// Run the controllers alone, under any API server
    ControllerManager(ControllerManager),
    /// Run the scheduler alone, under any API server
    Scheduler(Scheduler),
    /// Show the node's ID space: the pool and why, the Pods' blocks, quarantined records
    Userns(Query),
    /// Tell who owns a host ID, a range of them, a file or a process
    WhoOwns(WhoOwns),
    /// Say which Pods would be fenced, which not, and what to change
    Policy(PolicyArgs),
    /// Find out what this machine lacks for Pods in user namespaces, by trying it
    Check(Query),
    /// Pull, load, list, pin and remove images
    Image(Image),
    /// Save the store of the API server to a file, or put it back
    Snapshot(Snapshot),
    /// Show what this program is and what this machine lets it use
    Version(Output),
}

/// Which instance is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct Instance {
    /// Put DIR before every path of the instance, so that several can run side by side
    #[arg(long, value_name = "DIR", default_value = "/", global = true)]
    pub(crate) root: PathBuf,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// How the result is printed
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Text)]
    pub(crate) output: OutputFormat,
}

#[derive(Debug, Args)]
#[command(after_help = gates())]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Settings, in YAML [default: <root>/etc/kakoi/config.yaml, which need not exist]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The API server's port [default: 6443; with --root, derived from it]
    #[arg(long, value_name = "N")]
    secure_port: Option<u16>,
    /// The kubelet's port [default: 10250; with --root, derived from it]
    #[arg(long, value_name = "N")]
    kubelet_port: Option<u16>,
    /// The address that both listen on [default: 0.0.0.0; with IPv6 Pods, ::]
    #[arg(long, value_name = "ADDRESS")]
    bind_address: Option<IpAddr>,
    /// The Node's name [default: the machine's]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The Pods' addresses; with a range of each family, as in `10.210.0.0/24,fd85::/64`, Pods have both
    /// [default: 10.210.0.0/24; with --root, derived from it]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pod_cidr: Option<String>,
    /// An OCI runtime that Pods can choose by their runtime class, once for each; runc and crun need none where they are installed
    #[arg(long, value_name = "NAME=PATH")]
    runtime_handler: Vec<String>,
    /// Features to turn on or off in every component at once
    #[arg(long, value_name = "A=true,…")]
    feature_gates: Option<String>,
    /// Which Pods without `hostUsers` get a user namespace: none (opt-in), those that can (default), all (always);
    /// a namespace's label kakoi.dev/user-namespaces overrules it
    #[arg(long, value_name = "opt-in|default|always")]
    user_namespaces: Option<Policy>,
}

/// The table of feature gates, as help shows it.
fn gates() -> String {
    let row = |gate: &FeatureInfo| {
        let (stage, default) = (gate.stage.as_str(), gate.default);
        format!("\n  {}={default} ({stage} since {})\n          {}", gate.name, gate.since, gate.docs)
    };
    std::iter::once("Feature gates, with their defaults:".to_owned())
        .chain(FEATURES.iter().map(row))
        .collect()
}

impl Up {
    /// The settings as flags.
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            config: self.config.clone(),
            secure_port: self.secure_port,
            kubelet_port: self.kubelet_port,
            bind_address: self.bind_address,
            node_name: self.node_name.clone(),
            pod_cidr: self.pod_cidr.clone(),
            runtime_handlers: self.runtime_handler.clone(),
            feature_gates: self.feature_gates.clone(),
            user_namespaces: self.user_namespaces,
            ..Flags::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Seconds that containers have to end after their stop signal, before they are killed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) grace_period: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Runtime {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Where to listen [default: unix://<root>/run/kakoi/kakoi.sock]
    #[arg(long, value_name = "unix:///PATH")]
    pub(crate) listen: Option<String>,
    /// The Pods' addresses; with a range of each family, as in `10.210.0.0/24,fd85::/64`, Pods have both
    /// [default: 10.210.0.0/24; with --root, derived from it]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub(crate) pod_cidr: Option<String>,
    /// Who makes cgroups, as kubelets are told [default: `cgroupDriver` of config.yaml, else cgroupfs]
    #[arg(long, value_name = "DRIVER")]
    pub(crate) cgroup_driver: Option<CgroupDriver>,
    /// Leave the Pod network to CNI plugins: the directory with their configuration, usually /etc/cni/net.d
    #[arg(long, value_name = "DIR", conflicts_with = "pod_cidr")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are, once for each directory [default: /opt/cni/bin and /usr/lib/cni]
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
    /// An OCI runtime that Pods can choose by their runtime class, once for each; runc and crun need none where they are installed
    #[arg(long = "runtime-handler", value_name = "NAME=PATH")]
    pub(crate) handlers: Vec<String>,
}

/// Flags named as upstream's kubelet names them.
#[derive(Clone, Debug, Args)]
pub(crate) struct Kubelet {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// How the API server is reached, as the user `system:node:<name>`
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// How a client certificate is asked for, with a bootstrap token, where the kubeconfig is missing or of no use any more
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
    /// A `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the container runtime serves CRI [default: unix://<root>/run/kakoi/kakoi.sock]
    #[arg(long, value_name = "unix:///PATH")]
    pub(crate) container_runtime_endpoint: Option<String>,
    /// The Node's name [default: the machine's]
    #[arg(long, value_name = "NAME", alias = "node-name")]
    pub(crate) hostname_override: Option<String>,
    /// The Node's address, or one of each family [default: the one that leads out]
    #[arg(long, value_name = "ADDRESS[,ADDRESS]", value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Labels of the Node when it is registered
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    pub(crate) node_labels: Vec<String>,
    /// Which Pods that do not say get a user namespace of their own: opt-in, default or always [default: default]
    #[arg(long, value_name = "POLICY")]
    pub(crate) user_namespaces: Option<Policy>,
    /// Where the serving certificate is kept; a self-signed one is made if there is none [default: <root>/var/lib/kubelet/pki]
    #[arg(long, value_name = "DIR")]
    pub(crate) cert_dir: Option<PathBuf>,
    /// Features to turn on or off
    #[arg(long, value_name = "A=true,…")]
    pub(crate) feature_gates: Option<String>,
}

/// Flags named as upstream's kube-apiserver names them, where they mean the same.
#[derive(Clone, Debug, Args)]
#[command(after_help = gates())]
pub(crate) struct Apiserver {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Settings, in YAML [default: <root>/etc/kakoi/config.yaml, which need not exist]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The port [default: 6443; with --root, derived from it]
    #[arg(long, value_name = "N")]
    secure_port: Option<u16>,
    /// The address to listen on [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS")]
    bind_address: Option<IpAddr>,
    /// The address at which others reach the server [default: the one that leads out]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Static tokens: `token,user,uid,"group1,group2"` a line
    #[arg(long, value_name = "FILE")]
    pub(crate) token_auth_file: Option<PathBuf>,
    /// Where each request is recorded, as a line of JSON [default: nowhere]
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// Features to turn on or off
    #[arg(long, value_name = "A=true,…")]
    feature_gates: Option<String>,
    /// What absent `hostUsers` means on the cluster's nodes: opt-in, default or always [default: default]
    #[arg(long, value_name = "POLICY")]
    user_namespaces: Option<Policy>,
}

impl Apiserver {
    /// The settings as flags.
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            config: self.config.clone(),
            secure_port: self.secure_port,
            bind_address: self.bind_address,
            feature_gates: self.feature_gates.clone(),
            user_namespaces: self.user_namespaces,
            ..Flags::default()
        }
    }
}

/// Flags named as upstream's kube-controller-manager names them.
#[derive(Clone, Debug, Args)]
pub(crate) struct ControllerManager {
    /// How the API server is reached; `kakoi apiserver` writes `controller-manager.kubeconfig` beside its store
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// The certificates with which Pods verify the API server [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub(crate) root_ca_file: Option<PathBuf>,
    /// The authority that signs certificate requests; none are signed without it
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub(crate) cluster_signing_cert_file: Option<PathBuf>,
    /// Its key (PKCS #8)
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub(crate) cluster_signing_key_file: Option<PathBuf>,
    /// How long the certificates are good that it signs, at most
    #[arg(long, value_name = "DURATION", default_value = "8760h0m0s", value_parser = crate::duration::parse)]
    pub(crate) cluster_signing_duration: Duration,
}

/// Flags named as upstream's kube-scheduler names them.
#[derive(Clone, Debug, Args)]
pub(crate) struct Scheduler {
    /// How the API server is reached; `kakoi apiserver` writes `scheduler.kubeconfig` beside its store
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// What absent `hostUsers` means on the cluster's nodes: under `always` each Pod needs a node that can fence it
    #[arg(long, value_name = "opt-in|default|always")]
    pub(crate) user_namespaces: Option<Policy>,
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    #[command(flatten)]
    pub(crate) instance: Instance,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct WhoOwns {
    /// A UID (`131072`), a GID (`gid:131072`), a range (`131072-196607`), a path (`/srv/x`) or a process (`pid:4711`)
    pub(crate) what: Subject,
    #[command(flatten)]
    pub(crate) query: Query,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Read manifests (files, directories, `-` for standard input: Helm's output too) and tell for each Pod, and each
    /// object that makes Pods, whether it is fenced, exempt or refused, and why. No cluster is needed
    Explain(Explain),
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A file, a directory with everything below it, or `-`
    #[arg(long = "filename", short = 'f', value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The node's policy; labels of namespaces among the manifests overrule it
    #[arg(long, value_name = "opt-in|default|always", default_value_t = Policy::Default)]
    pub(crate) user_namespaces: Policy,
    /// The length of a Pod's ID range, `userNamespaces.idsPerPod`
    #[arg(long, value_name = "N", default_value_t = userns::DEFAULT_IDS_PER_POD)]
    pub(crate) ids_per_pod: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(flatten)]
    pub(crate) instance: Instance,
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) instance: Instance,
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Write everything that is stored, as it is at one revision, to FILE (mode 0600: it holds Secrets). The server may
    /// run, or be down
    Save {
        /// The file to write; one that is there is replaced when the new one is whole
        file: PathBuf,
    },
    /// Put back what a snapshot holds; the server must be down. The store that is there is kept beside the new one, and
    /// clients list everything anew
    Restore {
        /// A file that `kakoi snapshot save` has written
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Fetch an image from its registry, or from the mirrors in <root>/etc/kakoi/certs.d
    Pull {
        /// The image, as in a Pod: `nginx`, `registry.example/app:1.2`, `app@sha256:…`
        reference: String,
    },
    /// Take images from an archive (`docker save`, OCI) or from a directory in OCI layout
    Load {
        /// The archive or directory
        path: PathBuf,
        /// The name to give, where the archive holds one image without a name
        #[arg(long)]
        name: Option<String>,
    },
    /// List the images of the node
    List(Output),
    /// Remove an image, by name or ID
    Remove {
        /// The image
        reference: String,
    },
    /// Keep an image on the node when others that nothing uses are removed to make room
    Pin {
        /// The image, by name or ID
        reference: String,
    },
    /// Take the mark of `pin` away
    Unpin {
        /// The image, by name or ID
        reference: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_the_gates() {
        let help = Cli::command().find_subcommand_mut("up").unwrap().render_help().to_string();
        for gate in FEATURES {
            assert!(help.contains(gate.name), "{help}");
        }
    }

    #[test]
    fn flags_reach_the_configuration() {
        let cli =
            Cli::parse_from(["kakoi", "up", "--root", "/r", "--secure-port", "1", "--feature-gates=A=true"]);
        let Command::Up(up) = cli.command else { panic!("not `up`") };
        assert_eq!((up.flags().secure_port, up.flags().feature_gates.as_deref()), (Some(1), Some("A=true")));
    }
}
