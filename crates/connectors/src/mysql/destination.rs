//! The destination: plans and checkpoints in its control tables, load tables beside the destination table.

use super::catalog::{self, CatalogTable, OURS};
use super::client::{Flavor, Mysql, Session, number, text};
use super::control::{Control, PlanStatus};
use super::locks::end_sessions;
use super::merge::Mapping;
use super::sink::MysqlSink;
use super::source::MysqlSource;
use super::sql::{ident, literal, table as quoted};
use super::{ENGINE, ddl, examine, publish, types};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::plan::{Plan, PlannedTable, Publish, short_hash};
use synctool_core::progress::Checkpoint;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::{Destination, Guarantee, Published, Sink, SinkTraits, StoredAs, StoredPlan};
use synctool_core::source::{Finding, Source};

/// A MariaDB or MySQL database to write to.
#[derive(Debug, Clone)]
pub(super) struct MysqlDestination {
    pub(super) database: Mysql,
    pub(super) control: Control,
    pub(super) flavor: Arc<Flavor>,
}

impl MysqlDestination {
    /// Connects once to learn what kind of server it is.
    pub(super) async fn open(database: Mysql) -> Result<Self> {
        let config = database.config();
        let control = Control::new(&config.database, config.control_schema.as_deref())?;
        let session = database.connect().await?;
        let flavor = session.flavor();
        session.recycle();
        Ok(MysqlDestination {
            database,
            control,
            flavor,
        })
    }

    /// A table's name with its database.
    pub(super) fn qualified(&self, table: &TableId) -> TableId {
        let database = || self.database.config().database.clone();
        TableId {
            schema: Some(table.schema.clone().unwrap_or_else(database)),
            name: table.name.clone(),
        }
    }

    /// Where the rows of a planned table are loaded; the table itself in a direct plan.
    pub(super) fn load_table(&self, plan: &Plan, index: usize) -> TableId {
        let Some(planned) = plan.tables.get(index) else {
            return TableId::bare(plan.load_name(index));
        };
        let table = self.qualified(&planned.destination);
        match planned.publish {
            Publish::Direct => table,
            _ => TableId {
                name: plan.load_name(index),
                ..table
            },
        }
    }

    /// The databases of a plan's tables.
    pub(super) fn schemas(&self, plan: &Plan) -> Vec<String> {
        let mut all: Vec<String> = plan
            .tables
            .iter()
            .filter_map(|t| self.qualified(&t.destination).schema)
            .collect();
        all.push(self.database.config().database.clone());
        all.sort();
        all.dedup();
        all
    }

    /// A session for writing.
    pub(super) async fn session(&self) -> Result<Session> {
        let mut session = self.database.connect().await?;
        session
            .run("SET SESSION foreign_key_checks = 0", "setting up the session")
            .await?;
        Ok(session)
    }

    /// Drops a pipeline's load tables and replaced tables, whichever generation. Another's locks are waited for only
    /// shortly: what stays behind goes next time, and nobody reads it.
    pub(super) async fn drop_loads(&self, session: &mut Session, pipeline: &str, schemas: &[String]) -> Result<()> {
        let hash = short_hash(pipeline);
        let within: Vec<String> = schemas.iter().map(|s| literal(s)).collect();
        let prefixes = [format!("{OURS}load_{hash}_"), format!("{OURS}old_{hash}_")];
        let named: Vec<String> = prefixes
            .iter()
            .map(|p| format!("LEFT(TABLE_NAME, {}) = {}", p.len(), literal(p)))
            .collect();
        let rows = session
            .rows(
                &format!(
                    "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES \
                     WHERE TABLE_SCHEMA IN ({}) AND ({})",
                    within.join(", "),
                    named.join(" OR ")
                ),
                "looking for old load tables",
            )
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        session
            .run("SET SESSION lock_wait_timeout = 2", "setting up the session")
            .await?;
        for row in &rows {
            let table = TableId::new(text(row, 0).unwrap_or_default(), text(row, 1).unwrap_or_default());
            let sql = format!("DROP TABLE IF EXISTS {}", quoted(&table));
            if let Err(e) = session.run(&sql, "dropping an old load table").await {
                if e.kind() == synctool_core::error::ErrorKind::Unavailable {
                    return Err(e);
                }
                tracing::info!(table = %table, error = %e, "an old load table stays for now");
            }
        }
        session
            .run("SET SESSION lock_wait_timeout = 60", "setting up the session")
            .await?;
        Ok(())
    }

    /// The statements that make what rows of a planned table go into.
    async fn table_ddl(
        &self,
        session: &mut Session,
        plan: &Plan,
        index: usize,
        planned: &PlannedTable,
    ) -> Result<Vec<String>> {
        let table = self.qualified(&planned.destination);
        ddl::check(&table, &planned.schema, planned.own)?;
        let mut statements = Vec::new();
        let schema = table.schema.as_deref().unwrap_or_default();
        let there = session
            .row(
                &format!(
                    "SELECT count(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}",
                    literal(schema)
                ),
                "looking for the database",
            )
            .await?;
        if number(&there, 0) == 0 {
            statements.push(format!("CREATE DATABASE IF NOT EXISTS {}", ident(schema)));
        }
        let mut existing = catalog::find(session, &table).await?;
        if let Some(existing) = &mut existing {
            statements.extend(ddl::evolve(&self.flavor, planned, existing)?);
            statements.extend(ddl::widened(planned, existing));
        }
        let load = self.load_table(plan, index);
        let wrong = |code, text: String, hint: &str| Err(Error::new(code, text).hint(hint.to_string()));
        match (&planned.publish, existing) {
            (Publish::Direct, None) => {
                let sql = ddl::create_table(&self.flavor, &table, &planned.schema)?;
                statements.push(sql.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1));
            }
            (Publish::Direct, Some(existing)) => {
                // A mapping that cannot work is told now, not by the first row.
                Mapping::new(&existing, &planned.schema)?;
            }
            (Publish::Create, None) => statements.push(ddl::create_table(&self.flavor, &load, &planned.schema)?),
            (Publish::Create, Some(_)) => {
                return wrong(
                    code::SCHEMA_MISMATCH,
                    format!("{table} exists already"),
                    "plan again: it was made after this plan",
                );
            }
            (_, None) => {
                return wrong(
                    code::TABLE_MISSING,
                    format!("{table} does not exist"),
                    "plan again: it went away after the plan was made",
                );
            }
            (Publish::Swap, Some(existing)) if ddl::same_shape(&planned.schema, &existing) => {
                Mapping::new(&existing, &planned.schema)?;
                statements.push(format!("CREATE TABLE {} LIKE {}", quoted(&load), quoted(&table)));
            }
            (Publish::Swap, Some(_)) => statements.push(ddl::create_table(&self.flavor, &load, &planned.schema)?),
            (_, Some(existing)) => {
                Mapping::new(&existing, &planned.schema)?;
                statements.push(ddl::create_beside(&load, &planned.schema, &existing, false)?);
            }
        }
        Ok(statements)
    }

    /// Why an existing table cannot be swapped without losing something.
    pub(super) async fn obstacles(
        &self,
        session: &mut Session,
        existing: &CatalogTable,
        wanted: &TableSchema,
    ) -> Result<Vec<String>> {
        let mut obstacles = Vec::new();
        if existing.kind != "table" {
            obstacles.push(format!("it is a {}, not a table", existing.kind));
            return Ok(obstacles);
        }
        for trigger in catalog::triggers(session, &existing.table).await? {
            obstacles.push(format!("trigger {trigger} would be lost"));
        }
        for key in catalog::foreign_keys(session, &existing.table).await? {
            obstacles.push(format!("{key} would be lost"));
        }
        let extra: Vec<&str> = existing
            .columns
            .iter()
            .map(|c| c.column.name.as_str())
            .filter(|c| !wanted.columns.iter().any(|w| w.name.eq_ignore_ascii_case(c)))
            .collect();
        if !extra.is_empty() {
            obstacles.push(format!(
                "columns that the pipeline does not write would be lost: {}",
                extra.join(", ")
            ));
        }
        Ok(obstacles)
    }

    async fn prepare_locked(&self, session: &mut Session, mut plan: Plan) -> Result<Plan> {
        let writers = self.control.writers(session, &plan.pipeline, None).await?;
        end_sessions(session, &writers).await?;
        session.run("START TRANSACTION", "beginning a transaction").await?;
        plan.generation = self.control.raise(session, &plan.pipeline).await?;
        session.run("COMMIT", "raising the generation").await?;
        // From here on nobody of an older generation commits. The load tables must stand before the plan does: a run
        // that finds the plan goes on with it.
        let schemas = self.schemas(&plan);
        self.drop_loads(session, &plan.pipeline, &schemas).await?;
        for (index, planned) in plan.tables.iter().enumerate() {
            let at = |e: Error| permission(e, &self.qualified(&planned.destination));
            for statement in self.table_ddl(session, &plan, index, planned).await.map_err(at)? {
                session.run(&statement, "making a table").await.map_err(at)?;
            }
        }
        failpoint("prepare.tables")?;
        session.run("START TRANSACTION", "beginning a transaction").await?;
        self.control.hold_generation(session, &plan).await?;
        self.control.store_plan(session, &plan).await?;
        session.run("COMMIT", "storing the plan").await?;
        Ok(plan)
    }
}

#[async_trait]
impl Destination for MysqlDestination {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits {
            // Two connections stay: for prepare, seal and publish, and for taking over.
            writers: self.database.config().max_connections.saturating_sub(2).max(1),
            guarantee: Guarantee::ExactlyOnce,
            applies_changes: true,
            single_partition: false,
        }
    }

    fn store_as(&self, source_engine: &str, column: &Column) -> StoredAs {
        types::store_as(&self.flavor, source_engine, column)
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        let mut session = self.database.connect().await?;
        let found = catalog::find(&mut session, table).await?;
        session.recycle();
        Ok(found.map(|t| t.schema()))
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        let mut session = self.database.connect().await?;
        let row = session
            .row(
                &format!("SELECT NOT EXISTS (SELECT 1 FROM {})", quoted(&self.qualified(table))),
                &format!("reading {table}"),
            )
            .await?;
        session.recycle();
        Ok(number(&row, 0) == 1)
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        let mut session = self.database.connect().await?;
        let made =
            self.control.exists(&mut session).await? && self.control.made(&mut session, &self.qualified(table)).await?;
        session.recycle();
        Ok(made)
    }

    async fn widen(&self, table: &TableId, there: &Column, wanted: &Column) -> Result<Option<String>> {
        let mut session = self.database.connect().await?;
        let statement = ddl::widen(&mut session, &self.qualified(table), there, wanted).await?;
        session.recycle();
        Ok(statement)
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let mut session = self.database.connect().await?;
        let existing = catalog::must_find(&mut session, table).await?;
        let found = self.obstacles(&mut session, &existing, wanted).await?;
        session.recycle();
        Ok(found)
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        let mut session = self.database.connect().await?;
        let mut all = Vec::new();
        if self.control.exists(&mut session).await? {
            all.push("-- the control tables (_synctool_*) are there".to_string());
        } else {
            all.extend(self.control.ddl());
        }
        for (index, planned) in plan.tables.iter().enumerate() {
            all.extend(self.table_ddl(&mut session, plan, index, planned).await?);
            all.extend(publish::preview(self, &mut session, plan, index).await?);
        }
        session.recycle();
        Ok(all)
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        let mut session = self.database.connect().await?;
        let found = if self.control.exists(&mut session).await? {
            self.control.stored_plan(&mut session, pipeline).await?
        } else {
            None
        };
        session.recycle();
        Ok(found)
    }

    async fn prepare(&self, plan: Plan) -> Result<Plan> {
        failpoint("prepare.before")?;
        let mut session = self.session().await?;
        self.control.ensure(&mut session).await?;
        self.control.lock(&mut session, &plan.pipeline, true).await?;
        let plan = self.prepare_locked(&mut session, plan).await?;
        failpoint("prepare.after")?;
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let mut session = self.database.connect().await?;
        let found = self.control.checkpoint(&mut session, plan).await?;
        session.recycle();
        Ok(found)
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        Ok(Box::new(MysqlSink::open(self.clone(), plan).await?))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        let mut session = self.database.connect().await?;
        session.run("START TRANSACTION", "beginning a transaction").await?;
        self.control.hold_generation(&mut session, plan).await?;
        if let PlanStatus::Active(None) = self.control.lock_plan(&mut session, plan).await? {
            // Keys are part of the load tables from the start, as InnoDB stores rows in their order.
            for (index, planned) in plan.tables.iter().enumerate() {
                let load = self.load_table(plan, index);
                if planned.publish != Publish::Direct && catalog::find(&mut session, &load).await?.is_none() {
                    return Err(Error::new(
                        code::TABLE_MISSING,
                        format!("the load table {load} was dropped by somebody"),
                    )
                    .hint(format!("start over: synctool state reset {}", plan.pipeline)));
                }
            }
        }
        session.run("COMMIT", "ending a transaction").await?;
        session.recycle();
        failpoint("seal.after")
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        plan.tables.get(index)?;
        Some((
            Arc::new(MysqlSource::new(self.database.clone())),
            self.load_table(plan, index),
        ))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(MysqlSource::new(self.database.clone())))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let mut session = self.database.connect().await?;
        let facts = if self.control.exists(&mut session).await? {
            self.control.facts(&mut session, pipeline).await?
        } else {
            BTreeMap::new()
        };
        session.recycle();
        Ok(facts)
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let mut session = self.database.connect().await?;
        self.control.ensure(&mut session).await?;
        session.run("START TRANSACTION", "beginning a transaction").await?;
        self.control.put_facts(&mut session, pipeline, facts).await?;
        session.run("COMMIT", "remembering").await?;
        session.recycle();
        Ok(())
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        let published = publish::publish(self, plan).await?;
        failpoint("publish.after")?;
        Ok(published)
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let mut session = self.session().await?;
        if !self.control.exists(&mut session).await? {
            return Ok(());
        }
        self.control.lock(&mut session, pipeline, true).await?;
        let writers = self.control.writers(&mut session, pipeline, None).await?;
        end_sessions(&mut session, &writers).await?;
        let schemas = match self.control.stored_plan(&mut session, pipeline).await {
            Ok(Some(stored)) => self.schemas(&stored.plan),
            // A plan that cannot be read is what forgetting is for.
            _ => vec![self.database.config().database.clone()],
        };
        session.run("START TRANSACTION", "beginning a transaction").await?;
        self.control.forget(&mut session, pipeline).await?;
        session.run("COMMIT", "forgetting the pipeline").await?;
        self.drop_loads(&mut session, pipeline, &schemas).await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let tables: Vec<TableId> = tables.iter().map(|t| self.qualified(t)).collect();
        examine::writing(self, &tables).await
    }
}

/// Says which GRANT is missing where a table cannot be made.
fn permission(e: Error, table: &TableId) -> Error {
    if e.code() != code::PERMISSION {
        return e.at("table", table.to_string());
    }
    Error::new(code::PERMISSION, e.message().to_string())
        .at("table", table.to_string())
        .hint(format!(
            "GRANT CREATE, DROP, ALTER, SELECT, INSERT, UPDATE, DELETE, CREATE TEMPORARY TABLES ON {}.* TO the user",
            ident(table.schema.as_deref().unwrap_or_default())
        ))
}
