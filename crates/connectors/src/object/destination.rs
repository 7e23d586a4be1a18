//! The destination: plans, checks and the doors to sink and publishing.

use super::control::Control;
use super::pending::HELD_BYTES;
use super::sink::FileSink;
use super::source::{self, Files};
use super::table::{CONTROL, Located, Place, Shape, is_own};
use super::{Format, blocking, direct, publish, settle, store, types};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::plan::{Plan, PlannedTable, Publish};
use synctool_core::progress::Checkpoint;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::Published;
use synctool_core::sink::{Destination, Guarantee, Sink, SinkTraits, StoredAs, StoredPlan};
use synctool_core::source::{Finding, Source};

/// How many part files are written at the same time into a folder.
const WRITERS: usize = 4;

/// A folder of tables, or one file, to write to.
pub(super) struct Folder {
    place: Arc<Place>,
}

impl Folder {
    pub(super) fn new(place: Arc<Place>) -> Self {
        Folder { place }
    }

    fn control(&self, pipeline: &str) -> Control {
        Control::new(self.place.dir(), pipeline)
    }

    async fn locate(&self, table: &TableId) -> Result<Option<Located>> {
        let (place, table) = (self.place.clone(), table.clone());
        blocking(move || {
            place.writable_name(&table)?;
            place.locate(&table)
        })
        .await
    }

    /// Refuses what files cannot do, and names that cannot be files.
    fn check(&self, plan: &Plan) -> Result<()> {
        for table in &plan.tables {
            let name = self.place.writable_name(&table.destination)?;
            if is_own(name) && !table.own {
                return Err(Error::new(
                    code::IDENTIFIER,
                    format!("table {name:?} has a name that is reserved for SyncTool's own tables"),
                )
                .hint("give the destination table another name"));
            }
            match table.publish {
                Publish::Create | Publish::Swap => {}
                Publish::Direct | Publish::Merge { .. } => direct::check(&self.place, table)?,
                Publish::Append if self.place.single.is_some() => {
                    return Err(Error::new(code::UNSUPPORTED, "rows cannot be added to a single file")
                        .at("table", table.destination.to_string())
                        .hint("give a folder as path, or set full_mode: swap"));
                }
                Publish::Append => self.check_append(table)?,
            }
        }
        Ok(())
    }

    /// Files that are added must read like those that are there.
    fn check_append(&self, table: &PlannedTable) -> Result<()> {
        let Some(located) = self.place.locate(&table.destination)? else {
            return Ok(());
        };
        let refuse = |why: String| {
            Err(Error::new(code::SCHEMA_MISMATCH, why)
                .at("table", table.destination.to_string())
                .hint("replace the table with full_mode: swap"))
        };
        if located.shape == Shape::File {
            return refuse("the table is a single file, to which no rows can be added".into());
        }
        if located.format != self.place.config.format && matches!(located.format, Format::Csv(_)) {
            return refuse("the CSV files that are there were written with other settings".into());
        }
        let schema = source::describe(&located)?;
        let new: Vec<&str> = new_columns(&schema, table).map(|c| c.name.as_str()).collect();
        if !new.is_empty() && !table.evolve {
            return refuse(format!("the files that are there have no column {}", new.join(", ")));
        }
        let by_place = matches!(&located.format, Format::Csv(o) if !o.header);
        if by_place
            && !schema
                .columns
                .iter()
                .map(|c| &c.name)
                .eq(table.schema.columns.iter().map(|c| &c.name))
        {
            return refuse("without a header line, all files need the same columns in the same order".into());
        }
        for there in &schema.columns {
            match table.schema.column(&there.name) {
                None => {
                    return refuse(format!(
                        "column {} of the files that are there is not written",
                        there.name
                    ));
                }
                Some(new) if !new.ty.fits(&there.ty) => {
                    return refuse(format!(
                        "column {} is {} there, which does not hold {}",
                        there.name, there.ty, new.ty
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The columns of a plan that the table does not have yet.
pub(super) fn new_columns<'a>(there: &'a TableSchema, table: &'a PlannedTable) -> impl Iterator<Item = &'a Column> {
    table.schema.columns.iter().filter(|c| there.column(&c.name).is_none())
}

#[async_trait]
impl Destination for Folder {
    fn engine(&self) -> &'static str {
        self.place.config.format.name()
    }

    fn traits(&self) -> SinkTraits {
        let single = self.place.single.is_some();
        SinkTraits {
            writers: if single { 1 } else { WRITERS },
            guarantee: Guarantee::EffectivelyOnce,
            // Each commit writes files anew: worth it for a run's changes, not for those of every second.
            applies_changes: false,
            single_partition: single,
        }
    }

    fn store_as(&self, _source_engine: &str, column: &Column) -> StoredAs {
        match &self.place.config.format {
            Format::Csv(_) => types::store_in_csv(column),
            Format::Parquet(_) => types::store_in_parquet(column),
        }
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        let Some(located) = self.locate(table).await? else {
            return Ok(None);
        };
        blocking(move || source::describe(&located).map(Some)).await
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        let Some(located) = self.locate(table).await? else {
            return Ok(true);
        };
        blocking(move || Ok(source::count(&located)? == 0)).await
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        Ok(self
            .locate(table)
            .await?
            .is_some_and(|l| l.known.is_some_and(|k| k.loads.iter().any(|load| !load.into))))
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let Some(located) = self.locate(table).await? else {
            return Ok(Vec::new());
        };
        let wanted = wanted.clone();
        blocking(move || {
            let extra = source::describe(&located)?.difference(&wanted).extra;
            let mut obstacles: Vec<String> = extra
                .iter()
                .map(|c| format!("column {} would be lost", c.name))
                .collect();
            let strangers = source::strangers(&located)?;
            if !strangers.is_empty() {
                obstacles.push(format!("its folder also holds {}", strangers.join(", ")));
            }
            Ok(obstacles)
        })
        .await
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        self.check(plan)?;
        let control = self.control(&plan.pipeline);
        let mut steps = vec![format!(
            "write part files into {}",
            control.load_dir(control.generation()? + 1).join("part").display()
        )];
        for table in &plan.tables {
            let name = self.place.writable_name(&table.destination)?;
            let verb = match table.publish {
                Publish::Append => "add them to",
                Publish::Swap => "put them in the place of",
                Publish::Merge { delete_missing: false } => "work their rows into",
                Publish::Merge { delete_missing: true } => "work their rows into, and delete what they have not in,",
                Publish::Direct => "with every commit, write the files anew that hold changed rows in",
                Publish::Create => "move them to",
            };
            let target = match self.place.file_of(name)? {
                Some(file) => format!("{} (joined into one file, by one rename)", file.display()),
                None => format!("{} (by one manifest)", self.place.folder_of(name).display()),
            };
            if !matches!(table.publish, Publish::Create | Publish::Swap)
                && let Some(located) = self.place.locate(&table.destination)?
            {
                let schema = source::describe(&located)?;
                let new: Vec<&str> = new_columns(&schema, table).map(|c| c.name.as_str()).collect();
                if !new.is_empty() {
                    steps.push(format!(
                        "add columns to {name}, NULL in its files so far: {}",
                        new.join(", ")
                    ));
                }
            }
            steps.push(format!("{verb} {target}"));
        }
        Ok(steps)
    }

    fn held_per_writer(&self) -> usize {
        match &self.place.config.format {
            Format::Csv(_) => HELD_BYTES,
            Format::Parquet(options) => options.row_group_bytes.max(HELD_BYTES),
        }
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        let control = self.control(pipeline);
        blocking(move || {
            let Some(plan) = control.plan()? else { return Ok(None) };
            let finished = control.done(plan.generation.0)?.is_some();
            Ok(Some(StoredPlan { plan, finished }))
        })
        .await
    }

    async fn prepare(&self, plan: Plan) -> Result<Plan> {
        failpoint("prepare.before")?;
        let (place, control) = (self.place.clone(), self.control(&plan.pipeline));
        let plan = blocking(move || {
            Folder::new(place.clone()).check(&plan)?;
            store::create_dir(place.dir())?;
            // What a crash has left of the plan before is done while its load is there to tell.
            let before = control.plan()?;
            let names = before.iter().flat_map(settle::direct).chain(settle::direct(&plan));
            let _locked = settle::lock(&place, names)?;
            for table in plan.tables.iter().filter(|t| t.publish == Publish::Direct) {
                direct::make(&place, &control, table)?;
            }
            control
                .raise(Some(plan))?
                .ok_or_else(|| Error::bug("a raised generation lost its plan"))
        })
        .await?;
        failpoint("prepare.after")?;
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let (control, plan) = (self.control(&plan.pipeline), plan.clone());
        blocking(move || {
            let mut log = control.log(&plan);
            log.catch_up()?;
            Ok(log.checkpoint())
        })
        .await
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        let sink = FileSink::open(self.place.clone(), self.control(&plan.pipeline), plan.clone()).await?;
        Ok(Box::new(sink))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        let (place, control, plan) = (self.place.clone(), self.control(&plan.pipeline), plan.clone());
        blocking(move || publish::seal(&place, &control, &plan)).await?;
        failpoint("seal.after")
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        let table = TableId::bare(plan.load_name(index));
        let (place, control, plan) = (self.place.clone(), self.control(&plan.pipeline), plan.clone());
        let find = move || publish::load(&place, &control, &plan, index);
        Some((Arc::new(Files::load(self.place.clone(), table.clone(), find)), table))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(Files::of(self.place.clone())))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let control = self.control(pipeline);
        blocking(move || control.remembered()).await
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let (control, facts) = (self.control(pipeline), facts.clone());
        blocking(move || control.remember(&facts)).await
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        let (place, control, plan) = (self.place.clone(), self.control(&plan.pipeline), plan.clone());
        blocking(move || publish::publish(&place, &control, &plan)).await
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let (place, control) = (self.place.clone(), self.control(pipeline));
        blocking(move || {
            if control.generation()? > 0 {
                let plan = match control.plan() {
                    // A plan that cannot be read is what forgetting is for.
                    Err(e) if e.code() == code::STATE_STORE => None,
                    plan => plan?,
                };
                let _locked = settle::lock(&place, plan.iter().flat_map(settle::direct))?;
                control.raise(None)?;
            }
            control.forget_facts()
        })
        .await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let (place, tables) = (self.place.clone(), tables.to_vec());
        let examined = blocking(move || Ok(examine(&place, &tables))).await;
        examined.unwrap_or_default()
    }
}

fn examine(place: &Place, tables: &[TableId]) -> Vec<Finding> {
    let dir = nearest(place.dir());
    let mut findings = Vec::new();
    let probe = store::temp_beside(&dir.join(CONTROL));
    let written = std::fs::write(&probe, b"probe").and_then(|()| std::fs::remove_file(&probe));
    findings.push(Finding::new(
        format!("{} can be written", place.dir().display()),
        written.is_ok(),
        written.as_ref().map_or_else(ToString::to_string, |()| "yes".into()),
        format!("give the user that runs synctool the right to write {}", dir.display()),
    ));
    if let Ok(free) = fs4::available_space(dir) {
        findings.push(Finding::new(
            format!("free space for {}", place.dir().display()),
            free > 1 << 30,
            format!("{} MiB; a load needs room beside the table it replaces", free >> 20),
            "free space on that disk",
        ));
    }
    for table in tables {
        if let Err(e) = place.writable_name(table) {
            findings.push(Finding::of_error(format!("table {table} can be written"), &e));
        }
    }
    findings
}

/// The folder, or the nearest one above that exists: the one that decides about rights and space.
fn nearest(dir: &Path) -> &Path {
    let mut at = dir;
    while !at.is_dir() {
        match at.parent() {
            Some(p) if !p.as_os_str().is_empty() => at = p,
            _ => return Path::new("."),
        }
    }
    at
}
