//! What every namespace has: the service account `default`, with which Pods run that name none, and the `ConfigMap`
//! `kube-root-ca.crt`, with which they verify the API server. Both come back when they are deleted, and the `ConfigMap`
//! when it is changed.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use informer::{Meta, Target};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metadata::{Metadata, Object};
use crate::queue::{Queue, apply_all};
use crate::rest::{Collection, Forgive, RestError};
use crate::source::Source;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str =
    "The certificates with which Pods verify the API server at its address inside the cluster.";

/// A `ConfigMap`, with its contents.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Whole")]
struct ConfigMap {
    key: Meta,
    annotations: BTreeMap<String, String>,
    data: BTreeMap<String, String>,
    has_binary_data: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole {
    metadata: Annotated,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    binary_data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(flatten)]
    metadata: Metadata,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl From<Whole> for ConfigMap {
    fn from(whole: Whole) -> Self {
        let Annotated { metadata, annotations } = whole.metadata;
        let has_binary_data = !whole.binary_data.is_empty();
        Self { key: metadata.key(), annotations, data: whole.data, has_binary_data }
    }
}

impl informer::Object for ConfigMap {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// What a namespace lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    CreateAccount,
    CreateRootCa,
    RestoreRootCa,
}

/// What to do in a namespace, from what is there.
fn plan(
    namespace: Option<&Object>,
    has_account: bool,
    root_ca: Option<&ConfigMap>,
    pem: &str,
) -> Vec<Action> {
    if namespace.is_none_or(|namespace| namespace.metadata.is_deleted()) {
        return Vec::new();
    }
    let account = (!has_account).then_some(Action::CreateAccount);
    let config = match root_ca {
        None => Some(Action::CreateRootCa),
        Some(found) if is_intact(found, pem) => None,
        Some(_) => Some(Action::RestoreRootCa),
    };
    account.into_iter().chain(config).collect()
}

fn is_intact(found: &ConfigMap, pem: &str) -> bool {
    found.data.len() == 1
        && found.data.get(CA_KEY).is_some_and(|value| value == pem)
        && found.annotations.get(DESCRIPTION_KEY).is_some_and(|value| value == DESCRIPTION)
        && !found.has_binary_data
}

async fn apply(client: &Client, namespace: &str, pem: &str, actions: Vec<Action>) -> Result<(), RestError> {
    let applied = actions.into_iter().map(|action| apply_one(client, namespace, pem, action));
    try_join_all(applied).await.map(drop)
}

async fn apply_one(client: &Client, namespace: &str, pem: &str, action: Action) -> Result<(), RestError> {
    let configs = Collection::core(client, namespace, "configmaps");
    match action {
        Action::CreateAccount => {
            let account =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
            let accounts = Collection::core(client, namespace, "serviceaccounts");
            create(&accounts, &account).await
        }
        Action::CreateRootCa => {
            let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOT_CA}});
            set_contents(&mut config, pem);
            create(&configs, &config).await
        }
        Action::RestoreRootCa => {
            let Some(mut config) = configs.get::<Value>(ROOT_CA).await? else { return Ok(()) };
            set_contents(&mut config, pem);
            configs.replace(ROOT_CA, &config).await.forgive(&[404])
        }
    }
}

/// Creates an object, unless the namespace is going or gone, or somebody was faster.
async fn create(collection: &Collection<'_>, object: &Value) -> Result<(), RestError> {
    match collection.create(object).await {
        Err(error) if error.is_namespace_terminating() => Ok(()),
        created => created.forgive(&[404, 409]),
    }
}

/// Gives the `ConfigMap` its contents; what others wrote into its metadata stays.
fn set_contents(config: &mut Value, pem: &str) {
    let Some(fields) = config.as_object_mut() else { return };
    fields.insert("data".to_owned(), json!({CA_KEY: pem}));
    fields.shift_remove("binaryData");
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(DESCRIPTION_KEY.to_owned(), DESCRIPTION.into());
    }
}

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, pem: String, shutdown: CancellationToken) {
    let named = |plural: &str, name: &str| {
        Target::all(format!("/api/v1/{plural}")).with_fields(format!("metadata.name={name}"))
    };
    let mut sources = Sources {
        namespaces: Source::new(&client, Target::all("/api/v1/namespaces")),
        accounts: Source::new(&client, named("serviceaccounts", ACCOUNT)),
        root_cas: Source::new(&client, named("configmaps", ROOT_CA)),
    };
    shutdown.run_until_cancelled(work(&client, &pem, &mut sources)).await;
}

#[derive(Debug)]
struct Sources {
    namespaces: Source<Object>,
    accounts: Source<Object>,
    root_cas: Source<ConfigMap>,
}

impl Sources {
    fn are_synced(&self) -> bool {
        self.namespaces.is_synced() && self.accounts.is_synced() && self.root_cas.is_synced()
    }

    fn plan(&self, namespace: &str, pem: &str) -> Vec<Action> {
        let has_account = self.accounts.store().get(&format!("{namespace}/{ACCOUNT}")).is_some();
        let root_ca = self.root_cas.store().get(&format!("{namespace}/{ROOT_CA}"));
        plan(self.namespaces.store().get(namespace), has_account, root_ca, pem)
    }
}

async fn work(client: &Client, pem: &str, sources: &mut Sources) {
    let mut queue = Queue::default();
    loop {
        let is_synced = sources.are_synced();
        let touched = tokio::select! {
            keys = sources.namespaces.changed() => keys,
            keys = sources.accounts.changed() => keys,
            keys = sources.root_cas.changed() => keys,
            () = queue.ready(), if is_synced => {
                let due = queue.take(Instant::now());
                let plans = due.into_iter().map(|key: String| (key.clone(), (sources.plan(&key, pem), key))).collect();
                let apply = |(actions, namespace): (Vec<Action>, String)| async move {
                    apply(client, &namespace, pem, actions).await
                };
                apply_all(&mut queue, plans, apply).await;
                continue;
            }
        };
        let now = Instant::now();
        for key in touched {
            // A key is a namespace, or an object below one.
            let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
            queue.add(namespace.to_owned(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(is_deleted: bool) -> Object {
        let at = is_deleted.then_some("2026-11-23T12:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": "team", "deletionTimestamp": at}})).unwrap()
    }

    fn root_ca(change: impl FnOnce(&mut Value)) -> ConfigMap {
        let mut config = json!({"metadata": {"name": ROOT_CA, "namespace": "team", "labels": {"a": "b"}}});
        set_contents(&mut config, "pem");
        change(&mut config);
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn a_namespace_gets_what_it_lacks() {
        use Action::{CreateAccount, CreateRootCa, RestoreRootCa};
        let intact = root_ca(|_| {});
        let other = root_ca(|config| config["data"][CA_KEY] = "other".into());
        let more = root_ca(|config| config["data"]["more"] = "x".into());
        let bare = root_ca(|config| config["metadata"]["annotations"] = json!({}));
        for (what, config, has_account, expected) in [
            ("nothing is there", None, false, vec![CreateAccount, CreateRootCa]),
            ("all is there", Some(&intact), true, vec![]),
            ("the account went", Some(&intact), false, vec![CreateAccount]),
            ("the ConfigMap went", None, true, vec![CreateRootCa]),
            ("another certificate", Some(&other), true, vec![RestoreRootCa]),
            ("another key", Some(&more), true, vec![RestoreRootCa]),
            ("no description", Some(&bare), true, vec![RestoreRootCa]),
        ] {
            assert_eq!(plan(Some(&namespace(false)), has_account, config, "pem"), expected, "{what}");
            assert_eq!(plan(Some(&namespace(true)), has_account, config, "pem"), [], "{what}, but it goes");
            assert_eq!(plan(None, has_account, config, "pem"), [], "{what}, but there is no namespace");
        }
    }

    #[test]
    fn what_others_wrote_into_the_metadata_stays() {
        let mut config = json!({"metadata": {"name": ROOT_CA, "labels": {"a": "b"}, "annotations": {"c": "d"}},
            "data": {"x": "y"}, "binaryData": {"z": ""}});
        set_contents(&mut config, "pem");
        assert_eq!(
            config,
            json!({"metadata": {"name": ROOT_CA, "labels": {"a": "b"},
                "annotations": {"c": "d", DESCRIPTION_KEY: DESCRIPTION}}, "data": {CA_KEY: "pem"}})
        );
    }
}
