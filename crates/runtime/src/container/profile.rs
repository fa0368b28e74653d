//! `AppArmor` and `SELinux`: what the running kernel has is applied, what it has not is refused where it was asked for by
//! name. Profiles are loaded by whoever runs the node.

use std::path::Path;

use cri::v1::security_profile::ProfileType;
use cri::v1::{LinuxContainerSecurityContext, Mount, SecurityProfile};

use crate::error::{Error, Result};

const LOCALHOST: &str = "localhost/";

/// A profile as old clients write it: `runtime/default`, `unconfined` or `localhost/<name>`. Empty is none.
pub(super) fn from_text(text: &str) -> Option<SecurityProfile> {
    let (kind, name) = match text {
        "" => return None,
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
        "unconfined" => (ProfileType::Unconfined, ""),
        other => (ProfileType::Localhost, other.strip_prefix(LOCALHOST).unwrap_or(other)),
    };
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

/// The `AppArmor` profile to change to, if any. The default is to have none of our own: seccomp, capabilities and the
/// user namespace confine.
pub(super) fn apparmor(security: &LinuxContainerSecurityContext) -> Result<Option<String>> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    apparmor_where(security, enabled.starts_with('Y'))
}

fn apparmor_where(security: &LinuxContainerSecurityContext, is_enabled: bool) -> Result<Option<String>> {
    let Some(profile) = security.apparmor.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    if profile.profile_type != i32::from(ProfileType::Localhost) {
        return Ok(None);
    }
    let name = profile.localhost_ref.strip_prefix(LOCALHOST).unwrap_or(&profile.localhost_ref);
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Error::Invalid(format!("the AppArmor profile {name:?} is no name of a profile")));
    }
    if is_enabled {
        return Ok(Some(name.to_owned()));
    }
    Err(Error::Unsupported(format!(
        "the AppArmor profile {name:?} can't be applied: this node's kernel has AppArmor neither built in nor enabled"
    )))
}

/// The `SELinux` label of the process, if the kernel has `SELinux` enabled; without it options have no meaning and are
/// left alone, as everywhere.
pub(super) fn selinux(security: &LinuxContainerSecurityContext, mounts: &[Mount]) -> Result<Option<String>> {
    selinux_where(security, mounts, Path::new("/sys/fs/selinux/enforce").exists())
}

fn selinux_where(
    security: &LinuxContainerSecurityContext,
    mounts: &[Mount],
    is_enabled: bool,
) -> Result<Option<String>> {
    if !is_enabled {
        return Ok(None);
    }
    if let Some(mount) = mounts.iter().find(|mount| mount.selinux_relabel) {
        return Err(Error::Unsupported(format!(
            "the mount at {} is to be relabelled for SELinux, which this runtime does not do; label it on the node",
            mount.container_path
        )));
    }
    let Some(options) = security.selinux_options.as_ref().filter(|_| !security.privileged) else {
        return Ok(None);
    };
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let (user, role) = (or(&options.user, "system_u"), or(&options.role, "system_r"));
    let (kind, level) = (or(&options.r#type, "container_t"), or(&options.level, "s0"));
    Ok(Some(format!("{user}:{role}:{kind}:{level}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::SeLinuxOption;

    fn apparmor_of(text: &str, is_enabled: bool) -> Result<Option<String>> {
        let security = LinuxContainerSecurityContext {
            apparmor: from_text(text),
            ..LinuxContainerSecurityContext::default()
        };
        apparmor_where(&security, is_enabled)
    }

    #[test]
    fn an_apparmor_profile_is_applied_where_the_kernel_has_it_and_else_refused_by_name() {
        assert_eq!(apparmor_of("localhost/strict", true).unwrap().as_deref(), Some("strict"));
        assert!(apparmor_of("localhost/strict", false).unwrap_err().to_string().contains("strict"));
        for text in ["", "runtime/default", "unconfined"] {
            assert_eq!(apparmor_of(text, false).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn selinux_options_become_a_label_where_the_kernel_has_it() {
        let options = SeLinuxOption { level: "s0:c1,c2".into(), ..SeLinuxOption::default() };
        let security = LinuxContainerSecurityContext {
            selinux_options: Some(options),
            ..LinuxContainerSecurityContext::default()
        };
        assert_eq!(selinux_where(&security, &[], false).unwrap(), None);
        let label = selinux_where(&security, &[], true).unwrap();
        assert_eq!(label.as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
        let relabelled = Mount { selinux_relabel: true, container_path: "/data".into(), ..Mount::default() };
        assert!(selinux_where(&security, &[relabelled], true).unwrap_err().to_string().contains("/data"));
    }
}
