//! `kakoi version`: what this program is, what it was built from, and what this machine lets it use.

use std::fs;

use serde::Serialize;

use crate::output;

/// This program's version.
pub(crate) const KAKOI: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: &'static str,
    #[serde(rename = "version")]
    own: &'static str,
    #[serde(rename = "kubernetesVersion")]
    kubernetes: &'static str,
    git_commit: &'static str,
    build_date: &'static str,
    compiler: &'static str,
    platform: String,
    link_mode: &'static str,
    seccomp_enabled: bool,
    app_armor_enabled: bool,
}

fn this() -> Version {
    Version {
        name: "kakoi",
        own: KAKOI,
        kubernetes: apiserver::KUBERNETES_VERSION,
        git_commit: env!("KAKOI_COMMIT"),
        build_date: env!("KAKOI_DATE"),
        compiler: env!("KAKOI_COMPILER"),
        platform: format!("linux/{}", architecture()),
        link_mode: if cfg!(target_feature = "crt-static") { "static" } else { "dynamic" },
        seccomp_enabled: fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap_or(false),
        app_armor_enabled: fs::read("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|t| t.starts_with(b"Y")),
    }
}

/// The architecture as Go and OCI name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Prints the version.
pub(crate) fn print(as_json: bool) -> Result<(), serde_json::Error> {
    let version = this();
    if as_json {
        output::line(serde_json::to_string_pretty(&version)?);
        return Ok(());
    }
    output::line(format!("{} version {}", version.name, version.own));
    for (name, value) in [
        ("Kubernetes", version.kubernetes),
        ("GitCommit", version.git_commit),
        ("BuildDate", version.build_date),
        ("Compiler", version.compiler),
        ("Platform", &version.platform),
        ("LinkMode", version.link_mode),
        ("SeccompEnabled", truth(version.seccomp_enabled)),
        ("AppArmorEnabled", truth(version.app_armor_enabled)),
    ] {
        output::line(format!("{:<17}{value}", format!("{name}:")));
    }
    Ok(())
}

fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}
