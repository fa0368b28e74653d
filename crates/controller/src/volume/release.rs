//! What is next for a volume: free, a claim's, or left behind by one that is gone. Pure.

use api::access::{Access as _, metadata, spec, status};
use serde_json::Value;

use super::bind::{BY_CONTROLLER, annotation, claim_key, in_phase, map_at, protect, volume_name};
use super::model::World;
use super::{Gone, News, Plan, Step};

/// Keeps a volume while it is a claim's.
const PROTECTION: &str = "kubernetes.io/pv-protection";
/// On a volume that a provisioner made, and deletes.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// What is next for a volume.
pub(crate) fn plan_volume(volume: &Value, world: &World<'_>) -> Plan {
    if let Some(step) = protect(volume, PROTECTION, status(volume).text("phase") == "Bound") {
        return step.into();
    }
    let Some(key) = claim_key(volume) else { return in_phase(volume, "Available", None) };
    let uid = spec(volume).field("claimRef").map(|reference| reference.text("uid")).unwrap_or_default();
    if uid.is_empty() {
        // It is kept for a claim that is not there yet.
        return in_phase(volume, "Available", None);
    }
    match world.claims.get(&key).filter(|claim| claim.key.uid == uid) {
        None => Plan { gone: Some(Gone { claim: key, uid: uid.to_owned() }), ..plan_release(volume) },
        Some(claim) if volume_name(&claim.object) == metadata(volume).text("name") => {
            in_phase(volume, "Bound", None)
        }
        // The claim is about to name it.
        Some(claim) if volume_name(&claim.object).is_empty() => Plan::default(),
        Some(_) => unbind(volume),
    }
}

/// The claim took another volume: this one is free again, or kept as its maker wrote it.
fn unbind(volume: &Value) -> Plan {
    let mut free = volume.clone();
    let is_ours = !annotation(volume, BY_CONTROLLER).is_empty();
    if let Some(spec) = map_at(&mut free, "spec") {
        if is_ours {
            spec.shift_remove("claimRef");
        } else if let Some(reference) = spec.get_mut("claimRef").and_then(Value::as_object_mut) {
            reference.shift_remove("uid");
            reference.shift_remove("resourceVersion");
        }
    }
    let annotations = free.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        annotations.shift_remove(BY_CONTROLLER);
    }
    Step::Write(free).into()
}

/// The claim is gone. No data is deleted here: where the policy wants that, the volume says why it was not done.
fn plan_release(volume: &Value) -> Plan {
    let is_provisioned = !annotation(volume, PROVISIONED_BY).is_empty();
    match spec(volume).text("persistentVolumeReclaimPolicy") {
        "Delete" if !is_provisioned => {
            let text = "kakoi deletes no data, and no provisioner made this volume that could: delete its data and the \
                        PersistentVolume by hand, or give it the policy Retain";
            failed(volume, "VolumeFailedDelete", text)
        }
        "Recycle" => {
            let text = "kakoi recycles no volumes: delete the data and the PersistentVolume by hand, or give it the policy \
                        Retain";
            failed(volume, "VolumeFailedRecycle", text)
        }
        _ => in_phase(volume, "Released", None),
    }
}

fn failed(volume: &Value, reason: &'static str, message: &str) -> Plan {
    let mut plan = in_phase(volume, "Failed", Some(News::warning(reason, message)));
    if let Some(Step::Status(shown)) = &mut plan.step
        && let Some(fields) = map_at(shown, "status")
    {
        fields.insert("message".to_owned(), message.into());
    }
    plan
}
