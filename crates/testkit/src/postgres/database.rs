//! A database for one test.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

use super::Address;
use crate::shared::{plain, unique_name};

/// A database that many others are copied from.
#[derive(Debug, Clone)]
pub struct Template {
    name: String,
}

impl Template {
    /// The name of its database.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn prepare(address: &Address, name: &str, script: &str) -> Result<Self> {
        let mut hash = DefaultHasher::new();
        script.hash(&mut hash);
        let name = format!("template_{}_{:016x}", plain(name, 30), hash.finish());
        // Test processes prepare it one at a time; a half made one never has the final name.
        let lock = std::env::temp_dir().join(format!(
            "synctool-ports-{}/{}-template",
            rustix::process::geteuid().as_raw(),
            address.port
        ));
        std::fs::create_dir_all(lock.parent().context("the lock's directory")?)?;
        let lock = File::create(lock)?;
        lock.lock()?;
        let found = address.psql(
            "postgres",
            &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'"),
        )?;
        if found.is_empty() {
            let draft = format!("{name}_draft");
            address.psql(
                "postgres",
                &format!("DROP DATABASE IF EXISTS {draft};\nCREATE DATABASE {draft};"),
            )?;
            address.psql(&draft, script)?;
            address.psql("postgres", &format!("ALTER DATABASE {draft} RENAME TO {name}"))?;
        }
        Ok(Self { name })
    }
}

/// A database of its own for one test, dropped with this value.
#[derive(Debug)]
pub struct TestDb {
    address: Address,
    name: String,
}

impl TestDb {
    /// `options` as CREATE DATABASE takes them.
    pub(super) fn create(address: &Address, prefix: &str, options: &str) -> Result<Self> {
        let name = unique_name(prefix);
        address
            .psql("postgres", &format!("CREATE DATABASE {name} {options}"))
            .context("cannot create a database")?;
        Ok(Self {
            address: address.clone(),
            name,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The superuser's URL.
    pub fn url(&self) -> String {
        self.address.url("postgres", &self.name)
    }

    /// The URL for another user of the server.
    pub fn url_as(&self, user: &str) -> String {
        self.address.url(user, &self.name)
    }

    /// Runs SQL with psql; returns unaligned rows without a header. psql's own commands work.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The same, for SQL that may fail.
    pub fn try_psql(&self, sql: &str) -> Result<String> {
        self.address.psql(&self.name, sql)
    }

    /// A connection as superuser, driven by a task of the current runtime. For a server without TLS.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls)
            .await
            .unwrap_or_else(|e| panic!("connect to {}: {e}", self.name));
        // An error of the connection shows in the client's next call.
        tokio::spawn(connection);
        client
    }
}

impl Drop for TestDb {
    /// Best effort: the server may be gone, on purpose. Sessions, prepared transactions, subscriptions and replication
    /// slots that a failed test left in the database would each forbid the drop; two of them can only be ended there.
    fn drop(&mut self) {
        let name = &self.name;
        let _ = self.address.psql(
            "postgres",
            &format!(
                "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = '{name}')
                   OR EXISTS (SELECT FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = '{name}') AS littered \\gset
                 \\if :littered
                   \\set ON_ERROR_STOP 0
                   \\connect {name}
                   SELECT format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); DROP SUBSCRIPTION %1$I', subname)
                     FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database() \\gexec
                   SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database() \\gexec
                   \\connect postgres
                 \\endif
                 ALTER DATABASE {name} ALLOW_CONNECTIONS false;
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';
                 DO $$ BEGIN
                   FOR attempt IN 1..200 LOOP
                     EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}');
                     PERFORM pg_sleep(0.01);
                     PERFORM pg_stat_clear_snapshot();
                   END LOOP;
                   PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}';
                 END $$;
                 DROP DATABASE {name};"
            ),
        );
    }
}
