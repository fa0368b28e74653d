//! What is next for a claim: a volume that fits it, and then the three writes that bind the two. Pure. Each write can be
//! the last one before a crash: what is half done says so, and is gone on with.

use api::access::{Access as _, metadata, spec, status};
use serde_json::{Map, Value, json};

use super::find::{class, find, unfit};
use super::model::{Node, World};
use super::{News, Plan, Step};

/// On a claim whose binding is done.
const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume that did not name the other by itself.
pub(super) const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node of its first Pod, where a scheduler that knows volumes has chosen it.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who shall provision its volume.
const PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// The provisioner of classes whose volumes are made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";
/// Keeps a claim while a Pod uses it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

pub(crate) fn annotation<'a>(object: &'a Value, name: &str) -> &'a str {
    metadata(object).field("annotations").map(|all| all.text(name)).unwrap_or_default()
}

/// The volume that a claim names; empty when it names none.
pub(crate) fn volume_name(claim: &Value) -> &str {
    spec(claim).text("volumeName")
}

/// The key of the claim that a volume names.
pub(crate) fn claim_key(volume: &Value) -> Option<String> {
    let reference = spec(volume).field("claimRef")?;
    Some(format!("{}/{}", reference.text("namespace"), reference.text("name")))
}

/// Whether a claim was bound before.
pub(crate) fn is_bound(claim: &Value) -> bool {
    !annotation(claim, COMPLETED).is_empty()
}

fn key(claim: &Value) -> String {
    format!("{}/{}", metadata(claim).text("namespace"), metadata(claim).text("name"))
}

/// The map in a field, made empty if it is absent.
pub(super) fn map_at<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let fields = object.as_object_mut()?;
    let slot = fields.entry(name).or_insert_with(|| json!({}));
    if slot.is_null() {
        *slot = json!({});
    }
    slot.as_object_mut()
}

pub(super) fn annotate(object: &mut Value, name: &str, value: &str) {
    let Some(meta) = object.get_mut("metadata") else { return };
    if let Some(all) = map_at(meta, "annotations") {
        all.insert(name.to_owned(), value.into());
    }
}

/// A step that gives an object a finalizer, or takes it; `None` when it is as it shall be.
pub(super) fn protect(object: &Value, finalizer: &str, is_used: bool) -> Option<Step> {
    let has = metadata(object).list("finalizers").iter().any(|one| one == finalizer);
    let is_deleted = metadata(object).field("deletionTimestamp").is_some();
    let kept = metadata(object).list("finalizers").iter().filter(|one| *one != finalizer).cloned();
    let wanted: Vec<Value> = match (is_deleted, has) {
        (false, false) => kept.chain([finalizer.into()]).collect(),
        (true, true) if !is_used => kept.collect(),
        _ => return None,
    };
    let mut object = object.clone();
    object.get_mut("metadata")?.as_object_mut()?.insert("finalizers".to_owned(), wanted.into());
    Some(Step::Write(object))
}

/// What is next for a claim.
pub(crate) fn plan_claim(claim: &Value, world: &World<'_>) -> Plan {
    let own = key(claim);
    // A Pod that is on no node yet will not start with a claim that is being deleted.
    let is_used = world.users(&own).any(|pod| !pod.node.is_empty());
    if let Some(step) = protect(claim, PROTECTION, is_used) {
        return step.into();
    }
    if is_bound(claim) {
        plan_bound(claim, world)
    } else if metadata(claim).field("deletionTimestamp").is_some() {
        Plan::default()
    } else {
        plan_unbound(claim, world)
    }
}

fn volume<'a>(name: &str, world: &World<'a>) -> Option<&'a Value> {
    world.volumes.get(name).map(|volume| &volume.object)
}

/// Whether a volume names this claim; one that was made before it got its UID names none.
fn is_for(volume: &Value, claim: &Value) -> bool {
    let uid = spec(volume).field("claimRef").map(|reference| reference.text("uid")).unwrap_or_default();
    claim_key(volume) == Some(key(claim)) && (uid.is_empty() || uid == metadata(claim).text("uid"))
}

fn plan_bound(claim: &Value, world: &World<'_>) -> Plan {
    let name = volume_name(claim);
    if name.is_empty() {
        let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return in_phase(claim, "Lost", Some(News::warning("ClaimLost", text)));
    }
    let Some(volume) = volume(name, world) else {
        let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return in_phase(claim, "Lost", Some(News::warning("ClaimLost", text)));
    };
    if spec(volume).field("claimRef").is_none() || is_for(volume, claim) {
        return bind(claim, volume);
    }
    let text = "Two claims are bound to the same volume, this one is bound incorrectly";
    in_phase(claim, "Lost", Some(News::warning("ClaimMisbound", text)))
}

fn plan_unbound(claim: &Value, world: &World<'_>) -> Plan {
    let name = volume_name(claim);
    if name.is_empty() {
        return plan_search(claim, world);
    }
    let Some(volume) = volume(name, world) else { return in_phase(claim, "Pending", None) };
    if is_for(volume, claim) {
        return bind(claim, volume);
    }
    if spec(volume).field("claimRef").is_some() {
        let text = format!("volume {name:?} already bound to a different claim.");
        return in_phase(claim, "Pending", Some(News::warning("FailedBinding", text)));
    }
    bind_if_fit(claim, volume)
}

fn bind_if_fit(claim: &Value, volume: &Value) -> Plan {
    match unfit(claim, volume) {
        None => bind(claim, volume),
        Some(why) => {
            let text = format!("Cannot bind to requested volume {:?}: {why}", metadata(volume).text("name"));
            in_phase(claim, "Pending", Some(News::warning("VolumeMismatch", text)))
        }
    }
}

/// Looks for a volume: one that names the claim, else one that fits.
fn plan_search(claim: &Value, world: &World<'_>) -> Plan {
    let volumes = || world.volumes.iter().map(|volume| &volume.object);
    if let Some(volume) = volumes().find(|volume| is_for(volume, claim)) {
        return bind_if_fit(claim, volume);
    }
    let class = world.classes.get(class(claim)).map(|class| &class.object);
    let waits = class.is_some_and(|class| class.text("volumeBindingMode") == "WaitForFirstConsumer");
    let node = if waits { first_node(claim, world) } else { None };
    if waits && node.is_none() {
        let text = "waiting for first consumer to be created before binding";
        return in_phase(claim, "Pending", Some(News::normal("WaitForFirstConsumer", text)));
    }
    match find(claim, volumes(), node) {
        Some(volume) => bind(claim, volume),
        None => plan_none(claim, class),
    }
}

/// Where the claim's first Pod runs: as the scheduler says on the claim, or as the Pod itself says.
fn first_node<'a>(claim: &Value, world: &World<'a>) -> Option<&'a Node> {
    let selected = annotation(claim, SELECTED_NODE);
    if !selected.is_empty() {
        return world.nodes.get(selected);
    }
    let own = key(claim);
    let pod = world.users(&own).find(|pod| !pod.node.is_empty())?;
    world.nodes.get(&pod.node)
}

/// There is no volume: who could make one, or that nobody can.
fn plan_none(claim: &Value, found: Option<&Value>) -> Plan {
    let wanted = class(claim);
    let provisioner = found.map(|class| class.text("provisioner")).unwrap_or_default();
    let news = match found {
        None if wanted.is_empty() => News::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ),
        None => {
            News::warning("ProvisioningFailed", format!("storageclass.storage.k8s.io {wanted:?} not found"))
        }
        Some(_) if provisioner == BY_HAND => News::normal(
            "FailedBinding",
            format!(
                "no persistent volume fits this claim, and those of the class {wanted:?} are made by hand"
            ),
        ),
        Some(_) => {
            if let Some(step) = ask_provisioner(claim, provisioner) {
                return step.into();
            }
            let text = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running and \
                 correctly registered."
            );
            News::normal("ExternalProvisioning", text)
        }
    };
    in_phase(claim, "Pending", Some(news))
}

/// Names the provisioner on the claim, by which it knows that it is asked.
fn ask_provisioner(claim: &Value, provisioner: &str) -> Option<Step> {
    if PROVISIONER.iter().all(|name| annotation(claim, name) == provisioner) {
        return None;
    }
    let mut claim = claim.clone();
    for name in PROVISIONER {
        annotate(&mut claim, name, provisioner);
    }
    Some(Step::Write(claim))
}

/// The next write that binds the two: the volume first, so that nobody else gets it.
fn bind(claim: &Value, volume: &Value) -> Plan {
    let next = take_volume(claim, volume).or_else(|| name_volume(claim, volume));
    next.map_or_else(|| show_bound(claim, volume), Plan::from)
}

fn take_volume(claim: &Value, volume: &Value) -> Option<Step> {
    let meta = metadata(claim);
    let reference = spec(volume).field("claimRef");
    if reference.is_some_and(|reference| reference.text("uid") == meta.text("uid")) {
        return None;
    }
    let mut taken = volume.clone();
    let reference = json!({
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": meta.text("namespace"),
        "name": meta.text("name"),
        "uid": meta.text("uid"),
        "resourceVersion": meta.text("resourceVersion"),
    });
    map_at(&mut taken, "spec")?.insert("claimRef".to_owned(), reference);
    if spec(volume).field("claimRef").is_none() {
        annotate(&mut taken, BY_CONTROLLER, "yes");
    }
    Some(Step::Write(taken))
}

fn name_volume(claim: &Value, volume: &Value) -> Option<Step> {
    let name = metadata(volume).text("name");
    if volume_name(claim) == name && is_bound(claim) {
        return None;
    }
    let mut named = claim.clone();
    map_at(&mut named, "spec")?.insert("volumeName".to_owned(), name.into());
    if volume_name(claim).is_empty() {
        annotate(&mut named, BY_CONTROLLER, "yes");
    }
    annotate(&mut named, COMPLETED, "yes");
    Some(Step::Write(named))
}

/// A claim that becomes bound shows what it got; one that is bound may have grown since.
fn show_bound(claim: &Value, volume: &Value) -> Plan {
    if status(claim).text("phase") == "Bound" {
        return Plan::default();
    }
    let mut shown = claim.clone();
    if let Some(fields) = map_at(&mut shown, "status") {
        fields.insert("phase".to_owned(), "Bound".into());
        for name in ["accessModes", "capacity"] {
            fields.insert(name.to_owned(), spec(volume).get(name).cloned().unwrap_or_default());
        }
    }
    Step::Status(shown).into()
}

/// The object in a phase.
pub(super) fn in_phase(object: &Value, phase: &str, news: Option<News>) -> Plan {
    let step = (status(object).text("phase") != phase).then(|| {
        let mut shown = object.clone();
        if let Some(fields) = map_at(&mut shown, "status") {
            fields.insert("phase".to_owned(), phase.into());
        }
        Step::Status(shown)
    });
    Plan { step, news, gone: None }
}

impl From<Step> for Plan {
    fn from(step: Step) -> Self {
        Self { step: Some(step), news: None, gone: None }
    }
}
