//! What is the own of volumes and claims: they begin without a partner.

use serde_json::{Value, json};

use super::Ctx;
use crate::access::{Access, carry_over, set, spec};
use crate::time;

/// A new volume waits for the controller that binds it.
pub(super) fn create_volume(volume: &mut Value, ctx: &Ctx) {
    let now = time::format_seconds(ctx.now);
    set(volume, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
}

/// A new claim is not bound. What it is filled from has two names.
pub(super) fn create_claim(claim: &mut Value, _ctx: &Ctx) {
    set(claim, "status", json!({"phase": "Pending"}));
    let before = spec(claim).clone();
    let Some(spec) = claim.get_mut("spec") else { return };
    let (source, reference) = (before.field("dataSource"), before.field("dataSourceRef"));
    match (source, reference) {
        (Some(source), None) => set(spec, "dataSourceRef", source.clone()),
        (None, Some(reference)) if reference.field("namespace").is_none() => {
            let renamed = json!({"dataSource": reference});
            carry_over(spec, &renamed, "dataSource");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;

    #[test]
    fn a_new_claim_waits() {
        let ctx = Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() };
        let mut claim = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}, "status": {"phase": "Bound"}});
        create_claim(&mut claim, &ctx);
        assert_eq!(claim["status"], json!({"phase": "Pending"}));
        assert_eq!(claim["spec"]["dataSourceRef"], claim["spec"]["dataSource"]);
        let mut volume = json!({"status": {"phase": "Bound"}});
        create_volume(&mut volume, &ctx);
        assert_eq!(volume["status"]["phase"], "Pending");
    }
}
