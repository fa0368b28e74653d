//! The ID space read from disk, for `kakoi userns` and `kakoi who-owns`: also while the daemon is down.

use std::path::Path;

use userns::{Entry, Holder, IdRange, Ledger, Quarantined, Record, Snapshot};

use super::files::PodDirs;
use super::{IdSpaceConfig, OpenError, claims};

/// Reads the ID space without changing anything.
///
/// # Errors
/// For bad configuration, and when the directories can't be read.
pub fn inspect(config: &IdSpaceConfig) -> Result<Snapshot, OpenError> {
    let machine = config.machine.read()?;
    let mut accounts = config.machine.accounts("passwd")?;
    accounts.dedup_by_key(|account| account.id);
    let foreign = read(&config.claims_dir, || claims::list_foreign(&config.claims_dir, &config.instance))?;
    let dirs = PodDirs::new(config.pods_dir.clone());
    let records = read(&config.pods_dir, || dirs.records())?;
    let machine = super::with_running(machine, config, &records, &[], &foreign);
    let mut ledger = Ledger::new(super::plan_pool(config, machine)?, super::read_cursor(config));
    ledger.set_foreign(foreign);
    for record in records {
        match record.content {
            Ok(Record::Empty) => {}
            Ok(Record::Range(range)) => match ledger.adopt(&record.pod, range) {
                Ok(()) => {}
                Err(why) => ledger.quarantine(&record.pod, &[range], why.to_string()),
            },
            Err(error) => ledger.quarantine(&record.pod, &error.touched, error.to_string()),
        }
    }
    Ok(Snapshot { accounts, ..picture(&ledger, &dirs) })
}

fn read<T>(path: &Path, how: impl FnOnce() -> std::io::Result<T>) -> Result<T, OpenError> {
    how().map_err(|cause| OpenError::Io { what: "read", path: path.to_owned(), cause })
}

/// The ledger as a picture.
pub(super) fn picture(ledger: &Ledger, dirs: &PodDirs) -> Snapshot {
    let reason = |holder: &Holder, range: IdRange| match holder {
        Holder::Pod(pod) if ledger.mapping_of(pod) == Some(range) => None,
        Holder::Pod(_) => Some("kept because the Pod's record named it".to_owned()),
        Holder::Quarantined(pod) => {
            let found = ledger.quarantined().find(|(quarantined, _)| *quarantined == pod);
            Some(found.map_or_else(|| "its record is invalid".to_owned(), |(_, reason)| reason.to_owned()))
        }
    };
    let entry = |held: &userns::Reservation| Entry {
        range: held.range,
        pod: held.holder.pod().to_string(),
        name: None,
        recorded_in: dirs.record_path(held.holder.pod()).display().to_string(),
        quarantined: reason(&held.holder, held.range),
    };
    let holds = |pod: &userns::PodUid| ledger.reservations().any(|held| held.holder.pod() == pod);
    let empty_handed = ledger.quarantined().filter(|(pod, _)| !holds(pod)).map(|(pod, reason)| Quarantined {
        pod: pod.to_string(),
        name: None,
        recorded_in: dirs.record_path(pod).display().to_string(),
        reason: reason.to_owned(),
    });
    Snapshot {
        quarantined: empty_handed.collect(),
        pods: ledger.reservations().map(entry).collect(),
        instances: ledger.foreign().to_vec(),
        free_blocks: ledger.free_blocks(),
        ..Snapshot::of(ledger.pool())
    }
}
