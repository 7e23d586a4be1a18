//! Tables that are changed in place: whether they can be, and making them and their new columns before the first change.

use super::control::Control;
use super::destination::new_columns;
use super::publish::{counted, empty, manifest};
use super::rewrite::check_rewritable;
use super::settle;
use super::source;
use super::store::{self, Put};
use super::table::{CONTROL, Load, Located, Manifest, Place, Shape, manifest_name, newest_manifest};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::plan::PlannedTable;
use synctool_core::schema::Column;

/// Refuses a table whose rows cannot be changed one by one.
pub(super) fn check(place: &Place, table: &PlannedTable) -> Result<()> {
    table.schema.key_indices()?;
    let Some(located) = place.locate(&table.destination)? else {
        return Ok(());
    };
    let refuse = |why: String| {
        Err(Error::new(code::SCHEMA_MISMATCH, why)
            .at("table", table.destination.to_string())
            .hint("replace the table with strategy full and full_mode: swap"))
    };
    let schema = source::describe(&located)?;
    for new in new_columns(&schema, table) {
        if !table.evolve || table.schema.key.contains(&new.name) {
            return refuse(format!("the files that are there have no column {}", new.name));
        }
    }
    for there in &schema.columns {
        match table.schema.column(&there.name) {
            None if !there.nullable => {
                return refuse(format!(
                    "column {} of the files that are there is NOT NULL and not written",
                    there.name
                ));
            }
            Some(new) if !new.ty.fits(&there.ty) => {
                return refuse(format!(
                    "column {} is {} there, which does not hold {}",
                    there.name, there.ty, new.ty
                ));
            }
            _ => {}
        }
    }
    check_rewritable(&located).map_err(|e| e.at("table", table.destination.to_string()))
}

/// Makes a table that is not there, empty, and gives one that is there its new columns and a manifest. The table's lock
/// is held.
pub(super) fn make(place: &Place, control: &Control, table: &PlannedTable) -> Result<()> {
    let made = match place.locate(&table.destination)? {
        None => create(place, control, table),
        Some(located) => extend(place, table, &located),
    };
    made.map_err(|e| e.at("table", table.destination.to_string()))
}

fn create(place: &Place, control: &Control, table: &PlannedTable) -> Result<()> {
    let name = place.writable_name(&table.destination)?;
    let made = Load {
        pipeline: control.pipeline.clone(),
        // No plan has this number: the table was made for the first of them.
        generation: 0,
        applied: Applied::default(),
        into: false,
    };
    let part = format!(
        "{}0-{}",
        settle::prefix(&control.pipeline),
        uuid::Uuid::new_v4().simple()
    );
    if let Some(target) = place.file_of(name)? {
        let dir = place.dir().join(CONTROL);
        store::create_dir(&dir)?;
        let mut file = empty(table, &dir, &part, &place.config.format)?;
        let from = dir.join(&file.name);
        file.name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return settle::put_file(place, &from, &target, &manifest(place, table, vec![file], vec![made]));
    }
    let folder = place.folder_of(name);
    store::create_dir(&folder)?;
    let (version, _) = newest_manifest(&folder, &store::list(&folder)?)?;
    let file = empty(table, &folder, &part, &place.config.format)?;
    put(
        &folder.join(manifest_name(version + 1)),
        &manifest(place, table, vec![file], vec![made]),
    )?;
    settle::tidy(&folder, &control.pipeline, 0)
}

/// Gives a table its new columns, NULL in the files that are there, and a manifest. The table's lock is held.
pub(super) fn extend(place: &Place, table: &PlannedTable, located: &Located) -> Result<()> {
    let mut schema = source::describe(located)?;
    let new: Vec<Column> = new_columns(&schema, table).cloned().collect();
    if new.is_empty() && (located.known.is_some() || located.shape == Shape::File) {
        return Ok(());
    }
    let mut files = counted(located)?;
    for file in &mut files {
        file.lacks.extend(new.iter().map(|c| c.name.clone()));
    }
    let loads = located.known.as_ref().map_or(Vec::new(), |k| k.loads.clone());
    schema
        .columns
        .extend(new.into_iter().map(|c| Column { nullable: true, ..c }));
    let mut manifest = Manifest::new(&located.format, schema, files, loads);
    match located.shape {
        Shape::File => {
            for file in &located.files {
                let beside = place.sidecar(&file.name, &located.path(&file.name))?;
                store::create_dir(&place.sidecars())?;
                store::replace(&beside, &store::json(&manifest))?;
            }
            Ok(())
        }
        Shape::Folder => {
            let (version, known) = newest_manifest(&located.root, &store::list(&located.root)?)?;
            if let Some(known) = &known {
                manifest.obsolete = settle::obsolete(&located.root, known, &manifest.files)?;
            }
            put(&located.root.join(manifest_name(version + 1)), &manifest)
        }
    }
}

fn put(path: &std::path::Path, manifest: &Manifest) -> Result<()> {
    match store::put_if_absent(path, &store::json(manifest))? {
        Put::Done => Ok(()),
        Put::Taken | Put::NoFolder => Err(Error::new(
            code::CONFLICT,
            "another run changed the same table at the same time",
        )),
    }
}
