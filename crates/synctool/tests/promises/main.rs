//! What strategies and pipelines promise, by the whole program between real servers: the examples, the brief's advanced
//! pipeline, hashes that are kept, enrichment, tombstones, joined tables, changing schemas, vanished groups, and the
//! defects of the original.

mod aggregates;
mod appends;
mod beside;
mod changes;
mod choice;
mod dedup;
mod defects;
mod definitions;
mod deletes;
mod doubled;
mod enrichment;
mod examples;
mod files;
mod fragments;
mod gate;
mod hashes;
mod joins;
mod keys;
mod matrix;
mod orders;
mod partitions;
#[path = "../place/mod.rs"]
mod place;
mod proofs;
mod ranges;
mod uuids;
mod value_maps;
mod verifying;

use place::{Place, postgres};
use synctool_testkit::{MariaDb, PgVersion, Postgres, Redis, TestDb};

/// A database of PostgreSQL 18.
fn database(name: &str) -> TestDb {
    Postgres::shared(PgVersion::V18).database(name)
}

/// A place whose datastores `from` and `to` are one database.
fn here(db: &TestDb) -> Place {
    Place::new(&[("from", postgres(db)), ("to", postgres(db))])
}
