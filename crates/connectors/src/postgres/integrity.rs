//! What else happens when rows of an existing table are written: triggers and foreign keys, and what may be done
//! about them.
//!
//! A copy of rows that were checked and triggered at their source must be neither again. Where the role may, the
//! session says so (`session_replication_role = replica`); else deferrable foreign keys are checked at commit;
//! anything else is refused, because it would change or reject rows behind our back.

use super::client::map_error;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;
use tokio_postgres::GenericClient;

/// Triggers and foreign keys of one table.
#[derive(Debug, Clone, Default)]
pub(super) struct Integrity {
    /// Enabled triggers that people made.
    pub(super) triggers: Vec<String>,
    /// Foreign keys from or to the table that are checked at once, or change rows when those of the table change: that is
    /// done at once, whenever they are checked.
    pub(super) immediate: Vec<String>,
    /// Foreign keys that may be checked at commit.
    pub(super) deferrable: Vec<String>,
}

impl Integrity {
    /// Reads them from the catalog.
    pub(super) async fn of(client: &impl GenericClient, oid: u32) -> Result<Self> {
        let fail = |e| map_error(e, "reading triggers and foreign keys");
        let triggers = client
            .query(
                "SELECT tgname::text FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal \
                 AND tgenabled IN ('O', 'A') ORDER BY 1",
                &[&oid],
            )
            .await
            .map_err(fail)?;
        let keys = client
            .query(
                "SELECT conname::text, \
                 condeferrable AND (confrelid <> $1 OR (confdeltype = 'a' AND confupdtype = 'a')) \
                 FROM pg_catalog.pg_constraint \
                 WHERE contype = 'f' AND (conrelid = $1 OR confrelid = $1) ORDER BY 1",
                &[&oid],
            )
            .await
            .map_err(fail)?;
        let mut found = Integrity {
            triggers: triggers.iter().map(|r| r.get(0)).collect(),
            ..Integrity::default()
        };
        for row in keys {
            if row.get(1) {
                found.deferrable.push(row.get(0));
            } else {
                found.immediate.push(row.get(0));
            }
        }
        Ok(found)
    }

    /// Whether nothing stands in the way of writing.
    pub(super) fn is_free(&self) -> bool {
        self.triggers.is_empty() && self.immediate.is_empty() && self.deferrable.is_empty()
    }

    /// The statement that a transaction writing this table begins with, if it needs one; an error if there is none.
    pub(super) fn statement(&self, may_replicate: bool, table: &TableId) -> Result<Option<&'static str>> {
        if self.is_free() {
            return Ok(None);
        }
        if may_replicate {
            return Ok(Some("SET LOCAL session_replication_role = replica"));
        }
        if self.triggers.is_empty() && self.immediate.is_empty() {
            return Ok(Some("SET CONSTRAINTS ALL DEFERRED"));
        }
        let mut why = Vec::new();
        if !self.triggers.is_empty() {
            why.push(format!("trigger {}", self.triggers.join(", ")));
        }
        if !self.immediate.is_empty() {
            let keys = self.immediate.join(", ");
            why.push(format!("foreign key {keys} (not deferrable, or with an action)"));
        }
        Err(Error::new(
            code::REFUSED,
            format!(
                "{table} cannot be written safely: {} would act on copied rows, and this role may not switch that off",
                why.join(" and ")
            ),
        )
        .hint(
            "GRANT SET ON PARAMETER session_replication_role TO … (PostgreSQL 15 and later; a superuser before), \
             make the foreign keys DEFERRABLE and NO ACTION, or disable the triggers",
        ))
    }
}

/// Whether this role may set `session_replication_role`.
pub(super) async fn may_replicate(client: &impl GenericClient, version: u32) -> Result<bool> {
    let question = if version >= 150_000 {
        "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')"
    } else {
        "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
    };
    let row = client
        .query_one(question, &[])
        .await
        .map_err(|e| map_error(e, "asking for the right to set session_replication_role"))?;
    Ok(row.get(0))
}
