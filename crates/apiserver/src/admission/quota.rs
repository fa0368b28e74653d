//! `ResourceQuota`: nothing is made that would use more of a namespace than its quotas grant. What is used is counted in
//! the watch cache, under a lock of the namespace that is held until the object is stored: two writers can't both take
//! the last place. The status of the quotas is written along, so that it shows what counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::kind;
use api::quota::{self, Usage};
use api::status::Status;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::cache::{Cache, Object};
use crate::request::RequestInfo;
use crate::write::Write;
use crate::{meta, view};

/// One lock for each namespace that has a quota.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// Holds a namespace's lock until the object is stored.
pub(crate) type Place = Option<OwnedMutexGuard<()>>;

impl Locks {
    async fn take(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks that nobody holds or waits for are forgotten.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(namespace.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

fn quotas(cache: &Cache, namespace: &str) -> Vec<Value> {
    let Some(table) = kind::find("", "v1", "resourcequotas").and_then(|kind| cache.table(kind)) else {
        return Vec::new();
    };
    cache.snapshot(table).range(&format!("{namespace}/"), None).map(|object| object.value()).collect()
}

/// Takes what a new object uses, or what a changed one uses more than before.
pub(crate) async fn take(write: &Write<'_>, object: &Value, old: Option<&Object>) -> Result<Place, Status> {
    let namespace = &write.info.namespace;
    if !write.kind.namespaced || quotas(&write.server.cache, namespace).is_empty() {
        return Ok(None);
    }
    let usage = |object: &Value| quota::usage_of(write.kind, object, write.now);
    let mut more = usage(object);
    if let Some(old) = old {
        for (name, before) in usage(&view::value(write.kind, old)) {
            if let Some(amount) = more.get_mut(&name) {
                *amount = amount.minus(before);
            }
        }
        more.retain(|_, amount| *amount > api::quantity::Quantity::ZERO);
        if more.is_empty() {
            return Ok(None);
        }
    }
    let place = write.server.quota_locks.take(namespace).await;
    for quota in quotas(&write.server.cache, namespace) {
        if quota::applies(&quota, write.kind, object) {
            charge(write, &quota, object, &more).await?;
        }
    }
    Ok(Some(place))
}

async fn charge(write: &Write<'_>, quota: &Value, object: &Value, more: &Usage) -> Result<(), Status> {
    let forbidden = |why: String| Status::forbidden(write.kind, meta::text(object, "name"), &why);
    let hard = quota::hard(quota);
    if !more.keys().any(|name| hard.contains_key(name)) {
        return Ok(());
    }
    if let Some(why) = quota::unstated(quota, write.kind, object) {
        return Err(forbidden(why));
    }
    let mut used = used(write, quota, &hard);
    if let Some(why) = quota::exceeded(quota, &used, more) {
        return Err(forbidden(why));
    }
    if write.dry_run {
        return Ok(());
    }
    for (name, amount) in more {
        let sum = used.get(name).map_or(*amount, |one| one.plus(*amount));
        used.insert(name.clone(), sum);
    }
    show(write, quota, &used).await
}

/// What a namespace uses of that which a quota limits.
fn used(write: &Write<'_>, quota: &Value, hard: &Usage) -> Usage {
    let prefix = format!("{}/", write.info.namespace);
    let mut total = Usage::new();
    for table in write.server.cache.tables() {
        let kind = table.kind();
        if !kind.namespaced || !quota::is_limited(kind, hard) {
            continue;
        }
        let snapshot = write.server.cache.snapshot(table);
        for object in snapshot.range(&prefix, None) {
            let object = object.value();
            if !quota::applies(quota, kind, &object) {
                continue;
            }
            for (name, amount) in quota::usage_of(kind, &object, write.now) {
                let sum = total.get(&name).map_or(amount, |one| one.plus(amount));
                total.insert(name, sum);
            }
        }
    }
    total
}

/// Writes what is used into the quota's status.
async fn show(write: &Write<'_>, quota: &Value, used: &Usage) -> Result<(), Status> {
    let Some(kind) = kind::find("", "v1", "resourcequotas") else { return Ok(()) };
    let info = RequestInfo {
        verb: "update",
        name: meta::text(quota, "name").to_owned(),
        namespace: write.info.namespace.clone(),
        ..RequestInfo::default()
    };
    let status = Write::new(write.server, write.user, kind, &info)?;
    let written = status.change_freely(|quota| {
        let mut shown = quota.clone();
        meta::as_map(&mut shown).insert("status".to_owned(), quota::status_of(quota, used));
        Ok(shown)
    });
    match written.await {
        // A quota that has just been deleted grants nothing and forbids nothing.
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}
