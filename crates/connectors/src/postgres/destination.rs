//! The PostgreSQL destination: plans and checkpoints in its control tables, load tables beside the destination table,
//! and their publication in one transaction.

use super::apply::Applier;
use super::client::{Connection, Postgres, map_error};
use super::control::{Control, end_sessions};
use super::ddl::{self, KnownTypes, quoted};
use super::integrity::{Integrity, may_replicate};
use super::merge::{Existing, Mapping, columns_of, oid_of};
use super::rows::{CopyForm, RowEncoder};
use super::sink::{LoadTarget, Mode, PgSink};
use super::sql::{ident, idents};
use super::{ENGINE, publish, swap};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::change::RawFormat;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::plan::{Plan, PlannedTable, Publish, Widening, short_hash};
use synctool_core::progress::Checkpoint;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::{Destination, Guarantee, Published, Sink, SinkTraits, StoredAs, StoredPlan, not_widened};
use synctool_core::source::{Finding, Source};

/// How rows are written to a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct DestinationOptions {
    /// The schema of the control tables.
    pub control_schema: String,
    /// The form of COPY; left out, binary where every column has a binary form.
    pub copy: Option<CopyForm>,
    /// How long publishing waits for a lock before it lets others go first and tries again.
    pub lock_timeout: Duration,
    /// How often it tries.
    pub lock_attempts: u32,
    /// maintenance_work_mem for building keys and indexes.
    pub index_memory: String,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        DestinationOptions {
            control_schema: "synctool".into(),
            copy: None,
            lock_timeout: Duration::from_secs(3),
            lock_attempts: 20,
            index_memory: "256MB".into(),
        }
    }
}

/// A PostgreSQL database to write to.
#[derive(Debug, Clone)]
pub struct PostgresDestination {
    pub(super) database: Postgres,
    pub(super) control: Control,
    pub(super) options: DestinationOptions,
    known: Arc<KnownTypes>,
    pub(super) version: u32,
    utf8: bool,
}

/// One planned table with its names and types filled in.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) index: usize,
    /// The destination table, with its schema.
    pub(super) table: TableId,
    /// Where its rows are loaded; the table itself in a direct plan.
    pub(super) load: TableId,
    pub(super) schema: TableSchema,
    /// The column types of the load table.
    pub(super) types: Vec<String>,
    pub(super) publish: Publish,
    /// Whether columns that the table lacks are added to it.
    evolve: bool,
    /// The columns that get a wider type; none where the table is replaced.
    widen: Vec<Widening>,
    /// Whether the table is one of our own.
    pub(super) own: bool,
}

impl PostgresDestination {
    /// Connects once to learn the server's version, encoding and types.
    pub async fn open(database: Postgres, options: DestinationOptions) -> Result<Self> {
        let client = database.connect().await?;
        let version = client.version();
        let rows = client
            .query(
                "SELECT pg_catalog.format_type(t.oid, NULL) FROM pg_catalog.pg_type t \
                 LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid \
                 WHERE t.typisdefined AND t.typtype <> 'p' AND (t.typrelid = 0 OR c.relkind = 'c')",
                &[],
            )
            .await
            .map_err(|e| client.error(e, "reading the types"))?;
        let known = KnownTypes::new(rows.iter().map(|r| r.get(0)), version);
        let encoding = client
            .query_one("SELECT pg_catalog.current_setting('server_encoding')", &[])
            .await
            .map_err(|e| client.error(e, "reading the encoding"))?;
        let utf8 = encoding.get::<_, &str>(0) == "UTF8";
        client.recycle();
        Ok(PostgresDestination {
            control: Control::new(&options.control_schema)?,
            database,
            options,
            known: Arc::new(known),
            version,
            utf8,
        })
    }

    /// The statements that make the control tables, for a database where this role may not.
    pub fn control_ddl(&self) -> Vec<String> {
        self.control.ddl()
    }

    /// A table's name with its schema.
    pub(super) fn qualified(&self, table: &TableId) -> TableId {
        TableId {
            schema: Some(
                table
                    .schema
                    .clone()
                    .unwrap_or_else(|| self.database.config().schema.clone()),
            ),
            name: table.name.clone(),
        }
    }

    /// The planned table `index` with its names and types filled in.
    pub(super) fn target(&self, plan: &Plan, index: usize) -> Result<Target> {
        let planned = plan
            .tables
            .get(index)
            .ok_or_else(|| Error::bug("a table that is not in the plan"))?;
        let table = self.qualified(&planned.destination);
        ddl::check_names(&table, &planned.schema)?;
        let load = match planned.publish {
            Publish::Direct => table.clone(),
            _ => TableId {
                schema: table.schema.clone(),
                name: plan.load_name(index),
            },
        };
        Ok(Target {
            index,
            table,
            load,
            types: self.types(planned),
            schema: planned.schema.clone(),
            publish: planned.publish.clone(),
            evolve: planned.evolve,
            widen: match planned.publish {
                Publish::Create | Publish::Swap => Vec::new(),
                _ => planned.widen.clone(),
            },
            own: planned.own,
        })
    }

    pub(super) fn targets(&self, plan: &Plan) -> Result<Vec<Target>> {
        (0..plan.tables.len()).map(|i| self.target(plan, i)).collect()
    }

    /// The type a planned column is stored as.
    pub(super) fn type_of(&self, column: &Column) -> String {
        ddl::store_as(&self.known, ENGINE, column).type_name
    }

    /// The column types as they were planned: the planner keeps our own type's name in the column.
    fn types(&self, planned: &PlannedTable) -> Vec<String> {
        planned.schema.columns.iter().map(|c| self.type_of(c)).collect()
    }

    /// A session for statements that may take long.
    pub(super) async fn session(&self) -> Result<Connection> {
        self.database.connect_long().await
    }

    /// Drops a pipeline's load tables of generations below `below`. Another's locks are waited for only shortly: what
    /// stays behind goes next time, and nobody reads it.
    pub(super) async fn drop_loads(&self, client: &Connection, pipeline: &str, below: i64) -> Result<()> {
        let prefix = format!("_synctool_load_{}_", short_hash(pipeline));
        let rows = client
            .query(
                "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND pg_catalog.starts_with(c.relname::text, $1) \
                 AND pg_catalog.obj_description(c.oid, 'pg_class') = $2",
                &[&prefix, &ddl::load_mark(pipeline)],
            )
            .await
            .map_err(|e| client.error(e, "looking for old load tables"))?;
        for row in rows {
            let table = TableId::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let generation = table.name[prefix.len()..]
                .split('_')
                .next()
                .and_then(|g| g.parse::<i64>().ok());
            if generation.is_none_or(|g| g >= below) {
                continue;
            }
            let dropped = client
                .batch_execute(&format!(
                    "BEGIN; SET LOCAL lock_timeout = '2s'; DROP TABLE IF EXISTS {}; COMMIT",
                    quoted(&table)
                ))
                .await;
            if let Err(e) = dropped {
                client
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(|e| client.error(e, "rolling back"))?;
                tracing::info!(table = %table, error = %map_error(e, "dropping an old load table"), "an old load table stays for now");
            }
        }
        Ok(())
    }

    /// Makes what `prepare` makes for one table, as statements.
    async fn table_ddl(&self, client: &Connection, target: &Target, pipeline: &str) -> Result<Vec<String>> {
        let mut statements = Vec::new();
        let schema = target.table.schema.as_deref().unwrap_or_default();
        let there = client
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)",
                &[&schema],
            )
            .await
            .map_err(|e| client.error(e, "looking for the schema"))?;
        if !there.get::<_, bool>(0) {
            statements.push(format!("CREATE SCHEMA IF NOT EXISTS {}", ident(schema)));
        }
        let existing = oid_of(&**client, &target.table).await?;
        match (&target.publish, existing) {
            (Publish::Direct, None) => {
                statements.push(ddl::create_table(
                    &target.table,
                    &target.schema,
                    &target.types,
                    &target.table.name,
                    false,
                ));
                if !target.schema.key.is_empty() {
                    statements.push(format!(
                        "ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})",
                        quoted(&target.table),
                        ident(&ddl::derived_name(&target.table.name, "_pkey")),
                        idents(&target.schema.key)
                    ));
                }
            }
            (Publish::Direct, Some((oid, _))) => {
                statements.extend(self.missing_columns(client, target, oid).await?);
            }
            (publish, existing) => {
                if let Some((left, _)) = oid_of(&**client, &target.load).await? {
                    // Generations began anew, because somebody dropped the control schema.
                    let ours = client
                        .query_one(
                            "SELECT pg_catalog.obj_description($1, 'pg_class') IS NOT DISTINCT FROM $2",
                            &[&left, &ddl::load_mark(pipeline)],
                        )
                        .await
                        .map_err(|e| client.error(e, "looking at an old load table"))?;
                    if ours.get(0) {
                        statements.push(format!("DROP TABLE {}", quoted(&target.load)));
                    }
                }
                match (publish, existing) {
                    (Publish::Create, Some(_)) => {
                        return Err(
                            Error::new(code::SCHEMA_MISMATCH, format!("{} exists already", target.table))
                                .hint("plan again: it was made after this plan"),
                        );
                    }
                    (Publish::Create, None) => {}
                    (_, None) => {
                        return Err(Error::new(
                            code::TABLE_MISSING,
                            format!("{} does not exist", target.table),
                        ));
                    }
                    (Publish::Swap, Some((oid, _))) => {
                        statements.extend(swap::create_load(&**client, target, oid).await?);
                        statements.push(ddl::mark_load(&target.load, pipeline)?);
                        return Ok(statements);
                    }
                    (_, Some((oid, _))) => {
                        statements.extend(self.missing_columns(client, target, oid).await?);
                    }
                }
                let mut schema = target.schema.clone();
                if target.publish != Publish::Create {
                    schema.columns.iter_mut().for_each(|c| c.identity = false);
                }
                statements.push(ddl::create_table(
                    &target.load,
                    &schema,
                    &target.types,
                    &target.table.name,
                    true,
                ));
                statements.push(ddl::mark_load(&target.load, pipeline)?);
            }
        }
        Ok(statements)
    }

    /// The statements that widen columns of a table and add planned ones that it lacks, if the plan says so. A mapping that
    /// cannot work is told now, not by the first row.
    async fn missing_columns(&self, client: &Connection, target: &Target, oid: u32) -> Result<Vec<String>> {
        let added = self.added(target, &columns_of(&**client, oid).await?)?;
        self.mapping(client, target, oid).await?;
        let mut statements: Vec<String> = target.widen.iter().map(|w| w.statement.clone()).collect();
        if added.is_empty() {
            return Ok(statements);
        }
        // Rows from before have no value for them. Nothing is rewritten, so the lock is short, once it is there.
        let columns: Vec<String> = added
            .iter()
            .map(|c| format!("ADD COLUMN IF NOT EXISTS {} {}", ident(&c.name), c.type_name))
            .collect();
        statements.push(format!("ALTER TABLE {} {}", quoted(&target.table), columns.join(", ")));
        Ok(statements)
    }

    /// Whether the plan alters the table as it is now.
    async fn evolves(&self, client: &Connection, target: &Target) -> Result<bool> {
        Ok(match oid_of(&**client, &target.table).await? {
            Some((oid, _)) => {
                !target.widen.is_empty() || !self.added(target, &columns_of(&**client, oid).await?)?.is_empty()
            }
            None => false,
        })
    }

    /// The columns that an evolving plan adds to a table.
    fn added(&self, target: &Target, existing: &[Existing]) -> Result<Vec<Existing>> {
        let mut added = Vec::new();
        if !target.evolve || matches!(target.publish, Publish::Create | Publish::Swap) {
            return Ok(added);
        }
        for (c, type_name) in target.schema.columns.iter().zip(&target.types) {
            if existing.iter().any(|e| e.name == c.name) {
                continue;
            }
            if target.schema.key.contains(&c.name) {
                return Err(Error::new(
                    code::SCHEMA_MISMATCH,
                    format!(
                        "{} has no key column {}, and rows from before would have none",
                        target.table, c.name
                    ),
                )
                .hint("add the column and fill it, or load into a new table"));
            }
            added.push(Existing {
                name: c.name.clone(),
                type_name: type_name.clone(),
                not_null: false,
                has_default: false,
                generated: false,
                identity_always: false,
                identity: false,
                folds: false,
                varies: false,
                array: 0,
            });
        }
        Ok(added)
    }

    /// Which columns of an existing table are written, checked against what else happens there; with those that an
    /// evolving plan adds.
    pub(super) async fn mapping(&self, client: &Connection, target: &Target, oid: u32) -> Result<Mapping> {
        let mut existing = columns_of(&**client, oid).await?;
        existing.extend(self.added(target, &existing)?);
        for widened in &target.widen {
            let there = existing.iter_mut().filter(|e| e.name == widened.column);
            there.for_each(|e| e.type_name.clone_from(&widened.type_name));
        }
        let mapping = Mapping::new(&target.table, &target.schema, &target.types, &existing)?;
        if target.publish != Publish::Append {
            mapping.check_updatable(&target.table)?;
        }
        let integrity = Integrity::of(&**client, oid).await?;
        if !integrity.is_free() {
            integrity.statement(may_replicate(&**client, self.version).await?, &target.table)?;
        }
        Ok(mapping)
    }
}

#[async_trait]
impl Destination for PostgresDestination {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits {
            // One connection stays for prepare, seal and publish.
            writers: self.database.config().max_connections.saturating_sub(1).max(1),
            guarantee: Guarantee::ExactlyOnce,
            applies_changes: true,
            single_partition: false,
        }
    }

    fn store_as(&self, source_engine: &str, column: &Column) -> StoredAs {
        ddl::store_as(&self.known, source_engine, column)
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        let client = self.database.connect().await?;
        let found = super::catalog::find(&client, table, &self.database.config().schema).await?;
        client.recycle();
        Ok(found.map(|d| d.schema))
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        let client = self.database.connect().await?;
        let row = client
            .query_one(
                &format!("SELECT NOT EXISTS (SELECT FROM {})", quoted(&self.qualified(table))),
                &[],
            )
            .await
            .map_err(|e| client.error(e, &format!("reading {table}")))?;
        client.recycle();
        Ok(row.get(0))
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        let client = self.database.connect().await?;
        let oid = oid_of(&*client, &self.qualified(table)).await?;
        let made = match oid {
            Some((oid, _)) => self.control.exists(&*client).await? && self.control.made(&*client, oid).await?,
            None => false,
        };
        client.recycle();
        Ok(made)
    }

    async fn widen(&self, table: &TableId, there: &Column, wanted: &Column) -> Result<Option<String>> {
        let table = self.qualified(table);
        let Some(statement) = ddl::widen(&table, there, wanted) else {
            return Ok(None);
        };
        let client = self.database.connect().await?;
        let obstacles = super::merge::held_by(&*client, &table, &there.name).await?;
        client.recycle();
        match obstacles.is_empty() {
            true => Ok(Some(statement)),
            false => Err(not_widened(&table, there, &obstacles, &statement)),
        }
    }

    fn narrowed(&self, there: &Column, type_name: &str) -> Result<Option<String>> {
        ddl::narrowed(there, type_name)
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let client = self.database.connect().await?;
        let types: Vec<String> = wanted
            .columns
            .iter()
            .map(|c| ddl::store_as(&self.known, ENGINE, c).type_name)
            .collect();
        let obstacles = swap::obstacles(&client, &self.qualified(table), wanted, &types).await?;
        client.recycle();
        Ok(obstacles)
    }

    fn accepts_raw(&self, format: &RawFormat, columns: &[(String, Column)]) -> bool {
        self.utf8 && super::types::raw_format(columns).is_some_and(|own| own == *format)
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        let client = self.database.connect().await?;
        let mut statements = Vec::new();
        if !self.control.is_current(&*client).await? {
            statements.extend(self.control.ddl());
        }
        for target in self.targets(plan)? {
            let made = self.table_ddl(&client, &target, &plan.pipeline).await?;
            let evolves = self.evolves(&client, &target).await?;
            let lock = |s: &str| match evolves && s.contains(" ADD COLUMN ") {
                true => "; ACCESS EXCLUSIVE, for a moment: nothing is rewritten",
                false => "",
            };
            statements.extend(made.iter().map(|s| format!("{s}  -- prepare{}", lock(s))));
            statements.extend(publish::preview(self, &client, &target).await?);
        }
        client.recycle();
        Ok(statements)
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        let client = self.database.connect().await?;
        let stored = if self.control.exists(&*client).await? {
            self.control.stored_plan(&*client, pipeline).await?
        } else {
            None
        };
        client.recycle();
        Ok(stored)
    }

    async fn prepare(&self, mut plan: Plan) -> Result<Plan> {
        failpoint("prepare.before")?;
        let mut client = self.session().await?;
        self.control.ensure(&mut client).await?;
        let writers = self.control.all_writers(&*client, &plan.pipeline).await?;
        end_sessions(&client, &writers).await?;
        client
            .batch_execute("BEGIN")
            .await
            .map_err(|e| client.error(e, "beginning a transaction"))?;
        client.working(true);
        plan.generation = self.control.raise(&*client, &plan.pipeline).await?;
        for target in self.targets(&plan)? {
            let statements = self.table_ddl(&client, &target, &plan.pipeline).await?;
            if self.evolves(&client, &target).await? {
                client
                    .batch_execute(&format!(
                        "SET LOCAL lock_timeout = {}",
                        self.options.lock_timeout.as_millis()
                    ))
                    .await
                    .map_err(|e| client.error(e, "setting up the transaction"))?;
                publish::lock(
                    &*client,
                    &quoted(&target.table),
                    "ACCESS EXCLUSIVE",
                    self.options.lock_attempts,
                )
                .await?;
            }
            for statement in statements {
                client
                    .batch_execute(&statement)
                    .await
                    .map_err(|e| permission(client.error(e, "making the table to load into"), &target.table))?;
            }
        }
        self.control.store_plan(&*client, &plan).await?;
        client
            .batch_execute("COMMIT")
            .await
            .map_err(|e| client.error(e, "preparing the run"))?;
        client.working(false);
        failpoint("prepare.after")?;
        self.drop_loads(&client, &plan.pipeline, plan.generation.0).await?;
        client.recycle();
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let client = self.database.connect().await?;
        let checkpoint = self.control.checkpoint(&*client, plan).await?;
        client.recycle();
        Ok(checkpoint)
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        let session = self.session().await?;
        let targets = self.targets(plan)?;
        let mode = if targets.iter().any(|t| t.publish == Publish::Direct) {
            if targets.iter().any(|t| t.publish != Publish::Direct) {
                return Err(Error::bug("a plan mixes direct tables with loaded ones"));
            }
            let read = plan.tables.iter().map(|t| &t.read.table);
            let sources = read.map(|t| (t.clone(), plan.columns_cut_by_bytes(t))).collect();
            Mode::Direct(Box::new(Applier::open(self, &session, targets, sources).await?))
        } else {
            let mut loads = Vec::with_capacity(targets.len());
            for (t, planned) in targets.into_iter().zip(&plan.tables) {
                let form = match &planned.read.raw {
                    Some(_) => Some(CopyForm::Binary),
                    None => self.options.copy,
                };
                let encoder = match planned.read.raw {
                    Some(_) => RowEncoder::raw(),
                    None => RowEncoder::new(&t.schema.columns, &t.types, form)?,
                };
                loads.push(LoadTarget {
                    copy: encoder.copy_statement(&t.load, t.schema.columns.iter().map(|c| &c.name)),
                    table: planned.destination.clone(),
                    encoder,
                });
            }
            Mode::Load(loads)
        };
        Ok(Box::new(
            PgSink::open(session, self.control.clone(), Arc::new(plan.clone()), mode).await?,
        ))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        let mut client = self.session().await?;
        client
            .batch_execute(&format!("SET maintenance_work_mem = '{}'", self.options.index_memory))
            .await
            .map_err(|e| client.error(e, "setting maintenance_work_mem"))?;
        client.working(true);
        for target in self.targets(plan)? {
            if target.publish != Publish::Direct {
                publish::seal(self, &mut client, plan, &target).await?;
            }
        }
        client.working(false);
        failpoint("seal.after")
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        let target = self.target(plan, index).ok()?;
        Some((Arc::new(self.database.source()), target.load))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(self.database.live_source()))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let client = self.database.connect().await?;
        let facts = self.control.remembered(&*client, pipeline).await?;
        client.recycle();
        Ok(facts)
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let mut client = self.session().await?;
        self.control.ensure(&mut client).await?;
        self.control.remember(&*client, pipeline, facts).await?;
        client.recycle();
        Ok(())
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        failpoint("publish.before")?;
        let published = publish::publish(self, plan).await?;
        failpoint("publish.after")?;
        Ok(published)
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let mut client = self.session().await?;
        if self.control.exists(&*client).await? {
            self.control.ensure(&mut client).await?;
            let writers = self.control.all_writers(&*client, pipeline).await?;
            end_sessions(&client, &writers).await?;
            let tx = client
                .transaction()
                .await
                .map_err(|e| map_error(e, "beginning a transaction"))?;
            self.control.forget(&tx, pipeline).await?;
            tx.commit().await.map_err(|e| map_error(e, "forgetting the pipeline"))?;
        }
        self.drop_loads(&client, pipeline, i64::MAX).await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let tables: Vec<TableId> = tables.iter().map(|t| self.qualified(t)).collect();
        super::examine_sink::destination(self, &tables).await
    }
}

/// Says which GRANT is missing where a table cannot be made.
pub(super) fn permission(e: Error, table: &TableId) -> Error {
    if e.code() != code::PERMISSION {
        return e.at("table", table.to_string());
    }
    let schema = table.schema.as_deref().unwrap_or_default();
    Error::new(code::PERMISSION, e.message().to_string())
        .at("table", table.to_string())
        .hint(format!(
            "GRANT CREATE, USAGE ON SCHEMA {} TO …; a schema that is missing needs GRANT CREATE ON DATABASE … TO …",
            ident(schema)
        ))
}
