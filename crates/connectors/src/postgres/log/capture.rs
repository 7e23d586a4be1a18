//! The plan of a capture: which tables, by which keys, in which types, and what of them is read besides the log.

use super::super::catalog::{self, Described};
use super::super::client::Connection;
use super::shape::Remembered;
use super::source::LogSource;
use super::{shape, slot};
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{DeleteGuard, Phase, Plan, PlannedTable, Publish, ReadSpec, Strategy, Verify};
use synctool_core::progress::Generation;
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::sink::Destination;
use synctool_core::strategy::table::carry_plain;

pub use super::shape::Initial;

/// What to capture.
#[derive(Debug, Clone)]
pub struct CaptureRequest {
    /// The pipeline's id.
    pub pipeline: String,
    /// The run that makes the plan.
    pub run_id: String,
    /// The tables; empty means all that the publication has.
    pub tables: Vec<TableId>,
    /// The destination's schema for all of them; `None` keeps each one's own.
    pub schema: Option<String>,
    /// Whether the destination's tables have no schema in their names (SQLite).
    pub bare: bool,
    /// What is done with rows that are there already; `None` loads into empty tables and makes others equal.
    pub initial: Option<Initial>,
    /// Whether tables without a key are followed: their rows from before are left out, and updates and deletes of them
    /// need REPLICA IDENTITY FULL.
    pub keyless: bool,
    /// Now, RFC 3339 UTC.
    pub now: String,
}

impl CaptureRequest {
    /// All tables of the publication, for a pipeline.
    pub fn new(pipeline: impl Into<String>, now: impl Into<String>) -> Self {
        let pipeline = pipeline.into();
        CaptureRequest {
            run_id: format!("{pipeline}_log"),
            pipeline,
            tables: Vec::new(),
            schema: None,
            bare: false,
            initial: None,
            keyless: false,
            now: now.into(),
        }
    }

    /// What must not change while the plan is unfinished.
    pub fn semantics(&self, source: &LogSource) -> serde_json::Value {
        let mut tables: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
        tables.sort_unstable();
        serde_json::json!({
            "strategy": "log",
            "slot": source.options().slot,
            "publication": source.options().publication,
            "tables": tables,
            "schema": self.schema,
            "bare": self.bare,
        })
    }
}

/// Makes the plan of a capture: checks the server, makes or completes the publication, and reads the catalog. Nothing
/// else is changed; the slot is made when the log is opened.
pub async fn capture(source: &LogSource, destination: &dyn Destination, request: CaptureRequest) -> Result<Plan> {
    let config = source.database().config();
    let connection = source.database().connect().await?;
    slot::check_server(&connection).await?;
    let publication = slot::publication(&connection, source.options(), &request.tables, &config.schema).await?;
    let marks = TableId::new(&source.options().control_schema, slot::WATERMARK_TABLE);
    let wanted: Vec<TableId> = match request.tables.is_empty() {
        true => publication
            .tables
            .iter()
            .map(|p| p.table.clone())
            .filter(|t| *t != marks)
            .collect(),
        false => request.tables.clone(),
    };
    if wanted.is_empty() {
        return Err(Error::new(
            code::LOG_SETUP,
            format!("the publication {} has no table", source.options().publication),
        )
        .hint("name the tables to capture"));
    }
    let mut plan = Plan {
        pipeline: request.pipeline.clone(),
        run_id: request.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Log,
        reasons: Vec::new(),
        semantics: request.semantics(source),
        tables: Vec::new(),
        phases: vec![Phase {
            name: "log".into(),
            partitions: vec![LogSource::partition()],
        }],
        verify: Verify::None,
        guard: DeleteGuard::default(),
        remember: BTreeMap::new(),
        created_at: request.now.clone(),
    };
    for table in wanted {
        let described = catalog::describe(&connection, &table, &config.schema).await?;
        let mut published = publication.tables.iter().find(|p| p.table == described.table);
        let leaves = slot::leaves(&connection, described.oid).await?;
        if let (None, Some((_, leaf))) = (published, leaves.first()) {
            published = publication.tables.iter().find(|p| p.table == *leaf);
        }
        let columns = published.and_then(|p| p.columns.as_deref());
        if published.is_some_and(|p| p.filter.is_some()) {
            plan.reasons.push(format!(
                "{table}: only the rows that the publication's filter lets through"
            ));
        }
        let key = key(&connection, &described, &mut plan.reasons).await?;
        if key.is_empty() && !request.keyless {
            return Err(Error::new(
                code::KEY_MISSING,
                format!("{table} has no key: its rows from before cannot be read beside its log, nor found again"),
            )
            .hint(format!(
                "ALTER TABLE {table} ADD PRIMARY KEY (…); or allow tables without a key, which follows only what comes from now on"
            )));
        }
        let own = request.schema.clone().or_else(|| described.table.schema.clone());
        let to = TableId {
            schema: own.filter(|_| !request.bare),
            name: described.table.name.clone(),
        };
        let there = destination.describe(&to).await?;
        let (mut read, mut schema) = (ReadSpec::of(table.clone(), Vec::new()), TableSchema::default());
        for column in &described.schema.columns {
            // Before 18 the list of published columns has generated ones, and the log has not.
            let may = !column.generated || connection.version() >= 180_000;
            let comes = columns.map_or(!column.generated, |c| may && c.contains(&column.name));
            let existing = there.as_ref().and_then(|t| t.column(&column.name));
            if !comes || existing.is_some_and(|e| e.generated) {
                plan.reasons.push(format!(
                    "{table}: column {} is not in the log and left out",
                    column.name
                ));
                continue;
            }
            let (from, mut stored) = carry_plain(source, destination, column, existing)?;
            // NOT NULL is the source's to keep: between two of its changes a row may be incomplete here.
            stored.nullable = !key.contains(&column.name);
            stored.identity = false;
            read.columns.push(from);
            schema.columns.push(stored);
        }
        if let Some(k) = key.iter().find(|k| schema.column(k).is_none()) {
            return Err(Error::new(
                code::LOG_SETUP,
                format!("the publication leaves out column {k}, which is part of the key of {table}"),
            )
            .hint(format!("add {k} to the publication's column list for {table}")));
        }
        schema.key = key;
        let initial = match request.initial {
            _ if schema.key.is_empty() => Initial::Skip,
            Some(initial) => initial,
            None if there.is_none() || destination.is_empty(&to).await? => Initial::Load,
            None => Initial::Resync,
        };
        let remembered = Remembered {
            initial,
            oid: described.oid,
            columns: shape::attributes(&connection, described.oid).await?,
        };
        let text = serde_json::to_string(&remembered).map_err(|e| Error::bug(e.to_string()))?;
        plan.remember.insert(Remembered::name(&table), text);
        plan.tables.push(PlannedTable {
            read,
            destination: to,
            schema,
            publish: Publish::Direct,
            changes: None,
            evolve: false,
            compare: None,
            own: false,
            row_hash: None,
        });
    }
    connection.recycle();
    Ok(plan)
}

/// The columns by which changes find their row: those of the replica identity.
async fn key(connection: &Connection, described: &Described, reasons: &mut Vec<String>) -> Result<Vec<String>> {
    const SQL: &str = "
        SELECT c.relreplident::text,
               ARRAY(SELECT a.attname::text
                     FROM pg_catalog.pg_index i
                     CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                     WHERE i.indrelid = c.oid AND k.place <= i.indnkeyatts
                       AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
                     ORDER BY k.place)
        FROM pg_catalog.pg_class c WHERE c.oid = $1";
    let row = connection
        .query_one(SQL, &[&described.oid])
        .await
        .map_err(|e| connection.error(e, "reading a table's replica identity"))?;
    let (identity, key): (&str, Vec<String>) = (row.get(0), row.get(1));
    let table = &described.table;
    if !key.is_empty() {
        if identity == "n" {
            reasons.push(format!(
                "{table} has REPLICA IDENTITY NOTHING: the server refuses updates and deletes of it; only inserts are followed"
            ));
        }
        return Ok(key);
    }
    reasons.push(match identity {
        "f" => format!("{table} has no key: whole old rows find what changed; equal rows count as one another"),
        _ => format!(
            "{table} has no key: only inserts and TRUNCATE are followed; the server refuses updates and deletes"
        ),
    });
    // With FULL any unique key that no row escapes will do, if there is one.
    match identity {
        "f" => Ok(described.schema.key.clone()),
        _ => Ok(Vec::new()),
    }
}
