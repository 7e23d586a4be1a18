//! The control tables: generations, plans, checkpoints, remembered facts and the history of what was published.
//!
//! They stand beside the data (or in the database that `control_schema` names, on the same server), so that a position
//! and its rows are one transaction.

use super::client::{Session, number, text};
use super::sql::{check_ident, ident, literal};
use mysql_async::{Row, Value};
use std::collections::{BTreeMap, HashMap};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::Plan;
use synctool_core::progress::{Advance, Checkpoint, Epoch, Generation, PartitionId, PartitionState, Position};
use synctool_core::schema::TableId;
use synctool_core::sink::StoredPlan;

/// The version of these tables. A newer one in the database is refused.
const FORMAT_VERSION: u64 = 1;

/// How many plans of a pipeline are kept.
const PLANS_KEPT: i64 = 20;

/// The control tables of one destination.
#[derive(Debug, Clone)]
pub(super) struct Control {
    database: String,
    /// Whether the database is one of our own, to be made where it is missing.
    own: bool,
}

/// How far a plan is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum PlanStatus {
    /// Prepared, not yet published. What a publication that did not end has noted, if one began.
    Active(Option<Vec<Outcome>>),
    /// Published, with what that did.
    Finished(Applied),
}

/// What publishing does to one table, for the journal and the history.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Outcome {
    pub(super) index: usize,
    pub(super) table: TableId,
    /// `create`, `swap`, `merge`, `append` or `direct`.
    pub(super) publish: String,
    pub(super) applied: Applied,
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::bug("control data does not serialise").caused_by(e))
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        Error::new(code::STATE_STORE, format!("the stored {what} cannot be read"))
            .hint("`synctool state reset` starts over")
            .caused_by(e)
    })
}

impl Control {
    pub(super) fn new(database: &str, control_schema: Option<&str>) -> Result<Self> {
        let name = control_schema.unwrap_or(database);
        check_ident(name)?;
        Ok(Control {
            database: name.to_string(),
            own: control_schema.is_some(),
        })
    }

    /// The database they stand in.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    fn t(&self, name: &str) -> String {
        format!("{}.{}", ident(&self.database), ident(&format!("_synctool_{name}")))
    }

    /// The statements that make the control tables, for people without the right to let us do it.
    pub(super) fn ddl(&self) -> Vec<String> {
        const KEY: &str = "varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL";
        const END: &str = "ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
        const NOW: &str = "datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)";
        let create =
            |name: &str, columns: String| format!("CREATE TABLE IF NOT EXISTS {} ({columns}) {END}", self.t(name));
        let mut all = Vec::new();
        if self.own {
            all.push(format!("CREATE DATABASE IF NOT EXISTS {}", ident(&self.database)));
        }
        all.extend([
            create("format_version", "version int NOT NULL PRIMARY KEY".into()),
            create(
                "generation",
                format!("pipeline {KEY} PRIMARY KEY, generation bigint NOT NULL, updated_at {NOW}"),
            ),
            create(
                "plan",
                format!(
                    "pipeline {KEY}, generation bigint NOT NULL, run_id varchar(255) NOT NULL, plan longtext NOT NULL, \
                     status varchar(20) NOT NULL, journal longtext NULL, applied longtext NULL, created_at {NOW}, \
                     finished_at datetime(6) NULL, PRIMARY KEY (pipeline, generation)"
                ),
            ),
            create(
                "checkpoint",
                format!(
                    "pipeline {KEY}, generation bigint NOT NULL, `partition` {KEY}, epoch bigint NOT NULL, \
                     position longtext NULL, done tinyint(1) NOT NULL DEFAULT 0, accounts longtext NOT NULL, \
                     applied longtext NOT NULL, writer varchar(255) NULL, updated_at {NOW}, \
                     PRIMARY KEY (pipeline, generation, `partition`)"
                ),
            ),
            create(
                "history",
                format!(
                    "pipeline {KEY}, generation bigint NOT NULL, table_index int NOT NULL, run_id varchar(255) NOT NULL, \
                     table_schema varchar(64) NOT NULL, table_name varchar(64) NOT NULL, publish varchar(20) NOT NULL, \
                     applied longtext NOT NULL, finished_at {NOW}, PRIMARY KEY (pipeline, generation, table_index)"
                ),
            ),
            create(
                "fact",
                format!("pipeline {KEY}, name {KEY}, value longtext NOT NULL, updated_at {NOW}, PRIMARY KEY (pipeline, name)"),
            ),
            create(
                "rejects",
                format!(
                    "pipeline {KEY}, generation bigint NOT NULL, `partition` {KEY}, number bigint NOT NULL, \
                     run_id varchar(255) NOT NULL, stage varchar(255) NOT NULL, table_name varchar(255) NOT NULL, \
                     reason varchar(255) NOT NULL, column_name varchar(255) NULL, row_key longtext NOT NULL, \
                     rejected_at {NOW}, PRIMARY KEY (pipeline, generation, `partition`, number)"
                ),
            ),
            format!("INSERT IGNORE INTO {} VALUES ({FORMAT_VERSION})", self.t("format_version")),
        ]);
        all
    }

    /// Whether the control tables are there, in a version we know.
    pub(super) async fn exists(&self, session: &mut Session) -> Result<bool> {
        let what = "looking for the control tables";
        let there = session
            .rows(
                &format!(
                    "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} \
                     AND TABLE_NAME IN ('_synctool_format_version', '_synctool_fact', '_synctool_rejects')",
                    literal(&self.database)
                ),
                what,
            )
            .await?;
        if there.len() < 3 {
            return Ok(false);
        }
        let row = session
            .row(&format!("SELECT max(version) FROM {}", self.t("format_version")), what)
            .await
            .map_err(|e| self.permission(e))?;
        match number(&row, 0) {
            0 => Ok(false),
            v if v <= FORMAT_VERSION => Ok(true),
            v => Err(Error::new(
                code::STATE_STORE,
                format!(
                    "the control tables in {} have version {v}; this program knows {FORMAT_VERSION}",
                    self.database
                ),
            )
            .hint("use the newer SyncTool that wrote them, or set another control_schema")),
        }
    }

    /// Makes the control tables unless they are there.
    pub(super) async fn ensure(&self, session: &mut Session) -> Result<()> {
        if self.exists(session).await? {
            return Ok(());
        }
        for statement in self.ddl() {
            session
                .run(&statement, "making the control tables")
                .await
                .map_err(|e| self.permission(e))?;
        }
        Ok(())
    }

    fn permission(&self, e: Error) -> Error {
        if e.code() != code::PERMISSION {
            return e;
        }
        let d = ident(&self.database);
        Error::new(
            code::PERMISSION,
            format!("the control tables in {} cannot be used: {}", self.database, e.message()),
        )
        .hint(format!(
            "GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON {d}.* TO the user; or let an administrator run the DDL that \
             `synctool plan` prints and grant the last four"
        ))
    }

    async fn exec(&self, session: &mut Session, sql: &str, values: Vec<Value>, what: &str) -> Result<u64> {
        session.exec(sql, values, what).await.map_err(|e| self.permission(e))
    }

    async fn select(&self, session: &mut Session, sql: &str, values: Vec<Value>, what: &str) -> Result<Vec<Row>> {
        session
            .exec_rows(sql, values, what)
            .await
            .map_err(|e| self.permission(e))
    }

    /// Raises the pipeline's generation, inside a transaction.
    pub(super) async fn raise(&self, session: &mut Session, pipeline: &str) -> Result<Generation> {
        let what = "raising the generation";
        let table = self.t("generation");
        self.exec(
            session,
            &format!(
                "INSERT INTO {table} (pipeline, generation) VALUES (?, 1) \
                 ON DUPLICATE KEY UPDATE generation = generation + 1, updated_at = CURRENT_TIMESTAMP(6)"
            ),
            vec![pipeline.into()],
            what,
        )
        .await?;
        let rows = self
            .select(
                session,
                &format!("SELECT generation FROM {table} WHERE pipeline = ?"),
                vec![pipeline.into()],
                what,
            )
            .await?;
        Ok(Generation(rows.first().map_or(0, |r| number(r, 0)) as i64))
    }

    /// Stores a plan under its generation, inside a transaction, and supersedes the older ones with their checkpoints.
    pub(super) async fn store_plan(&self, session: &mut Session, plan: &Plan) -> Result<()> {
        let what = "storing the plan";
        let (plans, checkpoints) = (self.t("plan"), self.t("checkpoint"));
        let p: Value = plan.pipeline.as_str().into();
        self.exec(
            session,
            &format!("UPDATE {plans} SET status = 'superseded' WHERE pipeline = ? AND status = 'active'"),
            vec![p.clone()],
            what,
        )
        .await?;
        self.exec(
            session,
            &format!("DELETE FROM {plans} WHERE pipeline = ? AND generation <= ?"),
            vec![p.clone(), (plan.generation.0 - PLANS_KEPT).into()],
            what,
        )
        .await?;
        self.exec(
            session,
            &format!("DELETE FROM {checkpoints} WHERE pipeline = ?"),
            vec![p.clone()],
            what,
        )
        .await?;
        self.exec(
            session,
            &format!("INSERT INTO {plans} (pipeline, generation, run_id, plan, status) VALUES (?, ?, ?, ?, 'active')"),
            vec![
                p,
                plan.generation.0.into(),
                plan.run_id.as_str().into(),
                json(plan)?.into(),
            ],
            what,
        )
        .await
        .map(|_| ())
    }

    /// The newest plan of a pipeline, unless it was forgotten or a newer one was begun.
    pub(super) async fn stored_plan(&self, session: &mut Session, pipeline: &str) -> Result<Option<StoredPlan>> {
        let rows = self
            .select(
                session,
                &format!(
                    "SELECT p.plan, p.status FROM {} p JOIN {} g ON g.pipeline = p.pipeline AND g.generation = p.generation \
                     WHERE p.pipeline = ? AND p.status <> 'superseded'",
                    self.t("plan"),
                    self.t("generation")
                ),
                vec![pipeline.into()],
                "reading the stored plan",
            )
            .await?;
        rows.first()
            .map(|r| {
                Ok(StoredPlan {
                    plan: parse("plan", &text(r, 0).unwrap_or_default())?,
                    finished: text(r, 1).as_deref() == Some("finished"),
                })
            })
            .transpose()
    }

    /// Holds the pipeline's generation until the transaction ends, and refuses if it is not the plan's.
    pub(super) async fn hold_generation(&self, session: &mut Session, plan: &Plan) -> Result<()> {
        let rows = self
            .select(
                session,
                &format!(
                    "SELECT generation FROM {} WHERE pipeline = ? LOCK IN SHARE MODE",
                    self.t("generation")
                ),
                vec![plan.pipeline.as_str().into()],
                "checking the generation",
            )
            .await?;
        let now = rows.first().map(|r| number(r, 0) as i64);
        if now == Some(plan.generation.0) {
            return Ok(());
        }
        Err(Error::new(
            code::FENCED,
            format!(
                "run {} has generation {}, the destination is at {}: a newer run has taken over",
                plan.run_id,
                plan.generation,
                now.map_or("none".into(), |g| g.to_string())
            ),
        )
        .at("pipeline", &plan.pipeline))
    }

    /// Locks the plan's row, inside a transaction, and says how far it is.
    pub(super) async fn lock_plan(&self, session: &mut Session, plan: &Plan) -> Result<PlanStatus> {
        let rows = self
            .select(
                session,
                &format!(
                    "SELECT status, applied, journal FROM {} WHERE pipeline = ? AND generation = ? FOR UPDATE",
                    self.t("plan")
                ),
                vec![plan.pipeline.as_str().into(), plan.generation.0.into()],
                "locking the plan",
            )
            .await?;
        let fenced = |how: &str| {
            Err(
                Error::new(code::FENCED, format!("the plan of run {} was {how}", plan.run_id))
                    .at("pipeline", &plan.pipeline),
            )
        };
        let Some(row) = rows.first() else {
            return fenced("forgotten");
        };
        match text(row, 0).as_deref() {
            Some("finished") => Ok(PlanStatus::Finished(match text(row, 1) {
                Some(t) => parse("counts", &t)?,
                None => Applied::default(),
            })),
            Some("active") => Ok(PlanStatus::Active(
                text(row, 2).map(|t| parse("journal", &t)).transpose()?,
            )),
            _ => fenced("superseded"),
        }
    }

    /// Notes what a publication is about to do, inside a transaction.
    pub(super) async fn journal(&self, session: &mut Session, plan: &Plan, outcomes: &[Outcome]) -> Result<()> {
        self.exec(
            session,
            &format!(
                "UPDATE {} SET journal = ? WHERE pipeline = ? AND generation = ?",
                self.t("plan")
            ),
            vec![
                json(&outcomes)?.into(),
                plan.pipeline.as_str().into(),
                plan.generation.0.into(),
            ],
            "noting what is to be published",
        )
        .await
        .map(|_| ())
    }

    /// Marks a plan finished, keeps what it did, remembers its facts and folds its partitions away.
    pub(super) async fn finish(
        &self,
        session: &mut Session,
        plan: &Plan,
        applied: Applied,
        outcomes: &[Outcome],
    ) -> Result<()> {
        let what = "finishing the plan";
        let (p, g): (Value, Value) = (plan.pipeline.as_str().into(), plan.generation.0.into());
        self.exec(
            session,
            &format!(
                "UPDATE {} SET status = 'finished', applied = ?, journal = NULL, finished_at = CURRENT_TIMESTAMP(6) \
                 WHERE pipeline = ? AND generation = ?",
                self.t("plan")
            ),
            vec![json(&applied)?.into(), p.clone(), g.clone()],
            what,
        )
        .await?;
        for o in outcomes {
            self.exec(
                session,
                &format!(
                    "INSERT INTO {} (pipeline, generation, table_index, run_id, table_schema, table_name, publish, applied) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    self.t("history")
                ),
                vec![
                    p.clone(),
                    g.clone(),
                    (o.index as i64).into(),
                    plan.run_id.as_str().into(),
                    o.table.schema.as_deref().unwrap_or_default().into(),
                    o.table.name.as_str().into(),
                    o.publish.as_str().into(),
                    json(&o.applied)?.into(),
                ],
                what,
            )
            .await?;
        }
        self.put_facts(session, &plan.pipeline, &plan.remember).await?;
        self.exec(
            session,
            &format!(
                "DELETE FROM {} WHERE pipeline = ? AND generation = ?",
                self.t("checkpoint")
            ),
            vec![p, g],
            what,
        )
        .await
        .map(|_| ())
    }

    /// What is remembered for a pipeline.
    pub(super) async fn facts(&self, session: &mut Session, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let rows = self
            .select(
                session,
                &format!("SELECT name, value FROM {} WHERE pipeline = ?", self.t("fact")),
                vec![pipeline.into()],
                "reading what is remembered",
            )
            .await?;
        Ok(rows.iter().filter_map(|r| Some((text(r, 0)?, text(r, 1)?))).collect())
    }

    /// Adds to what is remembered.
    pub(super) async fn put_facts(
        &self,
        session: &mut Session,
        pipeline: &str,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        for (name, value) in facts {
            self.exec(
                session,
                &format!(
                    "REPLACE INTO {} (pipeline, name, value) VALUES (?, ?, ?)",
                    self.t("fact")
                ),
                vec![pipeline.into(), name.as_str().into(), value.as_str().into()],
                "remembering",
            )
            .await?;
        }
        Ok(())
    }

    /// Whether a run of ours put this table in place.
    pub(super) async fn made(&self, session: &mut Session, table: &TableId) -> Result<bool> {
        let rows = self
            .select(
                session,
                &format!(
                    "SELECT 1 FROM {} WHERE table_schema = ? AND table_name = ? AND publish IN ('create', 'swap') LIMIT 1",
                    self.t("history")
                ),
                vec![
                    table.schema.as_deref().unwrap_or_default().into(),
                    table.name.as_str().into(),
                ],
                "reading the history",
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Forgets a pipeline; its generation goes up, so whoever still writes is fenced. Inside a transaction.
    pub(super) async fn forget(&self, session: &mut Session, pipeline: &str) -> Result<()> {
        self.raise(session, pipeline).await?;
        for table in ["checkpoint", "plan", "fact"] {
            let sql = format!("DELETE FROM {} WHERE pipeline = ?", self.t(table));
            self.exec(session, &sql, vec![pipeline.into()], "forgetting the pipeline")
                .await?;
        }
        Ok(())
    }

    /// Where the partitions of a plan stand.
    pub(super) async fn checkpoint(&self, session: &mut Session, plan: &Plan) -> Result<Checkpoint> {
        let rows = self
            .select(
                session,
                &format!(
                    "SELECT `partition`, position, done, accounts, applied FROM {} WHERE pipeline = ? AND generation = ?",
                    self.t("checkpoint")
                ),
                vec![plan.pipeline.as_str().into(), plan.generation.0.into()],
                "reading the checkpoint",
            )
            .await?;
        rows.iter()
            .map(|r| Ok((PartitionId(text(r, 0).unwrap_or_default()), state(r, 1)?)))
            .collect()
    }

    /// The sessions that write partitions of a pipeline: of a plan's partitions, or all of them.
    pub(super) async fn writers(
        &self,
        session: &mut Session,
        pipeline: &str,
        partitions: Option<(Generation, &[PartitionId])>,
    ) -> Result<Vec<String>> {
        let mut sql = format!(
            "SELECT DISTINCT writer FROM {} WHERE pipeline = ? AND writer IS NOT NULL",
            self.t("checkpoint")
        );
        let mut values: Vec<Value> = vec![pipeline.into()];
        if let Some((generation, ids)) = partitions {
            sql.push_str(&format!(
                " AND generation = ? AND `partition` IN ({})",
                vec!["?"; ids.len()].join(", ")
            ));
            values.push(generation.0.into());
            values.extend(ids.iter().map(|p| Value::from(p.as_str())));
        }
        let rows = self.select(session, &sql, values, "reading the writers").await?;
        Ok(rows.iter().filter_map(|r| text(r, 0)).collect())
    }

    /// Takes the next epoch of partitions for a writer, inside a transaction.
    pub(super) async fn take_over(
        &self,
        session: &mut Session,
        plan: &Plan,
        partitions: &[PartitionId],
        writer: &str,
    ) -> Result<(Checkpoint, HashMap<PartitionId, Epoch>)> {
        let (mut checkpoint, mut epochs) = (Checkpoint::new(), HashMap::new());
        let table = self.t("checkpoint");
        let (accounts, applied) = (json(&Accounts::default())?, json(&Applied::default())?);
        for id in partitions {
            let what = format!("taking over partition {id}");
            let place: Vec<Value> = vec![
                plan.pipeline.as_str().into(),
                plan.generation.0.into(),
                id.as_str().into(),
            ];
            let mut values = place.clone();
            values.extend([
                accounts.as_str().into(),
                applied.as_str().into(),
                writer.into(),
                writer.into(),
            ]);
            self.exec(
                session,
                &format!(
                    "INSERT INTO {table} (pipeline, generation, `partition`, epoch, accounts, applied, writer) \
                     VALUES (?, ?, ?, 1, ?, ?, ?) \
                     ON DUPLICATE KEY UPDATE epoch = epoch + 1, writer = ?, updated_at = CURRENT_TIMESTAMP(6)"
                ),
                values,
                &what,
            )
            .await?;
            let rows = self
                .select(
                    session,
                    &format!(
                        "SELECT epoch, position, done, accounts, applied FROM {table} \
                         WHERE pipeline = ? AND generation = ? AND `partition` = ?"
                    ),
                    place,
                    &what,
                )
                .await?;
            let row = rows
                .first()
                .ok_or_else(|| Error::bug("a partition vanished while it was taken over"))?;
            epochs.insert(id.clone(), Epoch(number(row, 0) as i64));
            checkpoint.insert(id.clone(), state(row, 1)?);
        }
        Ok((checkpoint, epochs))
    }

    /// Moves a partition from one position to the next. This is the last thing before COMMIT.
    pub(super) async fn advance(
        &self,
        session: &mut Session,
        plan: &Plan,
        epoch: Epoch,
        step: &Advance,
        applied: Applied,
    ) -> Result<()> {
        let moved = self
            .exec(
                session,
                &format!(
                    "UPDATE {} SET position = ?, done = ?, accounts = ?, applied = ?, updated_at = CURRENT_TIMESTAMP(6) \
                     WHERE pipeline = ? AND generation = ? AND `partition` = ? AND epoch = ? AND position <=> ?",
                    self.t("checkpoint")
                ),
                vec![
                    step.to.as_str().into(),
                    step.done.into(),
                    json(&step.accounts)?.into(),
                    json(&applied)?.into(),
                    plan.pipeline.as_str().into(),
                    plan.generation.0.into(),
                    step.partition.as_str().into(),
                    epoch.0.into(),
                    step.from.as_ref().map(Position::as_str).into(),
                ],
                "moving the checkpoint",
            )
            .await?;
        if moved == 1 {
            for (number, reject) in &step.rejects {
                self.exec(
                    session,
                    &format!(
                        "INSERT INTO {} (pipeline, generation, `partition`, number, run_id, stage, table_name, reason, \
                         column_name, row_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        self.t("rejects")
                    ),
                    vec![
                        plan.pipeline.as_str().into(),
                        plan.generation.0.into(),
                        step.partition.as_str().into(),
                        (*number).into(),
                        plan.run_id.as_str().into(),
                        reject.stage.as_str().into(),
                        reject.table.to_string().into(),
                        reject.reason.into(),
                        reject.column.as_deref().into(),
                        reject.key_json().into(),
                    ],
                    "keeping rejected rows",
                )
                .await?;
            }
            return Ok(());
        }
        Err(Error::new(
            code::FENCED,
            format!(
                "partition {} no longer stands where this writer left it: another writer has taken over",
                step.partition
            ),
        )
        .at("pipeline", &plan.pipeline)
        .at("partition", step.partition.as_str()))
    }

    /// Takes a writer's name off its partitions.
    pub(super) async fn release(
        &self,
        session: &mut Session,
        plan: &Plan,
        partitions: &[PartitionId],
        writer: &str,
    ) -> Result<()> {
        for id in partitions {
            self.exec(
                session,
                &format!(
                    "UPDATE {} SET writer = NULL WHERE pipeline = ? AND generation = ? AND `partition` = ? AND writer = ?",
                    self.t("checkpoint")
                ),
                vec![
                    plan.pipeline.as_str().into(),
                    plan.generation.0.into(),
                    id.as_str().into(),
                    writer.into(),
                ],
                "releasing partitions",
            )
            .await?;
        }
        Ok(())
    }
}

fn state(row: &Row, at: usize) -> Result<PartitionState> {
    Ok(PartitionState {
        position: text(row, at).map(Position),
        done: number(row, at + 1) == 1,
        accounts: parse("accounts", &text(row, at + 2).unwrap_or_default())?,
        applied: parse("counts", &text(row, at + 3).unwrap_or_default())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tables_move_together() {
        let here = Control::new("shop", None).unwrap();
        let there = Control::new("shop", Some("sync`tool")).unwrap();
        assert!(here.ddl().iter().all(|s| s.contains("`shop`.`_synctool_")));
        assert_eq!(there.ddl()[0], "CREATE DATABASE IF NOT EXISTS `sync``tool`");
        assert!(there.ddl()[1..].iter().all(|s| s.contains("`sync``tool`.`_synctool_")));
    }
}
