//! What a plugin answers: a result with interfaces and addresses, or an error. Pure.
//!
//! Source: CNI specification 1.0, section 5 (result types).

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Success {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    code: u64,
    msg: String,
    details: String,
}

/// The addresses that the link `link` of the sandbox has, in the result's order.
///
/// # Errors
/// A text that says what is wrong with the result.
pub(crate) fn addresses(result: &Value, link: &str) -> Result<Vec<IpAddr>, String> {
    let success = Success::deserialize(result).map_err(|error| format!("its result is not one: {error}"))?;
    let is_ours = |ip: &&Ip| match ip.interface.map(|index| success.interfaces.get(index)) {
        Some(Some(interface)) => interface.name == link && !interface.sandbox.is_empty(),
        Some(None) => false,
        None => true,
    };
    let address = |ip: &Ip| {
        let text = ip.address.split('/').next().unwrap_or_default();
        text.parse().map_err(|_| format!("its result has the address {:?}", ip.address))
    };
    let found = success.ips.iter().filter(is_ours).map(address).collect::<Result<Vec<IpAddr>, _>>()?;
    if found.is_empty() { Err(format!("its result has no address for `{link}`")) } else { Ok(found) }
}

/// What a plugin that failed said, for people: its error object, or else the end of what it printed.
pub(crate) fn failure(stdout: &[u8], stderr: &[u8]) -> String {
    if let Ok(failure) = serde_json::from_slice::<Failure>(stdout)
        && !failure.msg.is_empty()
    {
        let Failure { code, msg, details } = failure;
        let details = if details.is_empty() { String::new() } else { format!(": {details}") };
        return format!("{msg}{details} (code {code})");
    }
    let printed = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).into_owned();
    let last = printed.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_addresses_of_the_pods_link_are_the_pods() {
        let result = json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
                {"address": "10.1.0.1/24", "interface": 0}, {"address": "fd00::5/64", "interface": 2}],
            "dns": {}});
        let expected: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(addresses(&result, "eth0"), Ok(expected));
        let bare = json!({"ips": [{"address": "10.1.0.5/24"}]});
        assert_eq!(addresses(&bare, "eth0").unwrap().len(), 1);
    }

    #[test]
    fn a_result_without_an_address_is_said_to_be_one() {
        assert!(addresses(&json!({}), "eth0").unwrap_err().contains("no address"));
        assert!(addresses(&json!({"ips": 5}), "eth0").unwrap_err().contains("not one"));
        assert!(addresses(&json!({"ips": [{"address": "x/24"}]}), "eth0").unwrap_err().contains("x/24"));
        let strange = json!({"ips": [{"address": "10.0.0.2/24", "interface": 7}]});
        assert!(addresses(&strange, "eth0").unwrap_err().contains("no address"));
    }

    #[test]
    fn a_failure_is_told_in_the_plugins_words() {
        let object = br#"{"cniVersion":"1.0.0","code":7,"msg":"no range","details":"add one"}"#;
        assert_eq!(failure(object, b"noise"), "no range: add one (code 7)");
        assert_eq!(failure(b"", b"panic: x\n\n"), "panic: x");
        assert_eq!(failure(b"", b""), "it said nothing");
    }
}
