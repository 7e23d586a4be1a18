//! The control tables at a PostgreSQL destination: plans, generations, checkpoints and the history of what was published.
//!
//! They live in one schema beside the data, so that a position and its rows are one transaction. Their SQL is written
//! once, with the schema's name filled in when the destination opens.

use super::client::map_error;
use super::sql::{check_ident, ident, literal};
use futures::future::try_join3;
use std::collections::{BTreeMap, HashMap};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::Plan;
use synctool_core::progress::{Advance, Checkpoint, Epoch, Generation, PartitionId, PartitionState, Position};
use synctool_core::schema::TableId;
use synctool_core::sink::StoredPlan;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row, Statement};

/// The version of these tables. A newer one in the database is refused.
const FORMAT_VERSION: i32 = 3;

/// How many plans of a pipeline are kept.
const PLANS_KEPT: i64 = 20;

/// The control schema of one destination.
#[derive(Debug, Clone)]
pub(super) struct Control {
    name: String,
    /// The quoted name, ready for SQL text.
    schema: String,
}

/// Whether a plan is still to be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlanStatus {
    /// Prepared, not yet published.
    Active,
    /// Published, with what that did.
    Finished(Applied),
}

/// What publishing did to one table, for the history.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) index: usize,
    pub(super) table: TableId,
    pub(super) oid: u32,
    /// `create`, `swap`, `merge`, `append` or `direct`.
    pub(super) publish: &'static str,
    pub(super) applied: Applied,
}

/// What every commit of a session says, prepared by the server.
#[derive(Clone)]
pub(super) struct Moves {
    control: Control,
    hold: Statement,
    advance: Statement,
    /// Where the WAL is written, and where it is flushed.
    pub(super) flushed: Statement,
}

impl Moves {
    /// The same as [`Control::hold_generation`].
    pub(super) async fn hold_generation(&self, tx: &impl GenericClient, plan: &Plan) -> Result<()> {
        self.control.hold_by(tx, &self.hold, plan).await
    }

    /// Moves a partition from one position to the next; where it does not stand at the first one any more, the server
    /// refuses and the transaction fails, so that COMMIT may follow at once. This is the last thing before it.
    pub(super) async fn advance(&self, tx: &impl GenericClient, plan: &Plan, to: &Move<'_>) -> Result<()> {
        let moved = tx.execute(&self.advance, &to.parameters(plan)).await;
        let overtaken = || overtaken(plan, &to.advance.partition);
        moved.map_err(|e| self.control.refused(e, "moving the checkpoint", overtaken))?;
        Ok(())
    }

    /// A transaction of one statement: an INSERT whose parameters are behind those of a [`Move`], the generation held, and
    /// the partition moved; refused as a division by zero where one of these is another one's by now. The generation is held
    /// first, in the order of whoever raises it and goes on to the partitions. `settings` hold for it.
    pub(super) fn whole(&self, insert: &str, settings: &[&str]) -> String {
        let settings: String = settings.iter().map(|setting| format!(", {setting}")).collect();
        format!(
            "WITH {}, rows AS ({insert}), held AS {} SELECT 1 / (SELECT pg_catalog.count(*) FROM held), \
             1 / (SELECT pg_catalog.count(*) FROM moved){settings}",
            self.control.moved(),
            self.control.held()
        )
    }
}

/// How far a partition moves with a commit, and what was applied to it in all.
pub(super) struct Move<'a> {
    epoch: Epoch,
    pub(super) advance: &'a Advance,
    to: &'a str,
    from: Option<&'a str>,
    partition: &'a str,
    accounts: Json<&'a Accounts>,
    applied: Json<Applied>,
}

impl<'a> Move<'a> {
    pub(super) const TYPES: [Type; 9] = [
        Type::TEXT,
        Type::INT8,
        Type::TEXT,
        Type::INT8,
        Type::TEXT,
        Type::BOOL,
        Type::JSON,
        Type::JSON,
        Type::TEXT,
    ];

    pub(super) fn new(epoch: Epoch, advance: &'a Advance, applied: Applied) -> Self {
        Move {
            epoch,
            advance,
            to: advance.to.as_str(),
            from: advance.from.as_ref().map(Position::as_str),
            partition: advance.partition.as_str(),
            accounts: Json(&advance.accounts),
            applied: Json(applied),
        }
    }

    pub(super) fn parameters<'b>(&'b self, plan: &'b Plan) -> [&'b (dyn ToSql + Sync); 9] {
        [
            &plan.pipeline,
            &plan.generation.0,
            &self.partition,
            &self.epoch.0,
            &self.to,
            &self.advance.done,
            &self.accounts,
            &self.applied,
            &self.from,
        ]
    }
}

impl Control {
    pub(super) fn new(schema: &str) -> Result<Self> {
        check_ident(schema)?;
        Ok(Control {
            name: schema.to_string(),
            schema: ident(schema),
        })
    }

    /// The statements that make the control tables, for people without the right to let us do it.
    pub(super) fn ddl(&self) -> Vec<String> {
        let s = &self.schema;
        vec![
            format!("CREATE SCHEMA IF NOT EXISTS {s}"),
            format!("CREATE TABLE IF NOT EXISTS {s}.format_version (version integer PRIMARY KEY)"),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.generation (pipeline text PRIMARY KEY, generation bigint NOT NULL, \
                 updated_at timestamptz NOT NULL DEFAULT now())"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.plan (pipeline text NOT NULL, generation bigint NOT NULL, \
                 run_id text NOT NULL, plan json NOT NULL, \
                 status text NOT NULL CHECK (status IN ('active', 'finished', 'superseded')), applied json, \
                 created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz, \
                 PRIMARY KEY (pipeline, generation))"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.checkpoint (pipeline text NOT NULL, generation bigint NOT NULL, \
                 partition text NOT NULL, epoch bigint NOT NULL, position text, done boolean NOT NULL DEFAULT false, \
                 accounts json NOT NULL, applied json NOT NULL, writer text, \
                 updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, generation, partition)) \
                 WITH (fillfactor = 50)"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.history (pipeline text NOT NULL, generation bigint NOT NULL, \
                 table_index integer NOT NULL, run_id text NOT NULL, table_schema text NOT NULL, \
                 table_name text NOT NULL, table_oid oid NOT NULL, publish text NOT NULL, written bigint NOT NULL, \
                 inserted bigint NOT NULL, updated bigint NOT NULL, deleted bigint NOT NULL, unchanged bigint NOT NULL, \
                 finished_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, generation, table_index))"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.memory (pipeline text NOT NULL, fact text NOT NULL, value text NOT NULL, \
                 updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, fact))"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {s}.rejects (pipeline text NOT NULL, generation bigint NOT NULL, \
                 partition text NOT NULL, number bigint NOT NULL, run_id text NOT NULL, stage text NOT NULL, \
                 table_name text NOT NULL, reason text NOT NULL, column_name text, row_key json NOT NULL, \
                 rejected_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, generation, partition, number))"
            ),
            format!("INSERT INTO {s}.format_version VALUES ({FORMAT_VERSION}) ON CONFLICT DO NOTHING"),
        ]
    }

    /// Whether the control tables are there, in a version we know; an older one lacks what came later.
    pub(super) async fn exists(&self, client: &impl GenericClient) -> Result<bool> {
        Ok(self.version(client).await?.is_some())
    }

    /// Whether the control tables are there with all that this version has.
    pub(super) async fn is_current(&self, client: &impl GenericClient) -> Result<bool> {
        Ok(self.version(client).await? == Some(FORMAT_VERSION))
    }

    async fn version(&self, client: &impl GenericClient) -> Result<Option<i32>> {
        let there = client
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = 'format_version')",
                &[&self.name],
            )
            .await
            .map_err(|e| map_error(e, "looking for the control tables"))?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let row = client
            .query_one(&format!("SELECT max(version) FROM {}.format_version", self.schema), &[])
            .await
            .map_err(|e| self.permission(map_error(e, "reading the control tables")))?;
        match row.get::<_, Option<i32>>(0) {
            None => Ok(None),
            Some(v) if v <= FORMAT_VERSION => Ok(Some(v)),
            Some(v) => Err(Error::new(
                code::STATE_STORE,
                format!(
                    "the control tables in schema {} have version {v}; this program knows {FORMAT_VERSION}",
                    self.name
                ),
            )
            .hint("use the newer SyncTool that wrote them, or set another control_schema")),
        }
    }

    /// Makes the control tables, or what an older version of them lacks. Safe against others doing the same.
    pub(super) async fn ensure(&self, client: &mut Client) -> Result<()> {
        if self.is_current(client).await? {
            return Ok(());
        }
        let fail = |e| self.permission(map_error(e, "making the control tables"));
        let tx = client.transaction().await.map_err(fail)?;
        tx.execute(
            "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('synctool control ' || $1, 0))",
            &[&self.name],
        )
        .await
        .map_err(fail)?;
        // CREATE … IF NOT EXISTS asks for the right even where there is nothing to do.
        let schema_there = tx
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)",
                &[&self.name],
            )
            .await
            .map_err(fail)?
            .get::<_, bool>(0);
        for statement in self.ddl().iter().skip(usize::from(schema_there)) {
            tx.batch_execute(statement).await.map_err(fail)?;
        }
        tx.commit().await.map_err(fail)
    }

    fn permission(&self, e: Error) -> Error {
        if e.code() != code::PERMISSION {
            return e;
        }
        Error::new(
            code::PERMISSION,
            format!("the control schema {} cannot be used: {}", self.name, e.message()),
        )
        .hint(format!(
            "GRANT CREATE ON DATABASE … TO …; or let an administrator run the DDL that `synctool plan` prints, then \
             GRANT USAGE ON SCHEMA {s} TO …; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {s} TO …",
            s = self.schema
        ))
    }

    /// Raises the pipeline's generation. Its row lock is held to the end of the transaction, so no commit of an older
    /// plan can come in between.
    pub(super) async fn raise(&self, tx: &impl GenericClient, pipeline: &str) -> Result<Generation> {
        let row = tx
            .query_one(
                &format!(
                    "INSERT INTO {s}.generation AS g (pipeline, generation) VALUES ($1, 1) \
                     ON CONFLICT (pipeline) DO UPDATE SET generation = g.generation + 1, updated_at = now() \
                     RETURNING generation",
                    s = self.schema
                ),
                &[&pipeline],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "raising the generation")))?;
        Ok(Generation(row.get(0)))
    }

    /// Stores a plan under its generation and supersedes the older ones with their checkpoints.
    pub(super) async fn store_plan(&self, tx: &impl GenericClient, plan: &Plan) -> Result<()> {
        let s = &self.schema;
        let fail = |e| self.permission(map_error(e, "storing the plan"));
        let (pipeline, generation) = (&plan.pipeline, plan.generation.0);
        tx.execute(
            &format!(
                "UPDATE {s}.plan SET status = 'superseded' WHERE pipeline = $1 AND generation < $2 AND status = 'active'"
            ),
            &[pipeline, &generation],
        )
        .await
        .map_err(fail)?;
        tx.execute(
            &format!("DELETE FROM {s}.plan WHERE pipeline = $1 AND generation <= $2"),
            &[pipeline, &(generation - PLANS_KEPT)],
        )
        .await
        .map_err(fail)?;
        tx.execute(
            &format!("DELETE FROM {s}.checkpoint WHERE pipeline = $1 AND generation < $2"),
            &[pipeline, &generation],
        )
        .await
        .map_err(fail)?;
        tx.execute(
            &format!(
                "INSERT INTO {s}.plan (pipeline, generation, run_id, plan, status) VALUES ($1, $2, $3, $4, 'active')"
            ),
            &[pipeline, &generation, &plan.run_id, &Json(plan)],
        )
        .await
        .map_err(fail)?;
        Ok(())
    }

    /// The newest plan of a pipeline, unless it was forgotten.
    pub(super) async fn stored_plan(&self, client: &impl GenericClient, pipeline: &str) -> Result<Option<StoredPlan>> {
        let row = client
            .query_opt(
                &format!(
                    "SELECT p.plan, p.status FROM {s}.plan p JOIN {s}.generation g USING (pipeline, generation) \
                     WHERE p.pipeline = $1 AND p.status <> 'superseded'",
                    s = self.schema
                ),
                &[&pipeline],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading the stored plan")))?;
        row.map(|r| {
            let Json(plan) = r
                .try_get::<_, Json<Plan>>(0)
                .map_err(|_| Error::unreadable_plan(pipeline))?;
            Ok(StoredPlan {
                plan,
                finished: r.get::<_, &str>(1) == "finished",
            })
        })
        .transpose()
    }

    /// Holds the pipeline's generation until the transaction ends. One that is not the plan's is the server's to refuse: the
    /// transaction fails, so that COMMIT may follow at once.
    pub(super) async fn hold_generation(&self, tx: &impl GenericClient, plan: &Plan) -> Result<()> {
        let hold = self.prepare(tx, &self.hold()).await?;
        self.hold_by(tx, &hold, plan).await
    }

    async fn hold_by(&self, tx: &impl GenericClient, hold: &Statement, plan: &Plan) -> Result<()> {
        let held = tx.execute(hold, &[&plan.pipeline, &plan.generation.0]).await;
        held.map_err(|e| self.refused(e, "checking the generation", || superseded(plan)))?;
        Ok(())
    }

    fn hold(&self) -> String {
        format!("SELECT 1 / pg_catalog.count(*) FROM {} AS held", self.held())
    }

    fn held(&self) -> String {
        format!(
            "(SELECT FROM {}.generation WHERE pipeline = $1 AND generation = $2 FOR SHARE)",
            self.schema
        )
    }

    fn moved(&self) -> String {
        format!(
            "moved AS (UPDATE {}.checkpoint SET position = $5, done = $6, accounts = $7, applied = $8, \
             updated_at = now() WHERE pipeline = $1 AND generation = $2 AND partition = $3 AND epoch = $4 \
             AND position IS NOT DISTINCT FROM $9 RETURNING 1)",
            self.schema
        )
    }

    async fn prepare(&self, client: &impl GenericClient, statement: &str) -> Result<Statement> {
        let prepared = client.prepare(statement).await;
        prepared.map_err(|e| self.permission(map_error(e, "preparing a statement of the control tables")))
    }

    /// Locks the plan's row and says how far it is.
    pub(super) async fn lock_plan(&self, tx: &impl GenericClient, plan: &Plan) -> Result<PlanStatus> {
        let row = tx
            .query_opt(
                &format!(
                    "SELECT status, applied FROM {}.plan WHERE pipeline = $1 AND generation = $2 FOR UPDATE",
                    self.schema
                ),
                &[&plan.pipeline, &plan.generation.0],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "locking the plan")))?;
        let Some(row) = row else {
            return Err(
                Error::new(code::FENCED, format!("the plan of run {} was forgotten", plan.run_id))
                    .at("pipeline", &plan.pipeline),
            );
        };
        match row.get::<_, &str>(0) {
            "finished" => Ok(PlanStatus::Finished(
                row.get::<_, Option<Json<Applied>>>(1)
                    .map_or_else(Applied::default, |j| j.0),
            )),
            "active" => Ok(PlanStatus::Active),
            _ => Err(
                Error::new(code::FENCED, format!("the plan of run {} was superseded", plan.run_id))
                    .at("pipeline", &plan.pipeline),
            ),
        }
    }

    /// Marks a plan finished, keeps what it did and folds its partitions away.
    pub(super) async fn finish(
        &self,
        tx: &impl GenericClient,
        plan: &Plan,
        applied: Applied,
        outcomes: &[Outcome],
    ) -> Result<()> {
        let s = &self.schema;
        let fail = |e| self.permission(map_error(e, "finishing the plan"));
        tx.execute(
            &format!(
                "UPDATE {s}.plan SET status = 'finished', applied = $3, finished_at = now() \
                 WHERE pipeline = $1 AND generation = $2"
            ),
            &[&plan.pipeline, &plan.generation.0, &Json(applied)],
        )
        .await
        .map_err(fail)?;
        for o in outcomes {
            let a = o.applied;
            tx.execute(
                &format!(
                    "INSERT INTO {s}.history (pipeline, generation, table_index, run_id, table_schema, table_name, \
                     table_oid, publish, written, inserted, updated, deleted, unchanged) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
                ),
                &[
                    &plan.pipeline,
                    &plan.generation.0,
                    &(o.index as i32),
                    &plan.run_id,
                    &o.table.schema.as_deref().unwrap_or_default(),
                    &o.table.name,
                    &o.oid,
                    &o.publish,
                    &(a.written as i64),
                    &(a.inserted as i64),
                    &(a.updated as i64),
                    &(a.deleted as i64),
                    &(a.unchanged as i64),
                ],
            )
            .await
            .map_err(fail)?;
        }
        tx.execute(
            &format!("DELETE FROM {s}.checkpoint WHERE pipeline = $1 AND generation = $2"),
            &[&plan.pipeline, &plan.generation.0],
        )
        .await
        .map_err(fail)?;
        self.remember(tx, &plan.pipeline, &plan.remember).await
    }

    /// What is remembered for a pipeline.
    pub(super) async fn remembered(
        &self,
        client: &impl GenericClient,
        pipeline: &str,
    ) -> Result<BTreeMap<String, String>> {
        if !self.is_current(client).await? {
            return Ok(BTreeMap::new());
        }
        let rows = client
            .query(
                &format!("SELECT fact, value FROM {}.memory WHERE pipeline = $1", self.schema),
                &[&pipeline],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading what is remembered")))?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    /// Adds to what is remembered for a pipeline.
    pub(super) async fn remember(
        &self,
        client: &impl GenericClient,
        pipeline: &str,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        if facts.is_empty() {
            return Ok(());
        }
        let (names, values): (Vec<&String>, Vec<&String>) = facts.iter().unzip();
        client
            .execute(
                &format!(
                    "INSERT INTO {}.memory (pipeline, fact, value) \
                     SELECT $1, f, v FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS x(f, v) \
                     ON CONFLICT (pipeline, fact) DO UPDATE SET value = excluded.value, updated_at = now()",
                    self.schema
                ),
                &[&pipeline, &names, &values],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "remembering facts")))?;
        Ok(())
    }

    /// Whether the table with this oid was put in place by a run of ours (created or swapped).
    pub(super) async fn made(&self, client: &impl GenericClient, oid: u32) -> Result<bool> {
        let row = client
            .query_one(
                &format!(
                    "SELECT EXISTS (SELECT FROM {}.history WHERE table_oid = $1 AND publish IN ('create', 'swap'))",
                    self.schema
                ),
                &[&oid],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading the history")))?;
        Ok(row.get(0))
    }

    /// Forgets a pipeline's plans, checkpoints and what is remembered; its generation goes up, so whoever still writes is fenced.
    pub(super) async fn forget(&self, tx: &impl GenericClient, pipeline: &str) -> Result<()> {
        self.raise(tx, pipeline).await?;
        for table in ["checkpoint", "plan", "memory"] {
            tx.execute(
                &format!("DELETE FROM {}.{table} WHERE pipeline = $1", self.schema),
                &[&pipeline],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "forgetting the plan")))?;
        }
        Ok(())
    }

    /// Where the partitions of a plan stand.
    pub(super) async fn checkpoint(&self, client: &impl GenericClient, plan: &Plan) -> Result<Checkpoint> {
        let rows = client
            .query(
                &format!(
                    "SELECT partition, position, done, accounts, applied FROM {}.checkpoint \
                     WHERE pipeline = $1 AND generation = $2",
                    self.schema
                ),
                &[&plan.pipeline, &plan.generation.0],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading the checkpoint")))?;
        rows.iter().map(|r| Ok((PartitionId(r.get(0)), state(r, 1)?))).collect()
    }

    /// The sessions that write these partitions.
    pub(super) async fn writers(
        &self,
        client: &impl GenericClient,
        plan: &Plan,
        partitions: &[PartitionId],
    ) -> Result<Vec<String>> {
        let names: Vec<&str> = partitions.iter().map(PartitionId::as_str).collect();
        let rows = client
            .query(
                &format!(
                    "SELECT DISTINCT writer FROM {}.checkpoint WHERE pipeline = $1 AND writer IS NOT NULL \
                     AND generation = $2 AND partition = ANY ($3)",
                    self.schema
                ),
                &[&plan.pipeline, &plan.generation.0, &names],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading the writers")))?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// The sessions that write any partition of a pipeline.
    pub(super) async fn all_writers(&self, client: &impl GenericClient, pipeline: &str) -> Result<Vec<String>> {
        let rows = client
            .query(
                &format!(
                    "SELECT DISTINCT writer FROM {}.checkpoint WHERE pipeline = $1 AND writer IS NOT NULL",
                    self.schema
                ),
                &[&pipeline],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "reading the writers")))?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// Takes the next epoch of partitions for a writer.
    pub(super) async fn take_over(
        &self,
        tx: &impl GenericClient,
        plan: &Plan,
        partitions: &[PartitionId],
        writer: &str,
    ) -> Result<(Checkpoint, HashMap<PartitionId, Epoch>)> {
        let mut checkpoint = Checkpoint::new();
        let mut epochs = HashMap::new();
        let statement = format!(
            "INSERT INTO {s}.checkpoint AS c (pipeline, generation, partition, epoch, accounts, applied, writer) \
             VALUES ($1, $2, $3, 1, $4, $5, $6) \
             ON CONFLICT (pipeline, generation, partition) DO UPDATE SET epoch = c.epoch + 1, writer = $6, \
             updated_at = now() RETURNING epoch, position, done, accounts, applied",
            s = self.schema
        );
        for p in partitions {
            let row = tx
                .query_one(
                    &statement,
                    &[
                        &plan.pipeline,
                        &plan.generation.0,
                        &p.as_str(),
                        &Json(Accounts::default()),
                        &Json(Applied::default()),
                        &writer,
                    ],
                )
                .await
                .map_err(|e| {
                    self.permission(map_error(e, "taking over a partition"))
                        .at("partition", p.as_str())
                })?;
            epochs.insert(p.clone(), Epoch(row.get(0)));
            checkpoint.insert(p.clone(), state(&row, 1)?);
        }
        Ok((checkpoint, epochs))
    }

    /// Keeps the rows that stages put aside in a step.
    pub(super) async fn keep_rejects(&self, tx: &impl GenericClient, plan: &Plan, advance: &Advance) -> Result<()> {
        if advance.rejects.is_empty() {
            return Ok(());
        }
        let rows: Vec<serde_json::Value> = advance
            .rejects
            .iter()
            .map(|(number, reject)| {
                serde_json::json!({
                    "number": number, "stage": reject.stage, "table_name": reject.table.to_string(),
                    "reason": reject.reason, "column_name": reject.column, "row_key": reject.key_json(),
                })
            })
            .collect();
        tx.execute_typed(
            &format!(
                "INSERT INTO {}.rejects (pipeline, generation, partition, run_id, number, stage, table_name, reason, \
                 column_name, row_key) SELECT $1, $2, $3, $4, r.number, r.stage, r.table_name, r.reason, r.column_name, \
                 r.row_key::json FROM pg_catalog.json_to_recordset($5) AS r(number bigint, stage text, table_name text, \
                 reason text, column_name text, row_key text)",
                self.schema
            ),
            &[
                (&plan.pipeline, Type::TEXT),
                (&plan.generation.0, Type::INT8),
                (&advance.partition.as_str(), Type::TEXT),
                (&plan.run_id, Type::TEXT),
                (&Json(rows), Type::JSON),
            ],
        )
        .await
        .map_err(|e| self.permission(map_error(e, "keeping rejected rows")))?;
        Ok(())
    }

    /// Gets ready what every commit of a session says: to plan it anew costs the server more than to do it.
    pub(super) async fn moves(&self, client: &impl GenericClient) -> Result<Moves> {
        let advance = format!("WITH {} SELECT 1 / pg_catalog.count(*) FROM moved", self.moved());
        const FLUSHED: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()";
        let hold = self.hold();
        let (hold, advance, flushed) = try_join3(
            self.prepare(client, &hold),
            self.prepare(client, &advance),
            self.prepare(client, FLUSHED),
        )
        .await?;
        Ok(Moves {
            control: self.clone(),
            hold,
            advance,
            flushed,
        })
    }

    /// What a statement that divides by what it found says.
    fn refused(&self, e: tokio_postgres::Error, doing: &str, fenced: impl FnOnce() -> Error) -> Error {
        match e.code() == Some(&SqlState::DIVISION_BY_ZERO) {
            true => fenced(),
            false => self.permission(map_error(e, doing)),
        }
    }

    /// Writes something that changes nothing, and waits until it is on the disk.
    pub(super) async fn touch(&self, client: &impl GenericClient, plan: &Plan) -> Result<()> {
        let (pipeline, generation) = (literal(&plan.pipeline)?, plan.generation.0);
        client
            .batch_execute(&format!(
                "BEGIN; SET LOCAL synchronous_commit = local; UPDATE {}.checkpoint SET updated_at = updated_at \
                 WHERE pipeline = {pipeline} AND generation = {generation}; COMMIT",
                self.schema
            ))
            .await
            .map_err(|e| self.permission(map_error(e, "flushing the checkpoint")))
    }

    /// Takes a writer's name off its partitions.
    pub(super) async fn release(
        &self,
        client: &impl GenericClient,
        plan: &Plan,
        partitions: &[PartitionId],
        writer: &str,
    ) -> Result<()> {
        let names: Vec<&str> = partitions.iter().map(PartitionId::as_str).collect();
        client
            .execute(
                &format!(
                    "UPDATE {}.checkpoint SET writer = NULL WHERE pipeline = $1 AND generation = $2 \
                     AND partition = ANY ($3) AND writer = $4",
                    self.schema
                ),
                &[&plan.pipeline, &plan.generation.0, &names, &writer],
            )
            .await
            .map_err(|e| self.permission(map_error(e, "releasing partitions")))?;
        Ok(())
    }
}

fn superseded(plan: &Plan) -> Error {
    let what = format!(
        "run {} has generation {}, and the destination another one: a newer run has taken over",
        plan.run_id, plan.generation
    );
    Error::new(code::FENCED, what).at("pipeline", &plan.pipeline)
}

fn overtaken(plan: &Plan, partition: &PartitionId) -> Error {
    let what =
        format!("partition {partition} no longer stands where this writer left it: another writer has taken over");
    Error::new(code::FENCED, what)
        .at("pipeline", &plan.pipeline)
        .at("partition", partition.as_str())
}

fn state(row: &Row, at: usize) -> Result<PartitionState> {
    let broken = |_| Error::new(code::STATE_STORE, "a checkpoint's accounts cannot be read");
    Ok(PartitionState {
        position: row.get::<_, Option<String>>(at).map(Position),
        done: row.get(at + 1),
        accounts: row.try_get::<_, Json<Accounts>>(at + 2).map_err(broken)?.0,
        applied: row.try_get::<_, Json<Applied>>(at + 3).map_err(broken)?.0,
    })
}

/// Who this session is, so that its successor can end it: the process and its start, since numbers come back.
pub(super) async fn whoami(client: &impl GenericClient) -> Result<String> {
    let row = client
        .query_one(
            "SELECT pid || '@' || extract(epoch FROM backend_start) FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())",
            &[],
        )
        .await
        .map_err(|e| map_error(e, "asking for the session's identity"))?;
    Ok(row.get(0))
}

/// Ends other writers' sessions, so that their locks do not hang us. Not being allowed to is no failure: the epoch
/// fences them anyway.
pub(super) async fn end_sessions(client: &Client, writers: &[String]) -> Result<()> {
    for writer in writers {
        let ended = client
            .execute(
                "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
                 WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.pid || '@' || extract(epoch FROM a.backend_start) = $1",
                &[writer],
            )
            .await;
        match ended {
            Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
            other => {
                other.map_err(|e| map_error(e, "ending an older writer's session"))?;
            }
        }
    }
    Ok(())
}
