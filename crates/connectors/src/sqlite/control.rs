//! The control tables: generations, plans, checkpoints and the history of what was published.

use super::catalog;
use super::client::failed;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::plan::Plan;
use synctool_core::progress::{Advance, Checkpoint, PartitionId, PartitionState, Position};
use synctool_core::sink::StoredPlan;

/// The version of these tables.
const FORMAT: i64 = 1;

/// Creates them; all idempotent.
pub(super) const DDL: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS \"_synctool_format_version\" (version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS \"_synctool_generation\" (pipeline TEXT NOT NULL PRIMARY KEY, \
     generation INTEGER NOT NULL, updated_at TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS \"_synctool_plan\" (pipeline TEXT NOT NULL, generation INTEGER NOT NULL, \
     run_id TEXT NOT NULL, plan TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('active', 'finished', 'superseded')), \
     applied TEXT, created_at TEXT NOT NULL, finished_at TEXT, PRIMARY KEY (pipeline, generation))",
    "CREATE TABLE IF NOT EXISTS \"_synctool_checkpoint\" (pipeline TEXT NOT NULL, generation INTEGER NOT NULL, \
     \"partition\" TEXT NOT NULL, epoch INTEGER NOT NULL, position TEXT, done INTEGER NOT NULL, accounts TEXT NOT NULL, \
     applied TEXT NOT NULL, writer TEXT, updated_at TEXT NOT NULL, PRIMARY KEY (pipeline, generation, \"partition\"))",
    "CREATE TABLE IF NOT EXISTS \"_synctool_history\" (pipeline TEXT NOT NULL, generation INTEGER NOT NULL, \
     run_id TEXT NOT NULL, table_name TEXT NOT NULL, publish TEXT NOT NULL, partitions INTEGER NOT NULL, applied TEXT NOT NULL, \
     created_at TEXT NOT NULL, finished_at TEXT NOT NULL)",
    MEMORY,
    REJECTS,
];

/// What is remembered for pipelines between their runs.
const MEMORY: &str = "CREATE TABLE IF NOT EXISTS \"_synctool_memory\" (pipeline TEXT NOT NULL, fact TEXT NOT NULL, \
    value TEXT NOT NULL, PRIMARY KEY (pipeline, fact))";

/// Rows that stages put aside.
const REJECTS: &str = "CREATE TABLE IF NOT EXISTS \"_synctool_rejects\" (pipeline TEXT NOT NULL, generation INTEGER NOT NULL, \
    \"partition\" TEXT NOT NULL, number INTEGER NOT NULL, run_id TEXT NOT NULL, stage TEXT NOT NULL, table_name TEXT NOT NULL, \
    reason TEXT NOT NULL, column_name TEXT, row_key TEXT NOT NULL, rejected_at TEXT NOT NULL, \
    PRIMARY KEY (pipeline, generation, \"partition\", number))";

/// Now, as the control tables store it.
pub(super) fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
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

/// Takes the write lock and begins a transaction.
pub(super) fn begin(conn: &Connection) -> Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")
        .map_err(failed(|| "taking the write lock".into()))
}

/// Runs work in one write transaction: all of it or nothing.
pub(super) fn transaction<T>(conn: &mut Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    begin(conn)?;
    let result = work(conn).and_then(|v| {
        conn.execute_batch("COMMIT")
            .map_err(failed(|| "committing".into()))
            .map(|()| v)
    });
    if result.is_err() && !conn.is_autocommit() {
        // The first error is the one to tell; a failed rollback ends with the connection.
        let _ = conn.execute_batch("ROLLBACK");
    }
    result
}

/// Whether the control tables are there, in the version that we know.
pub(super) fn exist(conn: &Connection) -> Result<bool> {
    Ok(catalog::find(conn, "_synctool_generation")?.is_some() && version(conn)?.is_some())
}

/// The version of the control tables, which are there; another one than ours is refused.
fn version(conn: &Connection) -> Result<Option<i64>> {
    let found: Option<i64> = conn
        .query_row("SELECT version FROM \"_synctool_format_version\"", [], |r| r.get(0))
        .optional()
        .map_err(failed(|| "reading the version of the control tables".into()))?;
    match found {
        Some(v) if v != FORMAT => Err(Error::new(
            code::STATE_STORE,
            format!("the control tables have format {v}; this SyncTool knows {FORMAT}"),
        )
        .hint("use the SyncTool that wrote them, or a newer one")),
        known => Ok(known),
    }
}

/// Creates the control tables; inside the caller's write transaction.
pub(super) fn create(conn: &Connection) -> Result<()> {
    let doing = || "creating the control tables (_synctool_*)".to_string();
    for sql in DDL {
        conn.execute_batch(sql).map_err(failed(doing))?;
    }
    match version(conn)? {
        Some(_) => Ok(()),
        None => conn
            .execute("INSERT INTO \"_synctool_format_version\" VALUES (?1)", [FORMAT])
            .map(|_| ())
            .map_err(failed(doing)),
    }
}

/// Raises a pipeline's generation and returns it.
pub(super) fn raise_generation(conn: &Connection, pipeline: &str) -> Result<i64> {
    conn.query_row(
        "INSERT INTO \"_synctool_generation\" VALUES (?1, 1, ?2) \
         ON CONFLICT (pipeline) DO UPDATE SET generation = generation + 1, updated_at = excluded.updated_at \
         RETURNING generation",
        params![pipeline, now()],
        |r| r.get(0),
    )
    .map_err(failed(|| "raising the generation".into()))
}

/// Fails unless the plan's generation is the newest. Meant for inside a write transaction, where it stays true.
pub(super) fn check_generation(conn: &Connection, plan: &Plan) -> Result<()> {
    let newest: Option<i64> = conn
        .query_row(
            "SELECT generation FROM \"_synctool_generation\" WHERE pipeline = ?1",
            [&plan.pipeline],
            |r| r.get(0),
        )
        .optional()
        .map_err(failed(|| "reading the generation".into()))?;
    if newest == Some(plan.generation.0) {
        return Ok(());
    }
    Err(Error::new(
        code::FENCED,
        match newest {
            Some(n) => format!(
                "a newer run (generation {n}) has taken over from generation {}",
                plan.generation
            ),
            None => format!("generation {} is not known here", plan.generation),
        },
    )
    .at("pipeline", &plan.pipeline))
}

/// Stores a plan as the active one; older ones are superseded and their checkpoints forgotten.
pub(super) fn store_plan(conn: &Connection, plan: &Plan) -> Result<()> {
    let text = json(plan)?;
    let run = || -> rusqlite::Result<()> {
        conn.execute(
            "UPDATE \"_synctool_plan\" SET status = 'superseded' WHERE pipeline = ?1 AND status = 'active'",
            [&plan.pipeline],
        )?;
        conn.execute(
            "DELETE FROM \"_synctool_checkpoint\" WHERE pipeline = ?1",
            [&plan.pipeline],
        )?;
        conn.execute(
            "INSERT INTO \"_synctool_plan\" (pipeline, generation, run_id, plan, status, created_at) \
             VALUES (?1, ?2, ?3, ?4, 'active', ?5)",
            params![plan.pipeline, plan.generation.0, plan.run_id, text, now()],
        )?;
        Ok(())
    };
    run().map_err(failed(|| "storing the plan".into()))
}

/// The newest plan that was not reset, with what publishing it did if it was published.
pub(super) fn newest_plan(conn: &Connection, pipeline: &str) -> Result<Option<StoredPlan>> {
    if !exist(conn)? {
        return Ok(None);
    }
    let found: Option<(String, String)> = conn
        .query_row(
            "SELECT plan, status FROM \"_synctool_plan\" WHERE pipeline = ?1 AND status <> 'superseded' \
             ORDER BY generation DESC LIMIT 1",
            [pipeline],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .optional()
        .map_err(failed(|| "reading the stored plan".into()))?;
    found
        .map(|(plan, status)| {
            Ok(StoredPlan {
                plan: parse("plan", &plan)?,
                finished: status == "finished",
            })
        })
        .transpose()
}

/// What publishing a plan did; `None` if it is not finished.
pub(super) fn finished(conn: &Connection, plan: &Plan) -> Result<Option<Applied>> {
    let found: Option<Option<String>> = conn
        .query_row(
            "SELECT applied FROM \"_synctool_plan\" WHERE pipeline = ?1 AND generation = ?2 AND status = 'finished'",
            params![plan.pipeline, plan.generation.0],
            |r| r.get(0),
        )
        .optional()
        .map_err(failed(|| "reading the stored plan".into()))?;
    found.flatten().map(|text| parse("counts", &text)).transpose()
}

/// Marks a plan finished, notes every table in the history and folds its partitions away.
pub(super) fn finish(
    conn: &Connection,
    plan: &Plan,
    applied: Applied,
    tables: &[(String, &str, Applied)],
) -> Result<()> {
    let total = json(&applied)?;
    let partitions = plan.partitions().count() as i64;
    let finished_at = now();
    let doing = || "finishing the plan".to_string();
    for (name, publish, counts) in tables {
        conn.execute(
            "INSERT INTO \"_synctool_history\" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                plan.pipeline,
                plan.generation.0,
                plan.run_id,
                name,
                publish,
                partitions,
                json(counts)?,
                plan.created_at,
                finished_at
            ],
        )
        .map_err(failed(doing))?;
    }
    let run = || -> rusqlite::Result<()> {
        conn.execute(
            "UPDATE \"_synctool_plan\" SET status = 'finished', applied = ?3, finished_at = ?4 \
             WHERE pipeline = ?1 AND generation = ?2",
            params![plan.pipeline, plan.generation.0, total, finished_at],
        )?;
        conn.execute(
            "DELETE FROM \"_synctool_checkpoint\" WHERE pipeline = ?1 AND generation = ?2",
            params![plan.pipeline, plan.generation.0],
        )?;
        Ok(())
    };
    run().map_err(failed(doing))?;
    remember(conn, &plan.pipeline, &plan.remember)
}

/// What is remembered for a pipeline.
pub(super) fn remembered(conn: &Connection, pipeline: &str) -> Result<BTreeMap<String, String>> {
    if catalog::find(conn, "_synctool_memory")?.is_none() {
        return Ok(BTreeMap::new());
    }
    conn.prepare("SELECT fact, value FROM \"_synctool_memory\" WHERE pipeline = ?1")
        .and_then(|mut s| s.query_map([pipeline], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
        .map_err(failed(|| "reading what is remembered".into()))
}

/// Adds to what is remembered; inside the caller's write transaction.
pub(super) fn remember(conn: &Connection, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
    if facts.is_empty() {
        return Ok(());
    }
    let run = || -> rusqlite::Result<()> {
        conn.execute_batch(MEMORY)?;
        let mut put = conn.prepare("INSERT OR REPLACE INTO \"_synctool_memory\" VALUES (?1, ?2, ?3)")?;
        for (fact, value) in facts {
            put.execute([pipeline, fact, value])?;
        }
        Ok(())
    };
    run().map_err(failed(|| "remembering".into()))
}

/// Whether the history says that a run of ours created or swapped in this table.
pub(super) fn made_here(conn: &Connection, table: &str) -> Result<bool> {
    if !exist(conn)? {
        return Ok(false);
    }
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM \"_synctool_history\" WHERE table_name = ?1 AND publish IN ('create', 'swap'))",
        [table],
        |r| r.get(0),
    )
    .map_err(failed(|| "reading the history".into()))
}

/// Where all partitions of a plan stand.
pub(super) fn checkpoint(conn: &Connection, plan: &Plan) -> Result<Checkpoint> {
    if !exist(conn)? {
        return Ok(Checkpoint::new());
    }
    let rows: Vec<(String, Option<String>, bool, String, String)> = conn
        .prepare(
            "SELECT \"partition\", position, done, accounts, applied FROM \"_synctool_checkpoint\" \
             WHERE pipeline = ?1 AND generation = ?2",
        )
        .and_then(|mut s| {
            s.query_map(params![plan.pipeline, plan.generation.0], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))
            })?
            .collect()
        })
        .map_err(failed(|| "reading the checkpoint".into()))?;
    rows.into_iter()
        .map(|(partition, position, done, accounts, applied)| {
            let state = PartitionState {
                position: position.map(Position),
                done,
                accounts: parse("accounts", &accounts)?,
                applied: parse("counts", &applied)?,
            };
            Ok((PartitionId(partition), state))
        })
        .collect()
}

/// Takes the next epoch of a partition and says which it is and where the partition stands.
pub(super) fn take_over(
    conn: &Connection,
    plan: &Plan,
    partition: &PartitionId,
    writer: &str,
) -> Result<(i64, PartitionState)> {
    let (epoch, position, done, accounts, applied): (i64, Option<String>, bool, String, String) = conn
        .query_row(
            "INSERT INTO \"_synctool_checkpoint\" VALUES (?1, ?2, ?3, 1, NULL, 0, '{}', '{}', ?4, ?5) \
             ON CONFLICT (pipeline, generation, \"partition\") DO UPDATE \
             SET epoch = epoch + 1, writer = excluded.writer, updated_at = excluded.updated_at \
             RETURNING epoch, position, done, accounts, applied",
            params![plan.pipeline, plan.generation.0, partition.as_str(), writer, now()],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
        )
        .map_err(failed(|| format!("taking over partition {partition}")))?;
    let state = PartitionState {
        position: position.map(Position),
        done,
        accounts: parse("accounts", &accounts)?,
        applied: parse("counts", &applied)?,
    };
    Ok((epoch, state))
}

/// Who wrote a partition last, as far as is known.
pub(super) fn last_writer(conn: &Connection, plan: &Plan, partition: &PartitionId) -> Option<String> {
    conn.query_row(
        "SELECT writer FROM \"_synctool_checkpoint\" WHERE pipeline = ?1 AND generation = ?2 AND \"partition\" = ?3",
        params![plan.pipeline, plan.generation.0, partition.as_str()],
        |r| r.get(0),
    )
    .ok()
    .flatten()
}

/// Keeps the rows that stages put aside in a step.
fn keep_rejects(conn: &Connection, plan: &Plan, step: &Advance) -> Result<()> {
    let doing = || "keeping rejected rows".to_string();
    for (number, reject) in &step.rejects {
        conn.execute(
            "INSERT INTO \"_synctool_rejects\" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                plan.pipeline,
                plan.generation.0,
                step.partition.as_str(),
                i64::try_from(*number).unwrap_or(i64::MAX),
                plan.run_id,
                reject.stage,
                reject.table.to_string(),
                reject.reason,
                reject.column,
                reject.key_json(),
                now(),
            ],
        )
        .map_err(failed(doing))?;
    }
    Ok(())
}

/// Moves a partition from where it must stand; refused if it stands elsewhere or another writer has it.
pub(super) fn advance(conn: &Connection, plan: &Plan, epoch: i64, step: &Advance, applied: Applied) -> Result<()> {
    let doing = || format!("moving the checkpoint of partition {}", step.partition);
    let stored: Option<String> = conn
        .query_row(
            "SELECT applied FROM \"_synctool_checkpoint\" WHERE pipeline = ?1 AND generation = ?2 AND \"partition\" = ?3",
            params![plan.pipeline, plan.generation.0, step.partition.as_str()],
            |r| r.get(0),
        )
        .optional()
        .map_err(failed(doing))?;
    let mut total: Applied = stored.map_or(Ok(Applied::default()), |t| parse("counts", &t))?;
    total += applied;
    let moved = conn
        .execute(
            "UPDATE \"_synctool_checkpoint\" SET position = ?5, done = ?6, accounts = ?7, applied = ?8, updated_at = ?9 \
             WHERE pipeline = ?1 AND generation = ?2 AND \"partition\" = ?3 AND epoch = ?4 AND position IS ?10",
            params![
                plan.pipeline,
                plan.generation.0,
                step.partition.as_str(),
                epoch,
                step.to.as_str(),
                step.done,
                json(&step.accounts)?,
                json(&total)?,
                now(),
                step.from.as_ref().map(Position::as_str),
            ],
        )
        .map_err(failed(doing))?;
    if moved == 1 {
        return keep_rejects(conn, plan, step);
    }
    Err(Error::new(
        code::FENCED,
        "another writer has taken over this partition, or it stands elsewhere",
    )
    .at("partition", step.partition.as_str())
    .at("pipeline", &plan.pipeline))
}

/// Gives partitions back: nobody writes them now.
pub(super) fn release(conn: &Connection, plan: &Plan, partition: &PartitionId, epoch: i64) -> Result<()> {
    conn.execute(
        "UPDATE \"_synctool_checkpoint\" SET writer = NULL, updated_at = ?5 \
         WHERE pipeline = ?1 AND generation = ?2 AND \"partition\" = ?3 AND epoch = ?4",
        params![plan.pipeline, plan.generation.0, partition.as_str(), epoch, now()],
    )
    .map(|_| ())
    .map_err(failed(|| format!("releasing partition {partition}")))
}

/// Forgets plans, checkpoints and what is remembered of a pipeline; its generation stays.
pub(super) fn forget(conn: &Connection, pipeline: &str) -> Result<()> {
    conn.execute_batch(MEMORY)
        .map_err(failed(|| format!("forgetting pipeline {pipeline}")))?;
    for table in ["_synctool_plan", "_synctool_checkpoint", "_synctool_memory"] {
        conn.execute(
            &format!("DELETE FROM {} WHERE pipeline = ?1", super::sql::quote(table)),
            [pipeline],
        )
        .map_err(failed(|| format!("forgetting pipeline {pipeline}")))?;
    }
    Ok(())
}
