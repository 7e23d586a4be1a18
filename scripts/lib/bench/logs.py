"""A backlog of a log, applied: by the program, and by PostgreSQL's own logical replication."""

import json
import os

from measure import Wrong

# A slot that stands before the workload; each run reads a copy of it, so that all read the same log.
BASE, SLOT, PUBLICATION = "bench_base", "bench_run", "bench_log"

TABLES = """
    CREATE TABLE log_items (id bigint PRIMARY KEY, qty int, price numeric(12,2), note text, code text, active boolean,
        day date, updated_at timestamptz);
    CREATE TABLE log_accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text)"""

INSERT = """
    INSERT INTO log_items SELECT n, n % 1000, (n % 100000) / 100.0, md5(n::text), 'C' || n % 50, n % 2 = 0,
        date '2024-01-01' + (n % 365)::int, timestamptz '2024-01-01' + n * interval '1 second'
    FROM generate_series({first}, {last}) n"""

ACCOUNTS = "INSERT INTO log_accounts SELECT i, 0, repeat('x', 80) FROM generate_series(1, 10000) i"


def inserts(rows, step=1000):
    """So many new rows, by transactions of so many."""
    return (
        f"DO $$ BEGIN FOR i IN 0..{rows // step - 1} LOOP "
        + INSERT.format(first=f"i * {step} + 1", last=f"(i + 1) * {step}")
        + "; COMMIT; END LOOP; END $$"
    )


class Logs:
    """A source whose log has a workload, and everybody who applies it."""

    def __init__(self, bench, kind):
        """`kind`: `inserts`, 1,000 rows per transaction; or `mixed`, small updates and one large transaction."""
        self.bench, self.source, self.destination = bench, bench.source, bench.destination
        self.kind = kind
        self.target = None

    def workload(self):
        """Makes the tables, the slot, then the log; once per case."""
        self.begin()
        for sql in self.statements():
            self.source.psql(sql)
        self.target = self.source.psql("SELECT pg_current_wal_flush_lsn()")

    def begin(self):
        """The tables, and a slot from which everything that happens to them can be read."""
        psql = self.source.psql
        psql(f"DROP PUBLICATION IF EXISTS {PUBLICATION}; DROP TABLE IF EXISTS log_items, log_accounts; " + TABLES)
        psql(ACCOUNTS)
        psql(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE log_items, log_accounts")
        self.drop(BASE)
        psql(f"SELECT pg_create_logical_replication_slot('{BASE}', 'pgoutput')")

    def statements(self):
        """What happens to the tables: a fifth as many changes as the benchmark has rows."""
        rows = self.bench.rows // 5
        if self.kind == "inserts":
            return [inserts(rows)]
        updates = (
            f"DO $$ BEGIN FOR i IN 1..{rows // 10} LOOP UPDATE log_accounts SET balance = balance + i "
            "WHERE id = 1 + (i * 7919::bigint) % 10000; COMMIT; END LOOP; END $$"
        )
        return [updates, INSERT.format(first=1, last=rows // 2)]

    def drop(self, slot):
        self.source.psql(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )

    def prepare(self):
        """An empty destination, the accounts as they were before, and a slot that has all of the workload."""
        self.bench.reset()
        self.destination.psql(TABLES)
        self.destination.psql(ACCOUNTS)
        self.drop(SLOT)
        self.source.psql(f"SELECT pg_copy_logical_replication_slot('{BASE}', '{SLOT}')")
        self.bench.checkpoint()

    def check(self):
        for table in ("log_items", "log_accounts"):
            look = f"SELECT count(*) || ' rows, hash ' || coalesce(sum(hash_record_extended(t, t.id)), 0) FROM {table} t"
            found, wanted = self.destination.psql(look), self.source.psql(look)
            if found != wanted:
                raise Wrong(f"{table} is not equal\n  is:        {found}\n  should be: {wanted}")

    def pipeline(self, tables, **more):
        """A pipeline that follows the log of these tables, and the command that runs it."""
        folder = self.bench.folder()
        pipeline = os.path.join(folder, "log.yaml")
        with open(pipeline, "w") as text:
            json.dump(
                {
                    "name": "log",
                    "datastores": {
                        "from": {"type": "postgres", "url": self.source.url()},
                        "to": {"type": "postgres", "url": self.destination.url()},
                    },
                    "source": {"datastore": "from", "tables": tables},
                    "destination": {"datastore": "to"},
                    "strategies": [{"type": "log", "slot": SLOT, "publication": PUBLICATION, "create": False, **more}],
                },
                text,
            )
        return [
            self.bench.binary, "run", pipeline,
            "--data-dir", os.path.join(folder, "data"), "--quiet", "--output", "json",
        ]  # fmt: skip

    def ours(self):
        self.prepare()
        command = [*self.pipeline(["log_items", "log_accounts"], initial="skip"), "--until-caught-up"]
        sample = self.bench.runner.measure(lambda: self.run(command))
        self.check()
        return sample

    def run(self, command):
        process = self.bench.runner.start(command)
        self.bench.runner.wait([process])
        return [process]

    def native(self):
        """CREATE SUBSCRIPTION, until the place where the workload ended is applied."""
        self.prepare()
        wait = (
            "DO $$ BEGIN LOOP COMMIT; PERFORM pg_sleep(0.01); PERFORM pg_stat_clear_snapshot(); "
            f"EXIT WHEN (SELECT latest_end_lsn FROM pg_stat_subscription WHERE relid IS NULL) >= '{self.target}'; "
            "END LOOP; END $$"
        )

        def work():
            return [process for sql in (self.subscription(), wait) for process in self.run(self.destination.psql_command(sql))]

        sample = self.bench.runner.measure(work)
        self.check()
        self.unsubscribe()
        return sample

    def subscription(self):
        return (
            f"CREATE SUBSCRIPTION bench_sub CONNECTION '{self.source.url()}' PUBLICATION {PUBLICATION} "
            f"WITH (create_slot = false, slot_name = '{SLOT}', copy_data = false)"
        )

    def unsubscribe(self):
        """The subscription goes, its slot stays."""
        for sql in ("ALTER SUBSCRIPTION bench_sub DISABLE", "ALTER SUBSCRIPTION bench_sub SET (slot_name = NONE)"):
            self.destination.psql(sql)
        self.destination.psql("DROP SUBSCRIPTION bench_sub")

    def peek(self):
        """The server's own decoding, counted and thrown away: the floor of everything."""
        self.prepare()
        count = (
            f"SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL, 'proto_version', '1', "
            f"'publication_names', '{PUBLICATION}')"
        )

        return self.bench.runner.measure(lambda: self.run(self.source.psql_command(count)))

    # To nowhere.

    def drain(self, way):
        """The library alone: typed Arrow, counted and thrown away."""
        self.prepare()
        command = [self.bench.example("drain"), self.source.url(), SLOT, PUBLICATION, way]
        return self.bench.runner.measure(lambda: self.run(command))

    def recvlogical(self):
        """PostgreSQL's own client, which writes the server's messages to nowhere as they are."""
        self.prepare()
        command = [
            self.source.program("pg_recvlogical"), "-d", self.source.url(), "--slot", SLOT, "--start", "--no-loop",
            "--endpos", self.target, "-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}", "-f", os.devnull,
        ]  # fmt: skip
        return self.bench.runner.measure(lambda: self.run(command))

    def debezium(self):
        """Debezium Engine: the same slot as JSON, counted and thrown away, until as many row events came as happened."""
        self.prepare()
        jars = os.path.join(os.environ["SYNCTOOL_DEBEZIUM"], "*")
        classes = os.path.join(self.bench.directory, "debezium")
        if not os.path.exists(classes):
            source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "DebeziumDrain.java")
            self.run(["javac", "-cp", jars, "-d", classes, source])
        command = [
            "java", "-cp", f"{classes}{os.pathsep}{jars}", "DebeziumDrain",
            str(self.source.port), "bench", SLOT, PUBLICATION, str(self.events()),
        ]  # fmt: skip
        return self.bench.runner.measure(lambda: self.run(command))

    def events(self):
        """Rows that the workload changes."""
        rows = self.bench.rows // 5
        return rows if self.kind == "inserts" else rows // 10 + rows // 2

    def finish(self):
        for slot in (SLOT, BASE):
            self.drop(slot)
