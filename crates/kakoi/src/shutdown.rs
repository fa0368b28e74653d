//! The settings of a graceful shutdown, as `KubeletConfiguration` and `config.yaml` have them: read, checked as upstream
//! checks them, and turned into periods.

use std::time::Duration;

use kubelet::{ShutdownConfig, ShutdownPeriod, ShutdownSettings};
use serde::Deserialize;
use systemd::Bus;

/// The fields' names.
pub(crate) const NAMES: &[&str] =
    &["shutdownGracePeriod", "shutdownGracePeriodCriticalPods", "shutdownGracePeriodByPodPriority"];

/// The fields as they are written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Fields {
    #[serde(rename = "shutdownGracePeriod", deserialize_with = "crate::duration::deserialize")]
    pub(crate) total: Option<Duration>,
    #[serde(rename = "shutdownGracePeriodCriticalPods", deserialize_with = "crate::duration::deserialize")]
    pub(crate) critical: Option<Duration>,
    #[serde(rename = "shutdownGracePeriodByPodPriority")]
    pub(crate) by_priority: Vec<Period>,
}

/// One of `shutdownGracePeriodByPodPriority`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Period {
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    shutdown_grace_period_seconds: u32,
}

/// Settings that cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShutdownError {
    #[error("shutdownGracePeriodCriticalPods {0:?} must be <= shutdownGracePeriod {1:?}: it is a part of it")]
    Part(Duration, Duration),
    #[error("{0} {1:?} must be either zero or otherwise >= 1 sec")]
    Short(&'static str, Duration),
    #[error("Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time")]
    Both,
}

impl Fields {
    /// What they say.
    ///
    /// # Errors
    /// When they contradict each other.
    pub(crate) fn settings(&self) -> Result<ShutdownSettings, ShutdownError> {
        let total = self.total.unwrap_or_default();
        let critical = self.critical.unwrap_or_default();
        let periods = &self.by_priority;
        let named = [("shutdownGracePeriod", total), ("shutdownGracePeriodCriticalPods", critical)];
        if let Some((name, time)) = named.into_iter().find(|(_, time)| time.as_secs() == 0 && !time.is_zero())
        {
            return Err(ShutdownError::Short(name, time));
        }
        if critical > total {
            return Err(ShutdownError::Part(critical, total));
        }
        if periods.is_empty() {
            return Ok(ShutdownSettings::of_two(total, critical));
        }
        if !total.is_zero() {
            return Err(ShutdownError::Both);
        }
        let period = |period: &Period| ShutdownPeriod {
            priority: period.priority,
            grace: Duration::from_secs(period.shutdown_grace_period_seconds.into()),
        };
        Ok(ShutdownSettings::by_priority(periods.iter().map(period).collect()))
    }
}

/// The settings with this machine's logind.
pub(crate) fn on_this_machine(settings: ShutdownSettings, bus: Bus) -> ShutdownConfig {
    ShutdownConfig { settings, bus, logind_conf_dir: "/etc/systemd/logind.conf.d".into() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(fields: Value) -> Result<ShutdownSettings, String> {
        let fields: Fields = serde_json::from_value(fields).map_err(|error| error.to_string())?;
        fields.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn two_periods_or_one_for_each_priority() {
        assert!(settings(json!({})).unwrap().is_off());
        let two = settings(json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"}));
        assert_eq!(two, Ok(ShutdownSettings::of_two(Duration::from_secs(30), Duration::from_secs(10))));
        let by_priority = settings(json!({"shutdownGracePeriodByPodPriority": [
            {"priority": 100, "shutdownGracePeriodSeconds": 5}, {"shutdownGracePeriodSeconds": 20}]}));
        assert_eq!(by_priority.unwrap().requested(), Duration::from_secs(25));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (fields, text) in [
            (json!({"shutdownGracePeriodCriticalPods": "1s"}), "must be <= shutdownGracePeriod"),
            (json!({"shutdownGracePeriod": "300ms"}), "shutdownGracePeriod 300ms must be either zero"),
            (
                json!({"shutdownGracePeriod": "2s", "shutdownGracePeriodByPodPriority": [{"priority": 1}]}),
                "Cannot specify both",
            ),
            (json!({"shutdownGracePeriodByPodPriority": [{"prioritty": 1}]}), "prioritty"),
        ] {
            let refused = settings(fields).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
    }
}
