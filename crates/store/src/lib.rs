//! A revisioned key-value store with watch and compaction, embedded in one redb file.
