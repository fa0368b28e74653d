//! A file of an earlier version of kakoi becomes one of this version, in one transaction, when it is opened.

use redb::{Database, ReadableDatabase, ReadableTable};

use crate::Revision;
use crate::packed::pack;
use crate::table::{self, CURRENT, FLOOR, FORMAT, FORMAT_UNPACKED, FORMAT_VERSION, LOG, META, REVISION};

/// Packs the values of a file that has them unpacked, and forgets its history: watches list anew after it. Any other file
/// is left as it is.
pub(crate) fn upgrade(database: &Database) -> Result<(), redb::Error> {
    if !is_unpacked(database)? {
        return Ok(());
    }
    tracing::info!("the store is of an earlier version of kakoi; its values are packed now");
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut current = transaction.open_table(CURRENT)?;
        let rows: Vec<(String, Revision, Vec<u8>)> = current
            .iter()?
            .map(|row| {
                let (key, value) = row?;
                let (revision, value) = value.value();
                Ok((key.value().to_owned(), revision, pack(value)))
            })
            .collect::<Result<_, redb::Error>>()?;
        for (key, revision, value) in rows {
            current.insert(key.as_str(), (revision, value.as_slice()))?;
        }
        transaction.open_table(LOG)?.retain(|_, _| false)?;
        let mut meta = transaction.open_table(META)?;
        let revision = table::number(&meta, REVISION)?;
        meta.insert(FLOOR, revision)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
    }
    Ok(transaction.commit()?)
}

fn is_unpacked(database: &Database) -> Result<bool, redb::Error> {
    let meta = match database.begin_read()?.open_table(META) {
        // A new file.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
        meta => meta?,
    };
    Ok(table::number(&meta, FORMAT)? == FORMAT_UNPACKED)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::table::{CEILING, CLEAN, GAPS};
    use crate::{Change, FollowError, Storage, Store, StoreOptions};

    /// Two keys as version 1 had them: the second was changed at revision 3.
    fn write_version_1(path: &Path, clean: u64) {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut current = transaction.open_table(CURRENT).unwrap();
            current.insert("a", (1, &[b'x'; 1000][..])).unwrap();
            current.insert("b", (3, &b"new"[..])).unwrap();
            let mut log = transaction.open_table(LOG).unwrap();
            log.insert(1, (0, "a", 0, &[][..])).unwrap();
            log.insert(2, (0, "b", 0, &[][..])).unwrap();
            log.insert(3, (0, "b", 2, &b"old"[..])).unwrap();
            transaction.open_table(GAPS).unwrap();
            let mut meta = transaction.open_table(META).unwrap();
            for (name, number) in
                [(FORMAT, FORMAT_UNPACKED), (REVISION, 3), (CEILING, 1003), (FLOOR, 0), (CLEAN, clean)]
            {
                meta.insert(name, number).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    #[tokio::test]
    async fn a_file_of_version_1_keeps_its_values_and_its_revisions() {
        for (clean, revision) in [(1, 3), (0, 1003)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("store.redb");
            write_version_1(&path, clean);
            for _ in 0..2 {
                let store = Store::open(&path, &StoreOptions::default()).unwrap();
                assert_eq!(store.revision(), revision);
                assert_eq!(store.get("a").unwrap().unwrap().value, vec![b'x'; 1000]);
                let b = store.get("b").unwrap().unwrap();
                assert_eq!((b.revision, &b.value[..]), (3, &b"new"[..]));
                let past = store.follow(1, Box::new(|_: &[Change]| {})).await;
                assert!(matches!(past, Err(FollowError::Compacted { .. })), "{past:?}");
                store.follow(revision, Box::new(|_: &[Change]| {})).await.unwrap();
                store.close().await;
            }
        }
    }
}
