//! The end of a load: sealing (small files are joined), and publishing (the files become the table in one step).
//!
//! A folder's step is its next manifest, which exactly one writer can create; a single file's is one rename. Both can be
//! repeated after a crash: the manifest names the loads it holds, and a renamed file is the same file as its load's.

use super::control::{Control, Log, Part, Sealed, SealedTable, fenced, gone};
use super::destination::new_columns;
use super::merge::{Changed, View};
use super::pending::{self, Changes};
use super::settle::{self, Replacing};
use super::sink::{create_part, extension, paths, unfinished};
use super::source;
use super::store::{self, Put, io_error};
use super::table::{DataFile, Load, Located, Manifest, Place, Shape, manifest_name, newest_manifest};
use super::{Format, csv, direct, parquet, rewrite};
use std::collections::HashMap;
use std::path::Path;
use synctool_core::change::Op;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, PlannedTable, Publish, short_hash};
use synctool_core::progress::PartitionId;
use synctool_core::schema::{Column, TableId};
use synctool_core::sink::Published;

/// Smaller files of a load are joined with their neighbours …
pub(super) const SMALL: u64 = 4 << 20;
/// … up to this size.
const JOINED: u64 = 64 << 20;

/// Decides which files will be published. Repeatable: the first decision stands.
pub(super) fn seal(place: &Place, control: &Control, plan: &Plan) -> Result<()> {
    if control.done(plan.generation.0)?.is_some() || control.sealed(plan)?.is_some() {
        return Ok(());
    }
    control.check_generation(plan)?;
    let log = finished(control, plan)?;
    let order: HashMap<&PartitionId, usize> = plan.partitions().enumerate().map(|(i, p)| (&p.id, i)).collect();
    let mut parts: Vec<&Part> = log.parts.iter().collect();
    parts.sort_by_key(|p| p.partition.as_ref().and_then(|id| order.get(id)));
    let dir = control.part_dir(plan);
    let mut tables = Vec::new();
    for (index, table) in plan.tables.iter().enumerate() {
        let files: Vec<DataFile> = parts
            .iter()
            .filter(|p| p.table == index)
            .map(|p| p.file.clone())
            .collect();
        let name = place.writable_name(&table.destination)?;
        // A table that is one file stays one file.
        let shape = match place.file_of(name)? {
            Some(_) => Shape::File,
            None => Shape::Folder,
        };
        let mut sealed = Vec::new();
        if table.publish == Publish::Direct {
            // Its changes are in it already.
            tables.push(SealedTable { shape, files: sealed });
            continue;
        }
        for (i, run) in runs(files, shape).into_iter().enumerate() {
            sealed.push(match run.as_slice() {
                [one] => one.clone(),
                several => join(several, &dir, &format!("joined-{index}-{i}"), &place.config.format)?,
            });
        }
        if sealed.is_empty() {
            sealed.push(empty(table, &dir, &format!("empty-{index}"), &place.config.format)?);
        }
        tables.push(SealedTable { shape, files: sealed });
    }
    store::sync_dir(&dir)?;
    control.seal(plan, &Sealed { tables })
}

/// The log of a load whose partitions are all done.
fn finished(control: &Control, plan: &Plan) -> Result<Log> {
    let mut log = control.log(plan);
    log.catch_up()?;
    match plan.partitions().find(|p| p.must_be_done() && !log.state(&p.id).done) {
        Some(open) => Err(unfinished(&open.id)),
        None => Ok(log),
    }
}

/// Files in the groups that become one file each.
fn runs(files: Vec<DataFile>, shape: Shape) -> Vec<Vec<DataFile>> {
    let mut runs: Vec<Vec<DataFile>> = Vec::new();
    for file in files {
        let joins = runs.last().is_some_and(|run| {
            let bytes: u64 = run.iter().map(|f| f.bytes).sum();
            shape == Shape::File || (file.bytes < SMALL && bytes < JOINED && run.iter().all(|f| f.bytes < SMALL))
        });
        match runs.last_mut() {
            Some(run) if joins => run.push(file),
            _ => runs.push(vec![file]),
        }
    }
    runs
}

fn join(files: &[DataFile], dir: &Path, name: &str, format: &Format) -> Result<DataFile> {
    let name = format!("{name}.{}", extension(format));
    let (path, temp) = (dir.join(&name), store::temp_beside(&dir.join(&name)));
    let parts = paths(dir, files);
    match format {
        Format::Csv(options) => csv::join(&parts, &temp, options)?,
        Format::Parquet(_) => parquet::join(&parts, &temp)?,
    }
    store::rename(&temp, &path)?;
    let bytes = path.metadata().map_err(|e| io_error("read", &path, e))?.len();
    Ok(DataFile {
        name,
        rows: Some(files.iter().filter_map(|f| f.rows).sum()),
        bytes,
        lacks: Vec::new(),
    })
}

/// A table without rows still has columns, and a file that says so.
pub(super) fn empty(table: &PlannedTable, dir: &Path, name: &str, format: &Format) -> Result<DataFile> {
    let name = format!("{name}.{}", extension(format));
    let temp = store::temp_beside(&dir.join(&name));
    let (rows, bytes) = create_part(&temp, &table.schema, format, None)?.finish()?;
    store::rename(&temp, &dir.join(&name))?;
    Ok(DataFile {
        name,
        rows: Some(rows),
        bytes,
        lacks: Vec::new(),
    })
}

/// The sealed files of a load, for reading them back.
pub(super) fn load(place: &Place, control: &Control, plan: &Plan, index: usize) -> Result<Located> {
    let sealed = control.sealed(plan)?.ok_or_else(|| gone(plan))?;
    let (table, planned) = match (sealed.tables.into_iter().nth(index), plan.tables.get(index)) {
        (Some(sealed), Some(planned)) => (sealed, planned),
        _ => return Err(Error::bug("a load of a table that is not in the plan")),
    };
    Ok(Located {
        shape: Shape::Folder,
        root: control.part_dir(plan),
        known: Some(manifest(place, planned, table.files.clone(), Vec::new())),
        files: table.files,
        format: place.config.format.clone(),
        _lease: None,
    })
}

pub(super) fn manifest(place: &Place, table: &PlannedTable, files: Vec<DataFile>, loads: Vec<Load>) -> Manifest {
    Manifest::new(&place.config.format, table.schema.clone(), files, loads)
}

/// Makes the load the table.
pub(super) fn publish(place: &Place, control: &Control, plan: &Plan) -> Result<Published> {
    failpoint("publish.before")?;
    if let Some(done) = control.done(plan.generation.0)? {
        control.fold(plan.generation.0)?;
        return Ok(Published { applied: done.applied });
    }
    let _locked = settle::lock(place, plan.tables.iter().map(|t| t.destination.name.as_str()))?;
    control.check_generation(plan)?;
    finished(control, plan)?;
    let sealed = match plan.tables.iter().all(|t| t.publish == Publish::Direct) {
        true => Vec::new(),
        false => {
            let sealed = control.sealed(plan)?;
            sealed
                .ok_or_else(|| Error::bug("publishing a load that was not sealed"))?
                .tables
        }
    };
    for name in settle::direct(plan) {
        settle::tidy(&place.folder_of(name), &control.pipeline, plan.generation.0)?;
    }
    let mut applied = Applied::default();
    let loaded = plan
        .tables
        .iter()
        .zip(&sealed)
        .enumerate()
        .filter(|(_, (t, _))| t.publish != Publish::Direct);
    for (index, (table, sealed)) in loaded {
        let publishing = Publishing {
            place,
            control,
            plan,
            index,
            table,
            sealed,
        };
        let did = match sealed.shape {
            Shape::File => publishing.file(),
            Shape::Folder => publishing.folder(),
        };
        applied += did.map_err(|e| e.at("table", table.destination.to_string()))?;
    }
    control.finish(plan, applied)?;
    failpoint("publish.after")?;
    Ok(Published { applied })
}

struct Publishing<'a> {
    place: &'a Place,
    control: &'a Control,
    plan: &'a Plan,
    index: usize,
    table: &'a PlannedTable,
    sealed: &'a SealedTable,
}

impl Publishing<'_> {
    fn existing(&self) -> Result<Option<Located>> {
        Ok(self.place.locate(&self.table.destination)?.map(Located::let_go))
    }

    /// What this load does to the table, if the guard allows it.
    fn judge(&self, existing: Option<&Located>) -> Result<Applied> {
        let rows = self.sealed.rows();
        let mut applied = Applied::inserts(rows);
        match (&self.table.publish, existing) {
            (Publish::Create, Some(_)) => {
                return Err(Error::new(
                    code::REFUSED,
                    "the table exists now, and did not when the run was planned",
                )
                .hint("start over with `synctool state reset`, and full_mode: swap if it is to be replaced"));
            }
            (Publish::Swap, Some(located)) => {
                let before = source::count(located)?;
                // Rows are not compared: what can be said is by how many the table shrinks.
                applied.deleted = before.saturating_sub(rows);
                self.guard(before, applied.deleted)?;
            }
            _ => {}
        }
        Ok(applied)
    }

    fn guard(&self, before: u64, deleted: u64) -> Result<()> {
        let table = &self.table.destination;
        self.plan.guard.check(table, before, deleted, self.sealed.rows())
    }

    fn me(&self, applied: Applied) -> Load {
        Load {
            pipeline: self.control.pipeline.clone(),
            generation: self.plan.generation.0,
            applied,
            into: matches!(self.table.publish, Publish::Append | Publish::Merge { .. }),
        }
    }

    /// Works the load into the table's files, unseen by anybody.
    fn merged(&self, existing: Option<&Located>, delete_missing: bool) -> Result<(Applied, Replacing)> {
        let located = existing.ok_or_else(|| self.place.missing(&self.table.destination))?;
        let (dir, schema) = (self.control.part_dir(self.plan), &self.table.schema);
        let mut view = View::new(located, schema, (&dir, self.merged_prefix()), delete_missing)?;
        let before = view.rows();
        let mut applied = Applied::default();
        let load = load(self.place, self.control, self.plan, self.index)?;
        for rows in rewrite::in_pieces(&load, schema, pending::HELD_BYTES) {
            applied += view.step(pending::Step::Change(Changes::all(rows?, Op::Upsert)))?;
        }
        if delete_missing {
            applied.deleted = view.unseen();
            self.guard(before, applied.deleted)?;
            view.forget_unseen()?;
        }
        let changed = match view.finish()? {
            Some(changed) => changed,
            None => Changed {
                files: counted(located)?,
                fresh: Vec::new(),
            },
        };
        store::sync_dir(&dir)?;
        let replacing = replacing(
            self.place,
            &self.table.destination,
            located,
            changed,
            Some(self.me(applied)),
        )?;
        Ok((applied, replacing))
    }

    /// The table with the columns that the plan adds.
    fn extended(&self) -> Result<Option<Located>> {
        match self.existing()? {
            Some(located) if self.table.evolve => {
                direct::extend(self.place, self.table, &located)?;
                self.existing()
            }
            located => Ok(located),
        }
    }

    fn merged_prefix(&self) -> String {
        format!("{}merged-", self.prefix())
    }

    /// Merges the load into the table, or finds that it is there.
    fn merge(&self, existing: Option<&Located>, delete_missing: bool) -> Result<Applied> {
        let dir = self.control.part_dir(self.plan);
        let mut left = store::list(&dir)?;
        left.retain(|name| name.starts_with(&self.merged_prefix()));
        let known = existing.and_then(|l| l.known.as_ref());
        if let Some(applied) = known.and_then(|k| k.load(&self.control.pipeline, self.plan.generation.0))
            // What is known of a single file is there before the file; as long as that lies here, it has not moved in.
            && left.is_empty()
        {
            return Ok(applied);
        }
        for name in left {
            store::remove(&dir.join(name))?;
        }
        let (applied, replacing) = self.merged(self.extended()?.as_ref(), delete_missing)?;
        failpoint("publish.moved")?;
        self.control.check_generation(self.plan)?;
        settle::put_in_place(self.place, self.control, self.plan.generation.0, &replacing)?;
        failpoint("publish.manifest")?;
        Ok(applied)
    }

    /// One rename. What we know about the file is there before, under a name that only this file's content has.
    fn file(&self) -> Result<Applied> {
        let name = self.place.writable_name(&self.table.destination)?;
        let target = self
            .place
            .file_of(name)?
            .ok_or_else(|| fenced("the file that was to be replaced is gone".into()))?;
        if let Publish::Merge { delete_missing } = self.table.publish {
            return self.merge(self.existing()?.as_ref(), delete_missing);
        }
        let [file] = self.sealed.files.as_slice() else {
            return Err(Error::bug("a single file was sealed as several"));
        };
        let load = self.control.part_dir(self.plan).join(&file.name);
        if !store::exists(&load) {
            return Err(gone(self.plan));
        }
        let target_name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sidecar = self.place.sidecar(&target_name, &load)?;
        if !store::same_file(&load, &target) {
            let existing = self.existing()?;
            let applied = self.judge(existing.as_ref())?;
            let named = DataFile {
                name: target_name.clone(),
                ..file.clone()
            };
            let known = manifest(self.place, self.table, vec![named], vec![self.me(applied)]);
            store::create_dir(&self.place.sidecars())?;
            store::replace(&sidecar, &store::json(&known))?;
            failpoint("publish.manifest")?;
            self.control.check_generation(self.plan)?;
            self.put(&load, &target)?;
        }
        failpoint("publish.moved")?;
        let known: Manifest =
            store::read_json(&sidecar)?.ok_or_else(|| Error::bug("what we know about a published file is lost"))?;
        settle::forget_others(self.place, &target_name, &sidecar)?;
        known
            .load(&self.control.pipeline, self.plan.generation.0)
            .ok_or_else(|| Error::bug("a published file was written by somebody else"))
    }

    /// The load's file gets a second name, and that one becomes the table: the load keeps its own until it is folded,
    /// so that a repetition can see that it is done. If the load was taken away meanwhile, there is nothing to rename.
    ///
    /// The name in between is always the same, so a successor takes away what a zombie was about to rename.
    fn put(&self, load: &Path, target: &Path) -> Result<()> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let between = store::parent(target).join(format!(".synctool-{}-{name}", short_hash(&self.control.pipeline)));
        let linked = if self.table.publish == Publish::Create {
            std::fs::hard_link(load, target)
        } else {
            store::remove(&between)?;
            std::fs::hard_link(load, &between)
        };
        linked.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => gone(self.plan),
            std::io::ErrorKind::AlreadyExists => Error::new(
                code::REFUSED,
                "the file exists now, and did not when the run was planned",
            )
            .hint("start over with `synctool state reset`, and full_mode: swap if it is to be replaced"),
            _ => io_error("write", target, e),
        })?;
        match self.table.publish {
            Publish::Create => store::sync_dir(store::parent(target)),
            _ => store::rename(&between, target),
        }
    }

    /// The files move into the table's folder, then one manifest makes them the table.
    fn folder(&self) -> Result<Applied> {
        let name = self.place.writable_name(&self.table.destination)?;
        let folder = self.place.folder_of(name);
        // First the number, then what there is: somebody who publishes in between makes our manifest come too late.
        let (mut version, _) = newest_manifest(&folder, &store::list(&folder)?)?;
        let existing = self.existing()?;
        let known = existing.as_ref().and_then(|l| l.known.as_ref());
        if let Some(applied) = known.and_then(|k| k.load(&self.control.pipeline, self.plan.generation.0)) {
            settle::tidy(&folder, &self.control.pipeline, self.plan.generation.0)?;
            return Ok(applied);
        }
        let applied = self.judge(existing.as_ref())?;
        store::create_dir(&folder)?;
        let merges = match self.table.publish {
            Publish::Merge { delete_missing } => Some(delete_missing),
            _ => None,
        };
        if version == 0 {
            // From here on nobody takes files that are not in a manifest for a part of the table.
            version = 1;
            self.put_manifest(&folder, version, &self.as_it_was(existing.as_ref())?)?;
            failpoint("publish.announced")?;
        }
        if let Some(delete_missing) = merges {
            return self.merge(existing.as_ref(), delete_missing);
        }
        let mut files = self.move_in(&folder)?;
        failpoint("publish.moved")?;
        let mut loads = vec![self.me(applied)];
        let mut obsolete = Vec::new();
        let mut schema = self.table.schema.clone();
        if let Some(located) = &existing {
            if self.table.publish == Publish::Append {
                let mut all = counted(located)?;
                loads.splice(0..0, known.into_iter().flat_map(|k| k.loads.clone()));
                schema = source::describe(located)?;
                let new: Vec<Column> = new_columns(&schema, self.table).cloned().collect();
                for file in &mut all {
                    file.lacks.extend(new.iter().map(|c| c.name.clone()));
                }
                schema
                    .columns
                    .extend(new.into_iter().map(|c| Column { nullable: true, ..c }));
                all.append(&mut files);
                files = all;
            } else {
                obsolete = located.files.iter().map(|f| f.name.clone()).collect();
            }
            if let Some(known) = known {
                obsolete.extend(settle::obsolete(&folder, known, &files)?);
            }
        }
        let mut manifest = manifest(self.place, self.table, files, loads);
        (manifest.schema, manifest.obsolete) = (schema, obsolete);
        self.control.check_generation(self.plan)?;
        self.put_manifest(&folder, version + 1, &manifest)?;
        failpoint("publish.manifest")?;
        settle::tidy(&folder, &self.control.pipeline, self.plan.generation.0)?;
        Ok(applied)
    }

    /// The first manifest of a folder that has none: what lies there now.
    fn as_it_was(&self, existing: Option<&Located>) -> Result<Manifest> {
        let files = existing.map_or(Ok(Vec::new()), counted)?;
        let mut manifest = manifest(self.place, self.table, files, Vec::new());
        manifest.unpublished = existing.is_none();
        if let Some(located) = existing {
            manifest.schema = source::describe(located)?;
        }
        Ok(manifest)
    }

    fn put_manifest(&self, folder: &Path, version: u64, manifest: &Manifest) -> Result<()> {
        match store::put_if_absent(&folder.join(manifest_name(version)), &store::json(manifest))? {
            Put::Done => Ok(()),
            Put::Taken | Put::NoFolder => {
                self.control.check_generation(self.plan)?;
                Err(Error::new(
                    code::CONFLICT,
                    "another run published the same table at the same time",
                ))
            }
        }
    }

    /// Moves the load's files, or finds that they were moved.
    fn move_in(&self, folder: &Path) -> Result<Vec<DataFile>> {
        let dir = self.control.part_dir(self.plan);
        let mut moved = Vec::new();
        for (i, file) in self.sealed.files.iter().enumerate() {
            let named = DataFile {
                name: format!("{}{i:05}.{}", self.prefix(), extension(&self.place.config.format)),
                ..file.clone()
            };
            settle::move_in(&dir.join(&file.name), folder, &named)?;
            moved.push(named);
        }
        store::sync_dir(folder)?;
        Ok(moved)
    }

    /// How the names of this load's files begin in the table's folder.
    fn prefix(&self) -> String {
        format!("{}{}-", settle::prefix(&self.control.pipeline), self.plan.generation)
    }
}

/// What takes the place of a table as it is.
pub(super) fn replacing(
    place: &Place,
    table: &TableId,
    located: &Located,
    changed: Changed,
    load: Option<Load>,
) -> Result<Replacing> {
    let name = place.writable_name(table)?;
    let (schema, Changed { mut files, fresh }) = (source::describe(located)?, changed);
    let mut loads = located.known.as_ref().map_or(Vec::new(), |k| k.loads.clone());
    if let Some(load) = load {
        // Of those that came into a table only the last one of a pipeline may have to be known again.
        loads.retain(|l| !l.into || l.pipeline != load.pipeline);
        loads.push(load);
    }
    let (mut version, mut obsolete) = (0, Vec::new());
    match located.shape {
        Shape::File => {
            // It keeps its name.
            for (file, old) in files.iter_mut().zip(&located.files) {
                file.name.clone_from(&old.name);
            }
        }
        Shape::Folder => {
            let folder = place.folder_of(name);
            let (newest, known) = newest_manifest(&folder, &store::list(&folder)?)?;
            let known = known.ok_or_else(|| Error::bug("a table is changed that has no manifest"))?;
            obsolete = settle::obsolete(&folder, &known, &files)?;
            version = newest + 1;
        }
    }
    let mut manifest = Manifest::new(&located.format, schema, files, loads);
    manifest.obsolete = obsolete;
    Ok(Replacing {
        name: name.to_string(),
        shape: located.shape,
        manifest,
        version,
        fresh,
    })
}

/// The files of a table with their rows, so that a manifest can say them.
pub(super) fn counted(located: &Located) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for file in &located.files {
        let alone = Located {
            files: vec![file.clone()],
            ..located.clone()
        };
        files.push(DataFile {
            rows: Some(source::count(&alone)?),
            ..file.clone()
        });
    }
    Ok(files)
}
