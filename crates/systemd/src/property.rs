//! A group's limits as properties of its unit. Pure. Source: `systemd.resource-control(5)` and
//! `org.freedesktop.systemd1(5)`.
//!
//! What the service manager does not know (huge pages, files of cgroup v2 by name, device rules, the OOM killer's scope of
//! a group) is left over, to be written into the group.

use sys::cgroup::Limits;

use crate::unit::{Properties, Value};

/// No limit.
const INFINITY: u64 = u64::MAX;
/// The period where none is given, as the kernel's.
const USUAL_PERIOD: u64 = 100_000;
/// A hundredth of a processor in microseconds a second: the service manager counts in these.
const HUNDREDTH: u64 = 10_000;

/// The properties, and the limits that are left over.
pub fn plan_properties(limits: &Limits) -> (Properties, Limits) {
    let mut properties = Properties::default();
    let number = |value: Option<u64>| value.map(Value::Number);
    let period = limits.cpu_period.unwrap_or(USUAL_PERIOD);
    let memory = limits.memory.unwrap_or(0);
    let bits = |list: &Option<String>| list.as_deref().map(|list| Value::Bytes(mask(list)));
    let all = [
        ("MemoryMax", number(limits.memory.map(amount))),
        ("MemorySwapMax", number(limits.memory_and_swap.map(|both| swap(both, memory)))),
        ("CPUWeight", number(limits.cpu_shares.map(sys::cgroup::weight_of))),
        ("CPUQuotaPerSecUSec", number(limits.cpu_quota.map(|quota| per_second(quota, period)))),
        ("CPUQuotaPeriodUSec", number(limits.cpu_period)),
        ("TasksMax", number(limits.pids.map(amount))),
        ("AllowedCPUs", bits(&limits.cpus)),
        ("AllowedMemoryNodes", bits(&limits.memory_nodes)),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            properties.set(name, value);
        }
    }
    let rest = Limits {
        huge_pages: limits.huge_pages.clone(),
        oom_group: limits.oom_group,
        devices: limits.devices.clone(),
        unified: limits.unified.clone(),
        ..Limits::default()
    };
    (properties, rest)
}

/// Negative is unlimited.
fn amount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

/// Swap alone of memory and swap together.
fn swap(both: i64, memory: i64) -> u64 {
    u64::try_from(both).map_or(INFINITY, |both| both.saturating_sub(u64::try_from(memory).unwrap_or(0)))
}

/// Rounded up to hundredths of a processor: rounded down, the groups below could not have what they are promised.
fn per_second(quota: i64, period: u64) -> u64 {
    let Ok(quota) = u64::try_from(quota) else { return INFINITY };
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    u64::try_from(exact).unwrap_or(INFINITY - HUNDREDTH).div_ceil(HUNDREDTH).saturating_mul(HUNDREDTH)
}

/// `0-2,7` as a bit for each number, the lowest first.
fn mask(list: &str) -> Vec<u8> {
    let mut mask = Vec::new();
    let ranges = list.split(',').filter_map(|part| {
        let part = part.trim();
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some((from.parse::<u16>().ok()?, to.parse::<u16>().ok()?))
    });
    for number in ranges.flat_map(|(from, to)| from..=to) {
        let byte = usize::from(number / 8);
        if mask.len() <= byte {
            mask.resize(byte + 1, 0);
        }
        if let Some(byte) = mask.get_mut(byte) {
            *byte |= 1 << (number % 8);
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn limits_become_properties_and_nothing_is_lost() {
        let limits = Limits {
            memory: Some(64 << 20),
            memory_and_swap: Some(80 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(33_333),
            cpu_period: Some(100_000),
            cpus: Some("0-2,9".into()),
            pids: Some(-1),
            oom_group: Some(true),
            unified: BTreeMap::from([("memory.high".into(), "5".into())]),
            ..Limits::default()
        };
        let (properties, rest) = plan_properties(&limits);
        let expected = [
            ("MemoryMax", Value::Number(64 << 20)),
            ("MemorySwapMax", Value::Number(16 << 20)),
            ("CPUWeight", Value::Number(39)),
            ("CPUQuotaPerSecUSec", Value::Number(340_000)),
            ("CPUQuotaPeriodUSec", Value::Number(100_000)),
            ("TasksMax", Value::Number(u64::MAX)),
            ("AllowedCPUs", Value::Bytes(vec![0b111, 0b10])),
        ];
        for (name, value) in expected {
            assert_eq!(properties.get(name), Some(&value), "{name}");
        }
        let left = Limits { oom_group: Some(true), unified: limits.unified.clone(), ..Limits::default() };
        assert_eq!(rest, left);
    }

    #[test]
    fn unlimited_is_infinity_and_what_is_not_said_is_left() {
        let limits = Limits { memory: Some(-1), cpu_quota: Some(-1), ..Limits::default() };
        let (properties, _) = plan_properties(&limits);
        assert_eq!(properties.get("MemoryMax"), Some(&Value::Number(u64::MAX)));
        assert_eq!(properties.get("CPUQuotaPerSecUSec"), Some(&Value::Number(u64::MAX)));
        assert_eq!(properties.len(), 2);
        assert_eq!(plan_properties(&Limits::default()), (Properties::default(), Limits::default()));
    }
}
