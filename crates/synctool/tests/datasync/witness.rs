//! What the local tables hold at every stored place, and what production held there, both told without our code: a trigger
//! of the local database writes it down in the very transaction that stores a place, and a standby of production's own
//! kind replays the archive to that place.

use super::{PATIENCE, World, rows};
use std::fs;
use std::path::PathBuf;
use synctool_testkit::{Postgres, wait_for};

/// Fires for each change of the stored place (its tables are looked at) and of a table's state, at the commit; also while
/// rows arrive, when other triggers rest.
const WATCH: &str = r#"
CREATE TABLE seen (lsn pg_lsn, table_name text, held text, proved boolean);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
DECLARE it record; held text;
BEGIN
  IF TG_TABLE_NAME = 'datasync_state' THEN
    INSERT INTO seen VALUES ((to_jsonb(NEW) ->> 'applied_lsn')::pg_lsn, '*');
  END IF;
  FOR it IN SELECT s.applied_lsn, t.schema_name, t.table_name FROM synctool.datasync_state s, synctool.datasync_tables t
      WHERE t.state = 'synced' AND t.table_name = coalesce(to_jsonb(NEW) ->> 'table_name', t.table_name) LOOP
    EXECUTE format('ROWS', it.schema_name, it.table_name) INTO held;
    INSERT INTO seen VALUES (it.applied_lsn, it.table_name, held);
  END LOOP;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON synctool.datasync_state DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION look();
CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON synctool.datasync_tables DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE synctool.datasync_state ENABLE ALWAYS TRIGGER look; ALTER TABLE synctool.datasync_tables ENABLE ALWAYS TRIGGER look;"#;

/// A standby that gets as much of the archive as it is told, and no more.
pub(super) struct Witness {
    standby: Postgres,
    /// The last segment that it gets.
    limit: PathBuf,
}

/// What was compared.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Proved {
    pub(super) places: u64,
    pub(super) tables: u64,
    /// Production held a lock there, so that nobody can look.
    pub(super) locked: u64,
}

impl Proved {
    pub(super) fn add(&mut self, more: Proved) {
        self.places += more.places;
        self.tables += more.tables;
        self.locked += more.locked;
    }
}

impl Witness {
    /// Made from production as it is now, before any place is stored.
    pub(super) fn of(world: &World) -> Self {
        let limit = world.path("limit");
        fs::write(&limit, "").expect("the limit");
        let restore = format!(
            "test ! %f '>' \"$(cat {})\" && cp {}/%f %p",
            limit.display(),
            world.path("archive").display()
        );
        let standby = world.production.standby_with(&[
            ("primary_conninfo", ""),
            ("restore_command", &restore),
            ("wal_retrieve_retry_interval", "50ms"),
            ("max_standby_archive_delay", "-1"),
        ]);
        Witness { standby, limit }
    }

    /// From now on everything is written down; the tables of Data Sync must be there.
    pub(super) fn watch(&self, world: &World) {
        let ask = rows("%I.%I").replace('\'', "''");
        world.local.psql(&WATCH.replace("ROWS", &ask));
    }

    /// Compares what was written down since.
    pub(super) fn prove(&self, world: &World) -> Proved {
        let mut proved = Proved::default();
        let places = "SELECT DISTINCT lsn FROM seen WHERE proved IS NULL ORDER BY lsn";
        for place in world.local.psql(places).lines() {
            self.stand_at(world, place);
            proved.places += 1;
            let held = format!(
                "SELECT DISTINCT table_name, held FROM seen WHERE lsn = '{place}' AND proved IS NULL AND held IS NOT NULL"
            );
            for line in world.local.psql(&held).lines() {
                let (table, held) = line.split_once('|').expect("a table and what it held");
                match self
                    .standby
                    .try_psql(&format!("SET lock_timeout = '100ms'; {}", rows(table)))
                {
                    Ok(there) => {
                        assert_eq!(there.lines().last(), Some(held), "{table} at {place}");
                        proved.tables += 1;
                    }
                    Err(e) if format!("{e:#}").contains("lock timeout") => proved.locked += 1,
                    Err(e) => panic!("{table} at {place}: {e:#}"),
                }
            }
            let done = format!("UPDATE seen SET proved = true WHERE lsn = '{place}'");
            world.local.psql(&done);
        }
        proved
    }

    /// Places of batches that nobody looked at.
    pub(super) fn missed(world: &World) -> String {
        let missed = "SELECT to_lsn FROM data_sync_logs l WHERE event = 'batch' AND NOT EXISTS (SELECT FROM seen s WHERE s.lsn = l.to_lsn AND s.proved)";
        world.local.psql(missed)
    }

    /// Lets the standby replay to the end of the segment in which the place is: it is where that ends.
    fn stand_at(&self, world: &World, place: &str) {
        let segment = world
            .production
            .psql(&format!("SELECT pg_walfile_name('{place}'::pg_lsn - 1)"));
        fs::write(&self.limit, segment).expect("the limit");
        wait_for(&format!("a standby at {place}"), PATIENCE, || {
            let stands = self.standby.psql("SELECT pg_last_wal_replay_lsn()");
            match stands == place {
                true => Ok(()),
                false => Err(stands),
            }
        });
    }
}
