//! What must be right before Data Sync can work: each looked at, with its fix. Nothing is changed.

use super::archive::{self, Archive, Listing, Part};
use super::base::{Backup, Label, bytes_below};
use super::control::Control;
use super::replay::ReplayConfig;
use super::room;
use super::scratch::{self, Scratch, ScratchConfig};
use super::sql;
use super::sync::SyncConfig;
use super::tables::{self, Name, Table};
use crate::postgres::{Connection, Postgres};
use std::collections::BTreeSet;
use std::path::PathBuf;
use synctool_core::error::{Error, Result};
use synctool_core::source::Finding;
use synctool_pgwal::{SegmentName, WalLevel};

fn bad(what: &str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::new(what, false, found, fix)
}

fn failed(what: &str, error: &Error) -> Finding {
    let found = format!("{} [{}]", error.message(), error.code().id);
    bad(what, found, error.next_step().unwrap_or_default())
}

/// Looks at what a scratch server needs: the backup, the programs, the archive.
pub(super) async fn replayed(config: &ReplayConfig) -> Vec<Finding> {
    replay(config).await.0
}

async fn replay(config: &ReplayConfig) -> (Vec<Finding>, Option<Production>) {
    let mut all = Vec::new();
    let production = production(config, &mut all);
    programs(config, production.as_ref(), &mut all);
    log_archive(config, production.as_ref(), &mut all).await;
    (all, production)
}

/// A base backup, or the scratch server that was made from one: what is known of production without asking it.
struct Production {
    label: Label,
    control: Control,
    /// Bytes of the backup, while it still has to be unpacked.
    size: Option<u64>,
}

/// Looks at every prerequisite.
pub async fn examine(config: &SyncConfig) -> Vec<Finding> {
    let (mut all, production) = replay(&config.replay).await;
    let local = local(config, production.as_ref(), &mut all).await;
    let mut there = None;
    let scratch = &config.replay.scratch;
    if Scratch::exists(scratch) {
        let mut server = scratch.address(&config.replay.database);
        server.connect_timeout = std::time::Duration::from_secs(5);
        if let Ok(database) = Postgres::open(server) {
            there = database.connect().await.ok();
        }
    }
    if let Some(local) = &local {
        let looked = tables_of(local, there.as_ref(), &mut all).await;
        all.extend(looked.err().map(|e| failed("tables", &e)));
    }
    if let (Some(local), Some(there)) = (&local, &there) {
        let looked = both(local, there, &mut all).await;
        all.extend(looked.err().map(|e| failed("scratch server", &e)));
    }
    all
}

fn production(config: &ReplayConfig, all: &mut Vec<Finding>) -> Option<Production> {
    let directory = &config.scratch.directory;
    let read = |label: PathBuf, control: Result<Control>| -> Result<(Label, Control)> {
        let text = std::fs::read_to_string(&label).map_err(|e| {
            archive::file_error(&label, &e).hint("a base backup made by pg_basebackup or the like has a backup_label")
        })?;
        let label = Label::parse(&text).ok_or_else(|| Error::bug("a backup_label that cannot be understood"))?;
        Ok((label, control?))
    };
    let (what, read, size) = match &config.backup {
        _ if Scratch::exists(&config.scratch) => (
            "scratch server",
            read(directory.join("backup_label"), Scratch::control_of(&config.scratch)),
            None,
        ),
        Backup::Files(path) if path.join("PG_VERSION").is_file() => (
            "base backup",
            read(path.join("backup_label"), Control::read(path)),
            Some(bytes_below(path)),
        ),
        Backup::Files(path) => {
            match std::fs::metadata(path) {
                Ok(_) => all.push(Finding::good(
                    "base backup",
                    format!("{} is looked into when it is unpacked", path.display()),
                )),
                Err(e) => all.push(failed(
                    "base backup",
                    &archive::file_error(path, &e)
                        .hint("the base backup must be there and readable; pg_basebackup makes one"),
                )),
            }
            return None;
        }
        Backup::Command(_) => {
            all.push(Finding::good(
                "base backup",
                "base_restore_command is run when the scratch server is made",
            ));
            return None;
        }
    };
    match read {
        Ok((label, control)) => {
            all.push(Finding::good(
                what,
                format!(
                    "PostgreSQL {}, system id {}, from {}",
                    control.major, control.system, label.start
                ),
            ));
            match control.parameters.wal_level {
                Some(WalLevel::Minimal) => all.push(bad("wal_level", scratch::MINIMAL, scratch::NOT_MINIMAL)),
                _ => all.push(Finding::good("wal_level", "enough for replay")),
            }
            Some(Production { label, control, size })
        }
        Err(e) => {
            all.push(failed(what, &e));
            None
        }
    }
}

fn programs(config: &ReplayConfig, production: Option<&Production>, all: &mut Vec<Finding>) {
    let ScratchConfig {
        directory,
        bin_dir,
        user,
        ..
    } = &config.scratch;
    match scratch::program_version(bin_dir) {
        Ok(found) => match production.map(|p| p.control.major).filter(|needed| *needed != found) {
            Some(needed) => all.push(bad(
                "programs",
                format!("pg_bin_dir: PostgreSQL major {needed} needed, found {found}"),
                format!("install PostgreSQL {needed} here and set PG_BIN_DIR to its bin directory"),
            )),
            None => all.push(Finding::good(
                "programs",
                format!("PostgreSQL {found} in {}", bin_dir.display()),
            )),
        },
        Err(e) => all.push(failed("programs", &e)),
    }
    match scratch::account(user.as_deref()) {
        Ok(_) => all.push(Finding::good("scratch user", "may run PostgreSQL")),
        Err(e) => all.push(failed("scratch user", &e)),
    }
    let needed = production.and_then(|p| p.size);
    // More is needed than there is, also where both are less than one.
    let (least, most) = (|bytes: u64| bytes.div_ceil(1 << 30), |bytes: u64| bytes >> 30);
    match (needed, room::free(directory)) {
        (Some(needed), Some(free)) if free < needed + needed / 10 => all.push(bad(
            "scratch space",
            format!(
                "scratch needs about {} GB (size of production cluster), {} GB free",
                least(needed),
                most(free)
            ),
            format!(
                "free space in {} or set SCRATCH_DIR to a larger disk",
                directory.display()
            ),
        )),
        (_, Some(free)) => all.push(Finding::good(
            "scratch space",
            format!("{} GB free in {}", most(free), directory.display()),
        )),
        (_, None) => {}
    }
}

async fn log_archive(config: &ReplayConfig, production: Option<&Production>, all: &mut Vec<Finding>) {
    let what = "archive";
    let directory = match &config.archive {
        Archive::Directory(directory) => directory,
        by_name => {
            let Some(p) = production else { return };
            let (who, fix) = match by_name {
                Archive::Bucket { bucket, .. } => (
                    bucket.url(),
                    "look whether production's archive_command puts it there; if the segment is gone, take a new base backup",
                ),
                _ => (
                    "wal_fetch_command",
                    "run it by hand with %f and %p filled in; if the segment is gone, take a new base backup",
                ),
            };
            match by_name.fetch(&p.label.segment.to_string()).await {
                Ok(brought) if brought.file.is_some() => {
                    all.push(Finding::good(what, format!("{who} has the first segment")));
                }
                Ok(brought) => all.push(bad(
                    what,
                    format!(
                        "{who} has no segment {}, from which replay begins{}",
                        p.label.segment,
                        brought.said.map_or_else(String::new, |said| format!(" ({said})"))
                    ),
                    fix,
                )),
                Err(e) => all.push(failed(what, &e)),
            }
            return;
        }
    };
    let listing = match Listing::of(directory) {
        Ok(listing) => listing,
        Err(e) => return all.push(failed(what, &e)),
    };
    let Some((oldest, paths)) = listing.segments.first_key_value() else {
        return all.push(bad(
            what,
            format!("{} holds no segment", directory.display()),
            "set archive_mode = on and archive_command in production, restart it, and run SELECT pg_switch_wal()",
        ));
    };
    all.push(Finding::good(
        what,
        format!("{} segments in {}", listing.segments.len(), directory.display()),
    ));
    let Some(p) = production else { return };
    if let Some(part) = paths.first().and_then(|path| Part::open(path).ok()) {
        let identity = part.identity;
        if identity.system != p.control.system {
            all.push(bad(
                "archive's server",
                format!(
                    "base backup was taken from system id {}, archive has {}",
                    p.control.system, identity.system
                ),
                "name the archive and a base backup of the same server",
            ));
            return;
        }
        let size = identity.segment_size;
        let needed = if Scratch::exists(&config.scratch) {
            p.control.redo
        } else {
            p.label.start
        };
        let number = |name: &SegmentName| name.number(size).unwrap_or_default();
        let there = listing.segments.keys().any(|name| number(name) == size.number(needed));
        let newer = listing.segments.keys().any(|name| number(name) > size.number(needed));
        if there || !newer || Scratch::exists(&config.scratch) {
            all.push(Finding::good(
                "archive's beginning",
                format!("reaches back to {oldest}"),
            ));
        } else {
            let first = listing.segments.keys().find(|name| number(name) > size.number(needed));
            all.push(bad(
                "archive's beginning",
                format!(
                    "base backup starts at segment {} but the oldest archived file is {}: WAL between them is gone, take a new base backup",
                    p.label.segment,
                    first.unwrap_or(oldest)
                ),
                "pg_basebackup -X none -D DIRECTORY -h PRODUCTION, and name it in BASE_BACKUP",
            ));
        }
    }
}

async fn local(config: &SyncConfig, production: Option<&Production>, all: &mut Vec<Finding>) -> Option<Connection> {
    let connected = async { Postgres::open(config.local.clone())?.connect().await };
    let local = match connected.await {
        Ok(local) => local,
        Err(e) => {
            all.push(failed("local server", &e));
            return None;
        }
    };
    let major = local.version() / 10_000;
    match production.map(|p| p.control.major).filter(|theirs| *theirs != major) {
        Some(theirs) => all.push(bad(
            "local server",
            format!("base backup PG_VERSION is {theirs}, local server is {major}"),
            format!("use a local PostgreSQL {theirs}"),
        )),
        None => all.push(Finding::good("local server", format!("PostgreSQL {major}"))),
    }
    let role = "BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK";
    match local.batch_execute(role).await {
        Ok(()) => all.push(Finding::good("session_replication_role", "may be set")),
        Err(_) => {
            let _ = local.batch_execute("ROLLBACK").await;
            all.push(bad(
                "session_replication_role",
                "session_replication_role needs superuser or SET privilege on the local server",
                format!(
                    "as a superuser: GRANT SET ON PARAMETER session_replication_role TO {}",
                    crate::postgres::sql::ident(&config.local.user)
                ),
            ));
        }
    }
    match super::board::create(&local).await {
        Ok(()) => all.push(Finding::good(
            "control tables",
            "tables_to_sync, data_sync_logs and data_sync_metrics are there",
        )),
        Err(e) => {
            all.push(failed("control tables", &e));
            return None;
        }
    }
    Some(local)
}

async fn tables_of(local: &Connection, there: Option<&Connection>, all: &mut Vec<Finding>) -> Result<()> {
    let rows = local
        .query(sql::SELECTED, &[])
        .await
        .map_err(|e| local.error(e, "reading tables_to_sync"))?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if names.is_empty() {
        all.push(Finding::note(
            "tables",
            "no table is selected",
            "synctool datasync add-tables TABLE…",
        ));
        return Ok(());
    }
    let here = tables::find(local, names.iter().map(String::as_str)).await?;
    for name in names.iter().filter(|name| !here.names.contains_key(*name)) {
        let name = tables::display(&tables::parse_name(name));
        all.push(bad(
            "table",
            format!("table {name} does not exist locally"),
            "create it as it is in production: pg_dump --schema-only",
        ));
    }
    if let Some(there) = there {
        let theirs = tables::find(there, names.iter().map(String::as_str)).await?;
        for name in names.iter().filter(|name| !theirs.names.contains_key(*name)) {
            let name = tables::display(&tables::parse_name(name));
            all.push(bad(
                "table",
                format!("there is no table {name} in production"),
                format!("synctool datasync remove-tables {name}"),
            ));
        }
        for (name, table) in &theirs.tables {
            match table.fits(here.tables.get(name)) {
                Ok(()) => all.push(Finding::good(
                    "table",
                    format!("{} is alike on both sides", table.display()),
                )),
                Err(e) => all.push(failed("table", &e)),
            }
        }
        for (_, trouble) in tables::misparted(local, &theirs, &here).await?.values() {
            all.push(failed("partitions", trouble));
        }
    } else {
        all.push(Finding::good(
            "tables",
            "they are compared with production's once the scratch server runs",
        ));
    }
    here.tables.values().for_each(|table| keys(table, all));
    let locals: Vec<String> = here.tables.keys().map(tables::display).collect();
    let rows = local.query(sql::PUBLISHED, &[&locals]).await;
    for row in rows.map_err(|e| local.error(e, "reading publications"))? {
        let (publication, table): (String, String) = (row.get(0), row.get(1));
        all.push(bad(
            "publication",
            format!("local publication {publication} publishes {table}, which has no replica identity: deletes would fail; drop it"),
            format!("DROP PUBLICATION {}", crate::postgres::sql::ident(&publication)),
        ));
    }
    let rows = local.query(sql::MISSING_RIGHTS, &[&locals]).await;
    for row in rows.map_err(|e| local.error(e, "reading rights"))? {
        let table: String = row.get(0);
        all.push(bad(
            "rights",
            format!("the role may not read, insert into and delete from {table}"),
            format!("GRANT SELECT, INSERT, DELETE ON {table} TO the role"),
        ));
    }
    Ok(())
}

fn keys(table: &Table, all: &mut Vec<Finding>) {
    if !table.key().is_empty() {
        return;
    }
    let name = table.display();
    all.push(Finding::note(
        "key",
        format!("table {name} has no primary key: whole rows are compared"),
        format!("a primary key on {name}, in production and here, makes batches faster"),
    ));
    for column in table
        .columns
        .iter()
        .filter(|c| ["json", "xml", "point"].contains(&c.kind.as_str()))
    {
        all.push(Finding::good(
            "key",
            format!(
                "column {} of type {} cannot be compared directly; text is used",
                column.name, column.kind
            ),
        ));
    }
}

async fn both(local: &Connection, there: &Connection, all: &mut Vec<Finding>) -> Result<()> {
    let theirs = there.query_one(sql::COLLATION, &[]).await;
    let ours = local.query_one(sql::COLLATION, &[]).await;
    let text = |row: &tokio_postgres::Row| row.get::<_, Option<String>>(0).unwrap_or_default();
    let theirs = text(&theirs.map_err(|e| there.error(e, "reading the collation"))?);
    let ours = text(&ours.map_err(|e| local.error(e, "reading the collation"))?);
    match theirs == ours {
        true => all.push(Finding::good("collation", ours)),
        false => all.push(Finding::note(
            "collation",
            format!("collation or its version differs: production {theirs}, local {ours}; only the order of text is concerned"),
            "use the same operating system's collations if the order matters",
        )),
    }
    let selected = local.query(sql::SELECTED, &[]).await;
    let selected = selected.map_err(|e| local.error(e, "reading tables_to_sync"))?;
    let selected: Vec<String> = selected.iter().map(|row| row.get(0)).collect();
    let synced = tables::find(there, selected.iter().map(String::as_str)).await?.tables;
    let synced: BTreeSet<Name> = synced.into_keys().collect();
    let rows = there.query(sql::MISSING_EXTENSIONS, &[]).await;
    for row in rows.map_err(|e| there.error(e, "reading extensions"))? {
        let (name, schemas, tables): (String, Vec<String>, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let using: Vec<Name> = schemas.into_iter().zip(tables).collect();
        all.push(missing_extension(&name, &using, &synced));
    }
    Ok(())
}

/// Without its files no value of its types can be read, which matters where one is synced.
fn missing_extension(name: &str, using: &[Name], synced: &BTreeSet<Name>) -> Finding {
    let (ours, others): (Vec<&Name>, Vec<&Name>) = using.iter().partition(|table| synced.contains(*table));
    let names = |tables: &[&Name]| match tables {
        [one] => format!("table {} uses its type", tables::display(one)),
        several => {
            let names: Vec<String> = several.iter().map(|name| tables::display(name)).collect();
            format!("tables {} use its types", names.join(", "))
        }
    };
    let missing = format!("extension {name} is missing in the scratch installation");
    let fix = format!("install the package of {name} for the programs in PG_BIN_DIR");
    match (&ours[..], &others[..]) {
        ([], []) => Finding::note("extension", format!("{missing}; no table uses a type of it"), fix),
        ([], others) => Finding::note("extension", format!("{missing}; {}, not selected", names(others)), fix),
        (ours, _) => bad("extension", format!("{missing}; {}", names(ours)), fix),
    }
}
