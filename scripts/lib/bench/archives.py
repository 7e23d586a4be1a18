"""Archived log, applied: by Data Sync, and by PostgreSQL's own logical replication from the same changes."""

import os
import pwd
import shutil
import subprocess
import time

from measure import TICK, Sample, Unmeasured, Wrong
from servers import Cluster

BASE, SLOT, PUBLICATION = "bench_base", "bench_run", "bench_archive"
TABLE = """
    CREATE TABLE archived_items (id bigint PRIMARY KEY, qty int, price numeric(12,2), note text, code text, active boolean,
        day date, updated_at timestamptz)"""
ROWS = """
    INSERT INTO archived_items SELECT n, n % 1000, (n % 100000) / 100.0, md5(n::text), 'C' || n % 50, n % 2 = 0,
        date '2024-01-01' + (n % 365)::int, timestamptz '2024-01-01' + n * interval '1 second'
    FROM generate_series({first}, {last}) n"""
# Changes of one transaction: half of them new rows, two fifths changed ones, a tenth deleted ones.
STEP = 100
# Every row has its turn once, and neighbours do not follow each other.
SPREAD = 7919
LOOK = "SELECT count(*) || ' rows, hash ' || coalesce(sum(hash_record_extended(t, 0)), 0) FROM archived_items t"


class Archives:
    """A production that archives its log, a base backup, and a destination that holds what was there then."""

    def __init__(self, bench):
        self.bench, self.destination, self.runner = bench, bench.destination, bench.runner
        self.changes = bench.rows // 5
        self.home = os.path.join(bench.directory, "archive")
        self.archive = os.path.join(self.home, "log")
        os.makedirs(self.archive)
        os.chmod(self.home, 0o711)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.archive, account.pw_uid, account.pw_gid)
        command = f"test ! -f {self.archive}/%f && cp %p {self.archive}/%f.tmp && mv {self.archive}/%f.tmp {self.archive}/%f"
        self.production = Cluster(
            "production", bench.directory, bench.source.programs, {"archive_mode": "on", "archive_command": command}
        )
        self.production.start()
        self.runner.clusters.append(self.production)
        self.small = 0
        self.begin()

    def begin(self):
        psql = self.production.psql
        psql(TABLE)
        psql(ROWS.format(first=1, last=self.changes))
        psql("CREATE TABLE other (id int)")
        psql(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE archived_items")
        psql(f"SELECT pg_create_logical_replication_slot('{BASE}', 'pgoutput')")
        backup = [
            self.production.program("pg_basebackup"), "-h", "127.0.0.1", "-p", str(self.production.port), "-U", "postgres",
            "-X", "none", "-c", "fast", "-D", os.path.join(self.home, "backup"),
        ]  # fmt: skip
        done = subprocess.run(backup, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise Unmeasured(f"no base backup\n{done.stderr}")
        self.bench.reset()
        self.destination.psql(TABLE)
        self.configure()
        self.program("add-tables", "--wait", "0", "archived_items")
        self.switch("CHECKPOINT; INSERT INTO other VALUES (1)")
        self.program("run-once")
        self.check()
        self.destination.psql("VACUUM (ANALYZE)")
        self.destination.psql("ALTER DATABASE bench RENAME TO archived", database="postgres")
        shutil.copytree(self.scratch, self.kept, symlinks=True, copy_function=copy_with_owner)
        own_like(self.scratch, self.kept)

    @property
    def scratch(self):
        return os.path.join(self.home, "s")

    @property
    def kept(self):
        return os.path.join(self.home, "kept")

    def configure(self):
        with open(os.path.join(self.home, "datasync.toml"), "w") as text:
            text.write(
                f"PG_PORT = {self.destination.port}\nPG_USER_NAME = 'postgres'\nPG_PASSWORD = 'x'\nPG_DB_NAME = 'bench'\n"
                f"DATA_SYNC_FREQ = 1\nARCHIVE_DIR = 'log'\nBASE_BACKUP = 'backup'\nSCRATCH_DIR = 's'\n"
                f"PG_BIN_DIR = '{self.production.programs}'\nBATCH_SEGMENTS = 1000\nLOG_FILE = 'service.log'\n"
                "ARCHIVE_INTERVAL = 86400\n"
            )

    def start(self, *arguments):
        command = [self.bench.binary, "datasync", "--config", "datasync.toml", *arguments]
        return self.runner.start(command, cwd=self.home)

    def program(self, *arguments):
        process = self.start(*arguments)
        self.runner.wait([process])
        return process

    def switch(self, sql):
        """Does something, and waits until its segment is archived."""
        self.production.psql(sql)
        name = self.production.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.production.psql("SELECT pg_switch_wal()")
        while not os.path.exists(os.path.join(self.archive, name)):
            self.runner.left()
            time.sleep(0.01)

    def workload(self):
        """The changes, archived; once."""
        base, insert, update, delete = self.changes, STEP // 2, STEP * 2 // 5, STEP // 10
        transactions = self.changes // STEP
        row = f"1 + (k::bigint * {SPREAD}) % {base}"
        updated = transactions * update
        self.production.psql(
            f"DO $$ BEGIN FOR i IN 0..{transactions - 1} LOOP "
            + ROWS.format(first=f"{base} + i * {insert} + 1", last=f"{base} + (i + 1) * {insert}")
            + f"; UPDATE archived_items SET qty = qty + 1, note = note || 'x' WHERE id IN"
            f" (SELECT {row} FROM generate_series(i * {update}, (i + 1) * {update} - 1) k);"
            f" DELETE FROM archived_items WHERE id IN"
            f" (SELECT {row} FROM generate_series({updated} + i * {delete}, {updated} + (i + 1) * {delete} - 1) k);"
            " COMMIT; END LOOP; END $$"
        )
        self.target = self.production.psql("SELECT pg_current_wal_flush_lsn()")
        self.switch("INSERT INTO other VALUES (2)")

    def restore(self):
        """The destination and the scratch server as they were before the changes."""
        self.destination.psql("DROP DATABASE IF EXISTS bench WITH (FORCE)", database="postgres")
        self.destination.psql("CREATE DATABASE bench TEMPLATE archived STRATEGY file_copy", database="postgres")
        shutil.rmtree(self.scratch)
        shutil.copytree(self.kept, self.scratch, symlinks=True, copy_function=copy_with_owner)
        own_like(self.kept, self.scratch)
        for server in (self.destination, self.production):
            server.psql("CHECKPOINT")
        os.sync()

    def check(self):
        found, wanted = self.destination.psql(LOOK), self.production.psql(LOOK)
        if found != wanted:
            raise Wrong(f"archived_items is not equal\n  is:        {found}\n  should be: {wanted}")

    def ours(self):
        self.restore()
        sample = self.runner.measure(lambda: [self.program("run-once")])
        self.check()
        return sample

    def phases(self):
        """What the last batch took, as its own log has it."""
        return self.destination.psql(
            "SELECT duration_ms || ' ms, ' || coalesce(details - 'touched_rows_in_a_file', '{}')::text FROM data_sync_logs WHERE event = 'batch' ORDER BY id DESC LIMIT 1"
        )

    def native(self):
        """CREATE SUBSCRIPTION, until the place where the workload ended is applied."""
        self.restore()
        self.production.psql(f"SELECT pg_copy_logical_replication_slot('{BASE}', '{SLOT}')")
        subscribe = (
            f"CREATE SUBSCRIPTION bench_sub CONNECTION '{self.production.url()}' PUBLICATION {PUBLICATION} "
            f"WITH (create_slot = false, slot_name = '{SLOT}', copy_data = false)"
        )
        wait = (
            "DO $$ BEGIN LOOP COMMIT; PERFORM pg_sleep(0.01); PERFORM pg_stat_clear_snapshot(); "
            f"EXIT WHEN (SELECT latest_end_lsn FROM pg_stat_subscription WHERE relid IS NULL) >= '{self.target}'; "
            "END LOOP; END $$"
        )

        def work():
            processes = []
            for sql in (subscribe, wait):
                processes.append(self.runner.start(self.destination.psql_command(sql)))
                self.runner.wait(processes[-1:])
            return processes

        sample = self.runner.measure(work)
        self.check()
        for sql in ("DISABLE", "SET (slot_name = NONE)"):
            self.destination.psql(f"ALTER SUBSCRIPTION bench_sub {sql}")
        self.destination.psql("DROP SUBSCRIPTION bench_sub")
        self.production.psql(f"SELECT pg_drop_replication_slot('{SLOT}')")
        return sample

    # The log alone.

    def segments(self):
        return sorted(name for name in os.listdir(self.archive) if len(name) == 24)

    def stats(self):
        command = [self.bench.binary, "wal", "stats", self.archive]

        def work():
            process = self.runner.start(command)
            self.runner.wait([process])
            return [process]

        return self.runner.measure(work)

    def waldump(self):
        names = self.segments()
        command = [self.production.program("pg_waldump"), "--stats", "--path", self.archive, names[0], names[-1]]

        def work():
            process = self.runner.start(command)
            self.runner.wait([process])
            return [process]

        return self.runner.measure(work)

    # The service.

    def service(self):
        self.restore()
        self.running = self.start("start", "--foreground")
        self.applied(self.production.psql("SELECT pg_current_wal_flush_lsn()"))

    def applied(self, _place=None):
        """Waits until both sides are equal."""
        wanted = self.production.psql(LOOK)
        while True:
            self.runner.left()
            if self.destination.psql(LOOK) == wanted:
                return
            time.sleep(0.05)

    def small_batch(self):
        """2,000 rows change; what the service's own log says that the batch took."""
        self.small += 1
        before = self.destination.psql("SELECT coalesce(max(id), 0) FROM data_sync_logs")
        self.switch(f"UPDATE archived_items SET qty = {self.small} WHERE id % {max(self.changes // 2000, 1)} = 7")
        self.applied()
        took = self.destination.psql(
            f"SELECT sum(duration_ms) FROM data_sync_logs WHERE event = 'batch' AND id > {before}"
        )
        return Sample(float(took) / 1000, 0.001, rss(self.running.popen.pid))

    def small_by_hand(self):
        self.small += 1
        sql = f"UPDATE other_items SET qty = {self.small} WHERE id % {max(self.changes // 2000, 1)} = 7"
        if not self.destination.psql("SELECT to_regclass('other_items')"):
            self.destination.psql("CREATE TABLE other_items AS SELECT * FROM archived_items; ALTER TABLE other_items ADD PRIMARY KEY (id)")

        def work():
            process = self.runner.start(self.destination.psql_command(sql))
            self.runner.wait([process])
            return [process]

        return self.runner.measure(work)

    def idle(self, seconds):
        """Percent of a core that the service keeps busy while nothing comes, and what its scratch server does."""
        with open(os.path.join(self.scratch, "data", "postmaster.pid")) as text:
            postmaster = int(text.readline())
        ours, scratch = cpu(self.running.popen.pid), tree(postmaster)
        time.sleep(seconds)
        return (
            (cpu(self.running.popen.pid) - ours) / seconds * 100,
            (tree(postmaster) - scratch) / seconds * 100,
        )

    def end_service(self):
        self.program("stop")
        self.runner.wait([self.running])

    def finish(self):
        self.runner.clusters.remove(self.production)
        self.production.stop()


def copy_with_owner(source, target):
    shutil.copy2(source, target)
    own(source, target)


def own(source, target):
    stat = os.stat(source)
    os.chown(target, stat.st_uid, stat.st_gid)


def own_like(source, target):
    """Folders too are their owner's."""
    for folder, _, _ in os.walk(source):
        own(folder, os.path.join(target, os.path.relpath(folder, source)))


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def tree(pid):
    total = cpu(pid)
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        for child in children.read().split():
            try:
                total += cpu(int(child))
            except OSError:
                continue
    return total


def rss(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
