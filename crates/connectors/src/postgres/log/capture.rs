//! The plan of a capture: which tables, by which keys, in which types, and what of them is read besides the log.

use super::super::catalog::{self, Described};
use super::super::client::Connection;
use super::super::slices::{self, Orders};
use super::super::{ENGINE, ddl};
use super::slot::Missing;
use super::source::LogSource;
use super::{identity, membership, shape, slot};
use std::collections::{BTreeMap, BTreeSet};
use synctool_core::backfill::{BackfillPosition, Pending};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::{self, Collation, KeyColumn};
use synctool_core::plan::{DeleteGuard, Phase, Plan, PlannedTable, Publish, ReadColumn, ReadSpec, Strategy, Verify};
use synctool_core::progress::{Generation, Position};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::Destination;
use synctool_core::source::Source;
use synctool_core::strategy::table::{carry_as_text, carry_plain};

pub use super::shape::Initial;
pub(crate) use super::shape::Remembered;

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
    /// The destination's table, where one table alone is captured under another name.
    pub to: Option<TableId>,
    /// Whether the destination's tables have no schema in their names (SQLite).
    pub bare: bool,
    /// What is done with rows that are there already; `None` loads into empty tables and makes others equal.
    pub initial: Option<Initial>,
    /// Whether tables without a key are followed: their rows from before are left out, and updates and deletes of them
    /// need REPLICA IDENTITY FULL.
    pub keyless: bool,
    /// Whether no two keys are equal at the destination, whatever its collations call equal.
    pub distinct_keys: bool,
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
            to: None,
            bare: false,
            initial: None,
            keyless: false,
            distinct_keys: false,
            now: now.into(),
        }
    }

    /// Whether a table came by itself beside those of a stored plan: then it may be left out, and the others go on.
    pub(crate) fn came_by_itself(&self, stored: Option<&Plan>, table: &TableId) -> bool {
        self.tables.is_empty() && stored.is_some_and(|p| p.tables.iter().all(|t| t.read.table != *table))
    }

    /// Whether a table that was checked is left out of a plan: it came by itself, and cannot be followed yet.
    pub(crate) fn leaves_out(&self, plan: &mut Plan, table: &TableId, checked: Result<()>) -> Result<bool> {
        let Err(e) = checked else { return Ok(false) };
        if e.kind().is_transient() {
            return Err(e);
        }
        plan.reasons
            .push(format!("{table}: left out for now ({})", e.message()));
        Ok(true)
    }

    /// Refuses a table without a key, where such tables are not followed.
    pub(crate) fn check_keyless(&self, table: &TableId) -> Result<()> {
        if self.keyless {
            return Ok(());
        }
        Err(without_key(table).hint(format!(
            "ALTER TABLE {table} ADD PRIMARY KEY (…); or allow tables without a key, which follows only what comes from now on"
        )))
    }

    /// Where a table goes that the catalog calls `found`; no other table of the plan may go there.
    pub(crate) fn target(&self, table: &TableId, found: &TableId, plan: &Plan) -> Result<TableId> {
        let own = self.schema.clone().or_else(|| found.schema.clone());
        let to = self.to.clone().unwrap_or_else(|| TableId {
            schema: own.filter(|_| !self.bare),
            name: found.name.clone(),
        });
        match plan.tables.iter().find(|t| t.destination == to) {
            None => Ok(to),
            Some(twin) => Err(Error::new(
                code::IDENTIFIER,
                format!("{table} and {} would both be written to {to}", twin.read.table),
            )
            .hint("capture them by two pipelines, each with a destination schema of its own")),
        }
    }

    /// A plan without tables yet.
    pub(crate) fn plan(&self, semantics: serde_json::Value) -> Plan {
        Plan {
            pipeline: self.pipeline.clone(),
            run_id: self.run_id.clone(),
            generation: Generation(0),
            strategy: Strategy::Log,
            reasons: Vec::new(),
            semantics,
            tables: Vec::new(),
            phases: vec![Phase {
                name: "log".into(),
                partitions: vec![LogSource::partition()],
            }]
            .into(),
            verify: Verify::None,
            guard: DeleteGuard::default(),
            remember: BTreeMap::new(),
            created_at: self.now.clone(),
        }
    }

    /// What is done with the rows of a table that were there before its log.
    pub(crate) async fn initial(
        &self,
        destination: &dyn Destination,
        to: &TableId,
        is_there: bool,
        keyed: bool,
    ) -> Result<Initial> {
        Ok(match self.initial {
            _ if !keyed => Initial::Skip,
            Some(initial) => initial,
            None if !is_there || destination.is_empty(to).await? => Initial::Load,
            None => Initial::Resync,
        })
    }

    /// What must not change while the plan is unfinished.
    pub fn semantics(&self, source: &LogSource) -> serde_json::Value {
        self.semantics_of(&source.options().slot, &source.options().publication)
    }

    /// The same for a log of these names.
    pub(crate) fn semantics_of(&self, slot: &str, publication: &str) -> serde_json::Value {
        let mut tables: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
        tables.sort_unstable();
        serde_json::json!({
            "strategy": "log",
            "slot": slot,
            "publication": publication,
            "tables": tables,
            "schema": self.schema,
            "to": self.to.as_ref().map(ToString::to_string),
            "bare": self.bare,
        })
    }
}

pub(super) fn without_key(table: &TableId) -> Error {
    Error::new(
        code::KEY_MISSING,
        format!("{table} has no key: its rows from before cannot be read beside its log, nor found again"),
    )
}

/// Whether a plan has all tables of the publication, not named ones.
pub(crate) fn follows_all(plan: &Plan) -> bool {
    plan.semantics["tables"].as_array().is_some_and(Vec::is_empty)
}

/// Under which name a plan remembers where its log goes on, if another plan read it before.
pub(crate) const FROM: &str = "log:from";

/// Whether two plans' meanings differ in nothing but their tables.
pub fn differ_in_tables_alone(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    let without = |value: &serde_json::Value| {
        let mut value = value.clone();
        if let Some(all) = value.as_object_mut() {
            all.remove("tables");
        }
        value
    };
    a != b && without(a) == without(b)
}

/// The plan that a capture would make, beside a stored one where it goes on, and the statements that would be run at the
/// source for it. Nothing is changed.
pub async fn preview(
    source: &LogSource,
    destination: &dyn Destination,
    request: CaptureRequest,
    stored: Option<&Plan>,
) -> Result<(Plan, Vec<String>)> {
    let mut statements = Vec::new();
    let plan = draft(source, destination, request, stored, Missing::Tell(&mut statements)).await?;
    let connection = source.database().connect().await?;
    if slot::find(&connection, &source.options().slot).await?.is_none() {
        statements.push(slot::creation(source.options(), connection.version()));
    }
    connection.recycle();
    Ok((plan, statements))
}

/// A plan for other tables than those of a stored one, which goes on where that one stands: tables that are new are
/// read beside the log, those that went are not followed any more. Whoever writes by the stored plan is fenced first.
pub async fn extend(
    source: &LogSource,
    destination: &dyn Destination,
    stored: &Plan,
    request: CaptureRequest,
) -> Result<Plan> {
    check(source, destination, &request, Some(stored)).await?;
    let draft = Box::pin(draft(source, destination, request, Some(stored), Missing::Make));
    extended(destination, stored, draft).await
}

/// The plan that is drafted while nobody writes by the stored one, going on where that stands.
pub(crate) async fn extended(
    destination: &dyn Destination,
    stored: &Plan,
    draft: impl Future<Output = Result<Plan>>,
) -> Result<Plan> {
    let log = LogSource::partition().id;
    let mut sink = destination.open_sink(stored).await?;
    let position = sink.recover(std::slice::from_ref(&log)).await?.remove(&log);
    let position = position.and_then(|state| state.position);
    let plan = draft.await?;
    sink.release(std::slice::from_ref(&log)).await?;
    go_on(stored, plan, position)
}

/// A plan that goes on where another one of other tables stands.
fn go_on(stored: &Plan, mut plan: Plan, position: Option<Position>) -> Result<Plan> {
    let known = |table: &TableId| stored.tables.iter().find(|t| t.read.table == *table);
    for table in &mut plan.tables {
        let Some(old) = known(&table.read.table) else { continue };
        let name = Remembered::name(&old.read.table);
        // The log's position counts its columns by what the older plan had.
        table.clone_from(old);
        if let Some(remembered) = stored.remember.get(&name) {
            plan.remember.insert(name, remembered.clone());
        }
    }
    for table in stored.tables.iter().map(|t| &t.read.table) {
        // What of it is read already was cut so.
        plan.cut_by_bytes(table, stored.columns_cut_by_bytes(table));
    }
    let Some(position) = position_of(stored, position) else {
        return Ok(plan);
    };
    let mut position = BackfillPosition::parse(&position)?;
    let mut left: BTreeSet<String> = stored
        .remember
        .keys()
        .filter(|k| k.starts_with(LEFT))
        .cloned()
        .collect();
    let has = |table: &TableId| plan.tables.iter().any(|t| t.read.table == *table);
    position.pending.retain(|p| has(&p.table));
    position.cancelled.retain(|c| has(&c.table));
    for table in plan.tables.iter().filter(|t| known(&t.read.table).is_none()) {
        let read = &table.read.table;
        match Remembered::of(&plan, read).initial {
            // Its copy has rows of then.
            Initial::Load if left.contains(&left_name(read)) => position.pending.push(Pending::resync(read.clone())),
            Initial::Load => position.pending.push(Pending::load(read.clone())),
            Initial::Resync => position.pending.push(Pending::resync(read.clone())),
            Initial::Skip => {}
        }
        plan.reasons
            .push(format!("{read}: new, read beside the log of the others"));
    }
    for table in &stored.tables {
        if !plan.tables.iter().any(|t| t.read.table == table.read.table) {
            let read = &table.read.table;
            plan.reasons.push(format!(
                "{read}: not followed any more; its rows at the destination stay"
            ));
            left.insert(left_name(read));
        }
    }
    left.retain(|name| !plan.tables.iter().any(|t| left_name(&t.read.table) == *name));
    plan.remember.extend(left.into_iter().map(|name| (name, String::new())));
    plan.remember.insert(FROM.into(), position.encode().0);
    Ok(plan)
}

/// Under which names a plan remembers tables that were followed once.
const LEFT: &str = "log:left:";

fn left_name(table: &TableId) -> String {
    format!("{LEFT}{table}")
}

/// Where a plan's log begins, if another plan read it before.
pub(crate) fn from_of(plan: &Plan) -> Option<Position> {
    plan.remember.get(FROM).map(|text| Position(text.clone()))
}

/// Where a plan's log goes on: at what the destination holds for it, or where another plan's stood.
pub fn position_of(plan: &Plan, stored: Option<Position>) -> Option<Position> {
    stored.or_else(|| from_of(plan))
}

/// What a plan does with the rows of a table that were there before its log, and how many the catalog expected.
pub fn initial_of(plan: &Plan, table: &TableId) -> (Initial, Option<u64>) {
    let remembered = Remembered::of(plan, table);
    (remembered.initial, remembered.rows)
}

/// Makes the plan of a capture: checks the server, makes or completes the publication, and reads the catalog. Nothing
/// else is changed; the slot is made when the log is opened.
pub async fn capture(source: &LogSource, destination: &dyn Destination, request: CaptureRequest) -> Result<Plan> {
    check(source, destination, &request, None).await?;
    draft(source, destination, request, None, Missing::Make).await
}

/// Refuses what the catalog shows to be impossible, before anything is made: a table that is published and then not
/// followed may cost the application its updates.
async fn check(
    source: &LogSource,
    destination: &dyn Destination,
    request: &CaptureRequest,
    stored: Option<&Plan>,
) -> Result<()> {
    let mut told = Vec::new();
    Box::pin(draft(
        source,
        destination,
        request.clone(),
        stored,
        Missing::Tell(&mut told),
    ))
    .await?;
    Ok(())
}

/// Refuses a table that came by itself and cannot be followed (yet).
pub(super) async fn check_newcomer(
    connection: &Connection,
    request: &CaptureRequest,
    table: &TableId,
    schema: &str,
) -> Result<()> {
    let described = catalog::describe(connection, table, schema).await?;
    let key = key(connection, &described, &mut Vec::new()).await?;
    identity::check_followable(connection, &described, &key).await?;
    match key.is_empty() {
        true => request.check_keyless(table),
        false => Ok(()),
    }
}

/// The columns of a followed table's key as they are read, under their names at the source, and as they are stored.
pub(crate) fn key_pairs(read: &ReadSpec, schema: &TableSchema) -> (Vec<Column>, Vec<Column>) {
    let pairs = read.columns.iter().zip(&schema.columns);
    let key = pairs.filter(|(_, stored)| schema.key.contains(&stored.name));
    let named = |from: &ReadColumn| Column {
        name: from.source.clone(),
        ..from.column.clone()
    };
    key.map(|(from, stored)| (named(from), stored.clone())).unzip()
}

/// The columns of a followed table's key at both ends; `here` is how the source compares them. Refuses a destination that
/// may call keys equal which the source tells apart, unless the user knows better.
pub(crate) async fn key_columns(
    here: Vec<Collation>,
    (read, stored): (Vec<Column>, Vec<Column>),
    request: &CaptureRequest,
    destination: &dyn Destination,
    (to, is_there): (&TableId, bool),
) -> Result<Vec<KeyColumn>> {
    if read.is_empty() {
        return Ok(Vec::new());
    }
    let there = destination.as_source();
    let there = there.ok_or_else(|| Error::bug(format!("{} follows a log and is not read", destination.engine())))?;
    let columns = read.into_iter().map(Some).zip(stored).collect();
    let key = KeyColumn::beside(here, (&*there, to), columns).await?;
    if is_there && !request.distinct_keys {
        keys::check_apart(&key).map_err(|e| e.at("table", to.to_string()))?;
    }
    Ok(key)
}

/// Says which columns of a table's key (this one, as it is read and written) chunks are cut in by the bytes of texts.
pub(crate) async fn cut_keys(
    plan: &mut Plan,
    (connection, oid): (&Connection, u32),
    read: &ReadSpec,
    key: &[KeyColumn],
) -> Result<()> {
    let unlike: Vec<&KeyColumn> = key.iter().filter(|k| k.is_cut_by_bytes()).collect();
    let sources: Vec<String> = unlike
        .iter()
        .filter_map(|k| Some(k.read.as_ref()?.name.clone()))
        .collect();
    if sources.is_empty() {
        return Ok(());
    }
    let orders = Orders::of(connection, oid, &sources).await?;
    // The source's index serves the order that both have.
    let is_served = |k: &KeyColumn| {
        let by_default = |name: &String| orders.by_default.contains(name) && !orders.by_bytes.contains(name);
        k.is_padded_alike() && k.read.as_ref().is_some_and(|c| by_default(&c.name))
    };
    let (sources, names): (Vec<String>, Vec<String>) = unlike
        .into_iter()
        .filter(|&k| !is_served(k))
        .filter_map(|k| Some((k.read.as_ref()?.name.clone(), k.stored.name.clone())))
        .unzip();
    if sources.is_empty() {
        return Ok(());
    }
    if let Some(slow) = sources.iter().find(|s| !orders.by_bytes.contains(s)) {
        let is_text = |c: &ReadColumn| matches!(c.column.ty, ColumnType::Text { .. } | ColumnType::Char { .. });
        let term = match read.columns.iter().any(|c| c.source == *slow && is_text(c)) {
            true => slow.clone(),
            false => format!("({slow}::text)"),
        };
        plan.reasons.push(format!(
            "{table}: rows that are there already are read in the order of the bytes of {slow}, because the destination may \
             order texts otherwise; for a large table make an index on ({term} COLLATE \"C\") first",
            table = read.table
        ));
    }
    plan.cut_by_bytes(&read.table, names);
    Ok(())
}

async fn draft(
    source: &LogSource,
    destination: &dyn Destination,
    request: CaptureRequest,
    stored: Option<&Plan>,
    missing: Missing<'_>,
) -> Result<Plan> {
    let config = source.database().config();
    let connection = source.database().connect().await?;
    slot::check_server(&connection).await?;
    let only_tells = missing.only_tells();
    let publication =
        slot::publication(&connection, source.options(), &request.tables, &config.schema, missing).await?;
    let marks = source.options().watermark_table();
    let mut wanted: Vec<TableId> = match request.tables.is_empty() {
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
    let mut plan = request.plan(request.semantics(source));
    if let Some(stored) = stored.filter(|_| !only_tells) {
        let is_new = |t: &&TableId| stored.tables.iter().all(|s| s.read.table != **t);
        let new: Vec<TableId> = wanted.iter().filter(is_new).cloned().collect();
        match request.tables.is_empty() {
            true => {
                let waiting = membership::settle(&connection, &new, &config.schema).await?;
                for table in &waiting {
                    tracing::warn!(%table, "a new table is left out for now: somebody writes to it since before it was published");
                }
                wanted.retain(|t| !waiting.contains(t));
            }
            false => membership::settle_all(&connection, &new, &config.schema).await?,
        }
    }
    let members = membership::memberships(&connection, &source.options().publication, &wanted, &config.schema).await?;
    for (table, member) in wanted.into_iter().zip(members) {
        let described = catalog::describe(&connection, &table, &config.schema).await?;
        let leaves = slot::leaves(&connection, described.oid).await?;
        let published = publication.entry(&described.table, &leaves)?;
        let columns = published.and_then(|p| p.columns.as_deref());
        if published.is_some_and(|p| p.filter.is_some()) {
            plan.reasons.push(format!(
                "{table}: only the rows that the publication's filter lets through"
            ));
        }
        let key = key(&connection, &described, &mut plan.reasons).await?;
        if request.came_by_itself(stored, &table) {
            let checked = check_newcomer(&connection, &request, &table, &config.schema).await;
            if request.leaves_out(&mut plan, &table, checked)? {
                continue;
            }
        }
        identity::check_followable(&connection, &described, &key).await?;
        if key.is_empty() {
            request.check_keyless(&table)?;
        }
        let to = request.target(&table, &described.table, &plan)?;
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
            let (from, mut stored) = carry(source, destination, column, existing, &key)?;
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
        let keyed = !schema.key.is_empty();
        let initial = request.initial(destination, &to, there.is_some(), keyed).await?;
        let now = shape::look(&connection, described.oid, &[]).await?;
        let remembered = Remembered {
            initial,
            oid: described.oid,
            columns: now.columns,
            rows: expected_rows(&connection, described.oid).await?,
            files: now.files,
            parts: now.partitioned.then_some(now.parts),
            member: member.map(|m| m.by),
        };
        remembered.keep(&mut plan, &table)?;
        let key = key_pairs(&read, &schema);
        // Known as soon as anything was asked of the server.
        let utf8 = source.database().server().is_some_and(|server| server.utf8);
        let here = slices::collations(&connection, utf8, &table, &config.schema, &key.0).await?;
        let key = key_columns(here, key, &request, destination, (&to, there.is_some())).await?;
        cut_keys(&mut plan, (&connection, described.oid), &read, &key).await?;
        plan.tables.push(PlannedTable::new(read, to, schema, Publish::Direct));
    }
    connection.recycle();
    Ok(plan)
}

/// How the columns of a table are read and written, all but those that are computed at one end.
pub(crate) fn carried(
    (source, destination): (&dyn Source, &dyn Destination),
    table: &TableId,
    columns: &TableSchema,
    there: Option<&TableSchema>,
    reasons: &mut Vec<String>,
) -> Result<(ReadSpec, TableSchema)> {
    let (mut read, mut schema) = (ReadSpec::of(table.clone(), Vec::new()), TableSchema::default());
    for column in &columns.columns {
        let existing = there.and_then(|t| t.column(&column.name));
        if column.generated || existing.is_some_and(|e| e.generated) {
            reasons.push(format!("{table}: column {} is computed and left out", column.name));
            continue;
        }
        let (from, mut stored) = carry(source, destination, column, existing, &columns.key)?;
        // NOT NULL is the source's to keep: between two of its changes a row may be incomplete here.
        stored.nullable = !columns.key.contains(&column.name);
        stored.identity = false;
        read.columns.push(from);
        schema.columns.push(stored);
    }
    if columns.key.iter().any(|k| schema.column(k).is_none()) {
        return Err(Error::new(
            code::LOG_SETUP,
            format!("a column of the key of {table} is computed, and computed columns are left out"),
        )
        .hint("give the table a primary key of plain columns"));
    }
    schema.key.clone_from(&columns.key);
    Ok((read, schema))
}

/// How a column of a log travels and is stored. Where the destination's column is a text by somebody's will, it takes what
/// the column's own type has no place for; only a key keeps its order.
fn carry(
    source: &dyn Source,
    destination: &dyn Destination,
    column: &Column,
    there: Option<&Column>,
    key: &[String],
) -> Result<(ReadColumn, Column)> {
    use ColumnType::{Char, Json, Jsonb, Native, Text};
    if let Some(there) = there
        && (source.engine(), destination.engine()) == (ENGINE, ENGINE)
        && ddl::rounds(there, column)
    {
        let wanted = column.source_type.clone().unwrap_or_else(|| column.ty.to_string());
        return Err(ddl::would_round(there, &wanted));
    }
    let made_a_text = there.is_some_and(|there| {
        there.ty == (Text { max: None })
            && !matches!(column.ty, Text { .. } | Char { .. } | Json | Jsonb | Native)
            && destination.store_as(source.engine(), column).type_name
                != destination.store_as(destination.engine(), there).type_name
    });
    match made_a_text && !key.contains(&column.name) {
        true => carry_as_text(source, destination, column, there),
        false => carry_plain(source, destination, column, there),
    }
}

/// Rows of a table and its partitions by the catalog's estimate.
pub(crate) async fn expected_rows(connection: &Connection, oid: u32) -> Result<Option<u64>> {
    let row = connection
        .query_one(
            "WITH RECURSIVE tree AS (SELECT $1::oid AS oid UNION SELECT i.inhrelid FROM tree t \
             JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind = 'p') \
             SELECT sum(nullif(reltuples, -1)) FILTER (WHERE relkind <> 'p' OR oid = $1)::float8 \
             FROM pg_catalog.pg_class JOIN tree USING (oid)",
            &[&oid],
        )
        .await
        .map_err(|e| connection.error(e, "estimating a table's rows"))?;
    Ok(row.get::<_, Option<f64>>(0).map(|n| n.max(0.0) as u64))
}

/// The columns by which changes find their row: those of the replica identity.
pub(super) async fn key(
    connection: &Connection,
    described: &Described,
    reasons: &mut Vec<String>,
) -> Result<Vec<String>> {
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
