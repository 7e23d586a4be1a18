//! SQLite as a destination: plans, load tables, checkpoints, publishing.

use super::catalog;
use super::client::{Access, failed, with_connection};
use super::sink::{SqliteSink, end_writers};
use super::source::SqliteSource;
use super::sql::quote;
use super::{SqliteConfig, control, ddl, publish, types};
use async_trait::async_trait;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::plan::{Plan, PlannedTable, Publish};
use synctool_core::progress::{Checkpoint, Generation};
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::{Destination, Guarantee, Published, Sink, SinkTraits, StoredAs, StoredPlan};
use synctool_core::source::{Finding, Source};

/// SQLite as a destination.
#[derive(Debug)]
pub(super) struct SqliteDestination {
    config: Arc<SqliteConfig>,
}

impl SqliteDestination {
    pub(super) fn new(config: Arc<SqliteConfig>) -> Self {
        SqliteDestination { config }
    }

    /// Reads, if the file is there yet; a destination's file is made by prepare.
    async fn read<T: Default + Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // An empty file is a database without tables, but cannot be opened for reading in every journal mode.
        match std::fs::metadata(&self.config.path) {
            Ok(m) if m.len() > 0 || m.is_dir() => with_connection(&self.config, Access::Look, |conn| work(conn)).await,
            _ => Ok(T::default()),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        with_connection(&self.config, Access::Write, work).await
    }
}

#[async_trait]
impl Destination for SqliteDestination {
    fn engine(&self) -> &'static str {
        "sqlite"
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits {
            writers: 1,
            guarantee: Guarantee::ExactlyOnce,
            applies_changes: true,
            single_partition: false,
        }
    }

    fn store_as(&self, source_engine: &str, column: &Column) -> StoredAs {
        types::store_as(source_engine, column)
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        let name = catalog::table_name(table)?.to_string();
        self.read(move |conn| Ok(catalog::find(conn, &name)?.map(|t| t.schema())))
            .await
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        let table = table.clone();
        let any = self
            .read(move |conn| {
                let found = catalog::must_find(conn, &table)?;
                conn.query_row(
                    &format!("SELECT EXISTS (SELECT 1 FROM {})", quote(&found.name)),
                    [],
                    |r| r.get::<_, bool>(0),
                )
                .map_err(failed(|| format!("reading {}", found.name)))
            })
            .await?;
        Ok(!any)
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        let name = catalog::table_name(table)?.to_string();
        self.read(move |conn| control::made_here(conn, &name)).await
    }

    async fn widen(&self, table: &TableId, there: &Column, wanted: &Column) -> Result<Option<String>> {
        let name = catalog::table_name(table)?.to_string();
        let (there, wanted) = (there.clone(), wanted.clone());
        self.read(move |conn| ddl::widen(conn, &name, &there, &wanted)).await
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let (table, wanted) = (table.clone(), wanted.clone());
        self.read(move |conn| {
            let found = catalog::must_find(conn, &table)?;
            let mut obstacles = Vec::new();
            if found.kind != "table" {
                obstacles.push(format!("it is a {}, not a table", found.kind));
                return Ok(obstacles);
            }
            for (trigger, _) in ddl::attached(conn, &found.name, "trigger")? {
                obstacles.push(format!("trigger {trigger} would be lost"));
            }
            for child in ddl::referring(conn, &found.name)? {
                obstacles.push(format!("a foreign key of {child} refers to it"));
            }
            let extra: Vec<&str> = found
                .columns
                .iter()
                .filter(|c| !wanted.columns.iter().any(|w| w.name.eq_ignore_ascii_case(&c.name)))
                .map(|c| c.name.as_str())
                .collect();
            if !extra.is_empty() {
                obstacles.push(format!(
                    "columns that the pipeline does not write would be lost: {}",
                    extra.join(", ")
                ));
            }
            Ok(obstacles)
        })
        .await
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        let plan = plan.clone();
        let new = !self.config.path.exists();
        let statements = {
            let plan = plan.clone();
            self.read(move |conn| preview(Some(conn), &plan)).await?
        };
        Ok(if statements.is_empty() {
            let mut all = if new {
                vec!["PRAGMA journal_mode = WAL".to_string()]
            } else {
                Vec::new()
            };
            all.extend(preview(None, &plan)?);
            all
        } else {
            statements
        })
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        let pipeline = pipeline.to_string();
        self.read(move |conn| control::newest_plan(conn, &pipeline)).await
    }

    async fn prepare(&self, plan: Plan) -> Result<Plan> {
        failpoint("prepare.before")?;
        end_writers(&self.config.path, &plan.pipeline, None);
        let plan = self
            .write(move |conn| {
                control::transaction(conn, |conn| {
                    control::create(conn)?;
                    prepare(conn, plan)
                })
            })
            .await?;
        failpoint("prepare.after")?;
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let plan = plan.clone();
        self.read(move |conn| control::checkpoint(conn, &plan)).await
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        Ok(Box::new(SqliteSink::open(self.config.clone(), plan).await?))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        let plan = plan.clone();
        // Keys are part of the load tables from the start, as SQLite cannot add one later.
        self.read(move |conn| {
            if control::finished(conn, &plan)?.is_some() {
                return Ok(());
            }
            control::check_generation(conn, &plan)?;
            for (i, planned) in plan.tables.iter().enumerate() {
                if planned.publish != Publish::Direct {
                    catalog::must_find(conn, &TableId::bare(plan.load_name(i)))?;
                }
            }
            Ok(())
        })
        .await?;
        failpoint("seal.after")
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        let planned = plan.tables.get(index)?;
        let table = match planned.publish {
            Publish::Direct => planned.destination.clone(),
            _ => TableId::bare(plan.load_name(index)),
        };
        Some((Arc::new(SqliteSource::new(self.config.clone())), table))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(SqliteSource::new(self.config.clone())))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let pipeline = pipeline.to_string();
        self.read(move |conn| control::remembered(conn, &pipeline)).await
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let (pipeline, facts) = (pipeline.to_string(), facts.clone());
        self.write(move |conn| {
            control::transaction(conn, |conn| {
                control::create(conn)?;
                control::remember(conn, &pipeline, &facts)
            })
        })
        .await
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        let plan = plan.clone();
        end_writers(&self.config.path, &plan.pipeline, None);
        let published = self.write(move |conn| publish::publish(conn, &plan)).await?;
        failpoint("publish.after")?;
        Ok(published)
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let pipeline = pipeline.to_string();
        let known = self.read(control::exist).await?;
        if !known {
            return Ok(());
        }
        end_writers(&self.config.path, &pipeline, None);
        self.write(move |conn| {
            control::transaction(conn, |conn| {
                for load in ddl::load_tables(conn, &pipeline)? {
                    ddl::drop_table(conn, &load)?;
                }
                // A writer that is still at it must not go on with a plan that was forgotten.
                control::raise_generation(conn, &pipeline)?;
                control::forget(conn, &pipeline)
            })
        })
        .await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let mut findings = vec![self.examine_file()];
        if std::fs::metadata(&self.config.path).is_ok_and(|m| m.len() > 0) {
            let tables = tables.to_vec();
            match self.write(move |conn| examine(conn, &tables)).await {
                Ok(more) => findings.extend(more),
                Err(e) => findings.push(Finding::new(
                    "opening for writing",
                    false,
                    e.to_string(),
                    e.next_step().unwrap_or_default(),
                )),
            }
        }
        findings
    }
}

impl SqliteDestination {
    fn examine_file(&self) -> Finding {
        let path = &self.config.path;
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(std::path::Path::new("."));
        let writable = |p: &std::path::Path| std::fs::metadata(p).is_ok_and(|m| !m.permissions().readonly());
        let (ok, found) = match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => (false, "the path is a folder".to_string()),
            Ok(m) if m.permissions().readonly() => (false, "the file is read-only".to_string()),
            Ok(_) => (writable(folder), "the file exists".to_string()),
            Err(_) if !folder.is_dir() => (false, "the folder does not exist".into()),
            Err(_) => (writable(folder), "the file will be created".into()),
        };
        let fix = match folder.is_dir() {
            true => format!("chmod u+w '{}' '{}'", path.display(), folder.display()),
            false => format!("mkdir -p '{}'", folder.display()),
        };
        Finding::new(format!("file {}", path.display()), ok, found, fix)
    }
}

/// What writing into an open database needs, and what a reader of `plan` should know.
fn examine(conn: &mut Connection, tables: &[TableId]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mode: String = conn
        .query_row("PRAGMA journal_mode", [], |r| r.get(0))
        .map_err(failed(|| "reading the journal mode".into()))?;
    findings.push(match mode.eq_ignore_ascii_case("wal") {
        true => Finding::good("journal mode", mode),
        false => Finding::note(
            "journal mode",
            format!("{mode}: readers and the writer wait for each other"),
            "PRAGMA journal_mode = WAL",
        ),
    });
    findings.push(match control::transaction(conn, |_| Ok(())) {
        Ok(()) => Finding::good("write lock", "free"),
        Err(e) => Finding::of_error("write lock", &e),
    });
    for table in tables {
        let Some(found) = catalog::find(conn, catalog::table_name(table)?)? else {
            findings.push(Finding::good(format!("table {table}"), "it will be created"));
            continue;
        };
        let triggers = ddl::attached(conn, &found.name, "trigger")?;
        if !triggers.is_empty() {
            let names: Vec<&str> = triggers.iter().map(|(n, _)| n.as_str()).collect();
            findings.push(Finding::good(
                format!("triggers of {table}"),
                format!("they do not fire while SyncTool writes: {}", names.join(", ")),
            ));
        }
        if ddl::has_parents(conn, &found.name)? || !ddl::referring(conn, &found.name)?.is_empty() {
            findings.push(Finding::good(
                format!("foreign keys of {table}"),
                "they are checked when a load is published, not row by row",
            ));
        }
    }
    Ok(findings)
}

fn prepare(conn: &Connection, mut plan: Plan) -> Result<Plan> {
    for load in ddl::load_tables(conn, &plan.pipeline)? {
        ddl::drop_table(conn, &load)?;
    }
    plan.generation = Generation(control::raise_generation(conn, &plan.pipeline)?);
    control::store_plan(conn, &plan)?;
    for (i, planned) in plan.tables.iter().enumerate() {
        for sql in load_statements(Some(conn), &plan, i, planned)? {
            conn.execute_batch(&sql)
                .map_err(failed(|| format!("preparing {}", planned.destination)))?;
        }
        if !planned.widen.is_empty() {
            ddl::tell_others(conn)?;
        }
    }
    Ok(plan)
}

/// The statements that make the table which rows of `planned` go to, and add the columns that its destination lacks.
fn load_statements(
    conn: Option<&Connection>,
    plan: &Plan,
    index: usize,
    planned: &PlannedTable,
) -> Result<Vec<String>> {
    let name = catalog::table_name(&planned.destination)?;
    ddl::check(name, &planned.schema, planned.own)?;
    let existing = match conn {
        Some(conn) => catalog::find(conn, name)?,
        None => None,
    };
    let wrong = |code, text: String, hint: &str| Err(Error::new(code, text).at("table", name).hint(hint));
    match (&planned.publish, existing) {
        (Publish::Direct, None) => Ok(vec![ddl::create_table(name, &planned.schema)]),
        (Publish::Create, None) => Ok(vec![ddl::create_table(&plan.load_name(index), &planned.schema)]),
        (Publish::Create, Some(_)) => wrong(
            code::SCHEMA_MISMATCH,
            "the table exists, but was to be created".into(),
            "plan again: it appeared after the plan was made",
        ),
        (_, None) => wrong(
            code::TABLE_MISSING,
            "the destination table does not exist".into(),
            "plan again: it went away after the plan was made",
        ),
        (_, Some(existing)) if existing.kind != "table" => wrong(
            code::UNSUPPORTED,
            format!("the destination is a {}, which cannot be written", existing.kind),
            "name a table",
        ),
        (publish, Some(mut existing)) => {
            let mut statements = Vec::new();
            if *publish != Publish::Swap {
                statements.extend(ddl::widened(planned, &mut existing));
                let missing = planned
                    .schema
                    .columns
                    .iter()
                    .filter(|c| existing.column(&c.name).is_none());
                for column in missing {
                    if !planned.evolve || planned.schema.key.contains(&column.name) {
                        return wrong(
                            code::SCHEMA_MISMATCH,
                            format!("the destination has no column {}", column.name),
                            "add the column, or leave it out of the pipeline",
                        );
                    }
                    statements.push(ddl::add_column(&existing.name, column));
                }
            }
            if let (true, Some(conn)) = (*publish != Publish::Direct, conn) {
                let load = ddl::create_load(conn, &plan.load_name(index), planned, Some(&existing))?;
                statements.push(load);
            }
            Ok(statements)
        }
    }
}

/// What prepare and publish would run, in words of SQL.
fn preview(conn: Option<&Connection>, plan: &Plan) -> Result<Vec<String>> {
    let mut all = Vec::new();
    if conn.map_or(Ok(false), control::exist)? {
        all.push("-- the control tables (_synctool_*) are there".to_string());
    } else {
        all.extend(control::DDL.iter().map(|s| (*s).to_string()));
    }
    for (i, planned) in plan.tables.iter().enumerate() {
        all.extend(load_statements(conn, plan, i, planned)?);
        let (load, name) = (quote(&plan.load_name(i)), quote(&planned.destination.name));
        match &planned.publish {
            Publish::Direct => {}
            Publish::Create => all.push(format!("ALTER TABLE {load} RENAME TO {name}")),
            Publish::Swap => {
                all.push(format!("DROP TABLE {name}"));
                all.push(format!("ALTER TABLE {load} RENAME TO {name}"));
                if let Some(conn) = conn {
                    all.extend(
                        ddl::attached(conn, &planned.destination.name, "index")?
                            .into_iter()
                            .map(|(_, sql)| sql),
                    );
                }
            }
            Publish::Merge { delete_missing } => {
                if *delete_missing {
                    all.push(format!("DELETE FROM {name} WHERE its key is not in {load}"));
                }
                all.push(format!("UPDATE {name} FROM {load} WHERE a value differs"));
                all.push(format!("INSERT INTO {name} SELECT FROM {load} WHERE its key is new"));
                all.push(format!("DROP TABLE {load}"));
            }
            Publish::Append => {
                all.push(format!("INSERT INTO {name} SELECT FROM {load}"));
                all.push(format!("DROP TABLE {load}"));
            }
        }
    }
    Ok(all)
}
