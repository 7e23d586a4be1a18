//! Readers that wait until a test lets them through.

use super::*;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

/// A view `gated` of a table `items`, and the lock that its readers wait for.
pub(super) struct Gate {
    runtime: Runtime,
    client: Client,
}

impl Gate {
    /// Whoever reads column `g` of `gated` waits from now on.
    pub(super) fn closed(db: &TestDb) -> Gate {
        db.psql(
            "CREATE FUNCTION gate() RETURNS int STABLE LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN 1; END';
             CREATE VIEW gated AS SELECT *, gate() AS g FROM items",
        );
        let runtime = Runtime::new().expect("a runtime");
        let client = runtime.block_on(db.connect());
        let gate = Gate { runtime, client };
        gate.run("SELECT pg_advisory_lock(4711)");
        gate
    }

    fn run(&self, sql: &str) {
        self.runtime.block_on(self.client.batch_execute(sql)).expect("done");
    }

    /// Readers that wait now.
    pub(super) fn waiting(&self) -> i64 {
        let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let row = self
            .runtime
            .block_on(self.client.query_one(count, &[]))
            .expect("a count");
        row.get(0)
    }

    /// Lets all through, those that come later too.
    pub(super) fn open(self) {
        self.run("SELECT pg_advisory_unlock(4711)");
    }
}
