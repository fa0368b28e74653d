//! The host's ID space: pools, blocks, allocation order, the record's format, who owns an ID, the fencing policy. Pure.
