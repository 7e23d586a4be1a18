"""A log that is followed while it is written: how long until everything is there, how late each transaction is seen, and
what reading a whole table beside it costs."""

import os
import time

from archives import cpu, rss
from contenders import COUNT_AND_HASH
from logs import PUBLICATION, SLOT, Logs, inserts
from measure import Unmeasured, Wrong, tail

CLIENTS, RATE = 8, 1000
BEATS = "CREATE TABLE log_beats (client int, n int, at timestamptz NOT NULL, PRIMARY KEY (client, n))"

# Each transaction says when it was written; each client's transactions come in their order.
BEAT = "\\set n :n + 1\n{before}INSERT INTO log_beats VALUES (:client_id, :n, clock_timestamp());\n{after}"

# Changes no value, so that the table stays what it was.
TOUCH = "\\set id random(1, {rows})\nBEGIN;\nUPDATE items SET code = code WHERE id = :id;\n"

# Looks every millisecond what one of the clients wrote that is new, until it is told to stop; then how many there were and
# how late they were seen, in milliseconds, without the first tenth. What looking costs is missing where it is measured: with
# its scans forbidden the server takes a look for dear, and would compile each anew.
# Between looks it commits: a snapshot that is held meanwhile would keep the server from clearing away what is replaced.
WATCH = [
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off",
    "CREATE TEMP TABLE seen (at timestamptz, ms float8)",
    """DO $$ DECLARE began timestamptz := clock_timestamp(); highest int; beat record; BEGIN
      SELECT coalesce(max(n), 0) INTO highest FROM log_beats WHERE client = 0;
      LOOP
        FOR beat IN SELECT n, at FROM log_beats WHERE client = 0 AND n > highest ORDER BY n LOOP
          INSERT INTO seen VALUES (beat.at, extract(epoch FROM clock_timestamp() - beat.at) * 1000);
          highest := beat.n;
        END LOOP;
        EXIT WHEN EXISTS (SELECT FROM watch_ends);
        COMMIT;
        PERFORM pg_sleep(0.001);
      END LOOP;
      DELETE FROM seen WHERE at < began;
    END $$""",
    """SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
    FROM (SELECT ms, row_number() OVER (ORDER BY at) AS i, count(*) OVER () AS all FROM seen) s WHERE i > s.all / 10""",
]


# Until the table has as many new rows; its statistics are a second old at most.
LOADED = """DO $$ BEGIN
    WHILE coalesce((SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'items'), 0) < {rows} LOOP
      COMMIT; PERFORM pg_sleep(0.2), pg_stat_clear_snapshot();
    END LOOP;
END $$"""


class Live(Logs):
    """Somebody follows the log, and meanwhile it is written."""

    def __init__(self, bench, kind):
        super().__init__(bench, kind)
        self.process = None

    def seconds(self):
        return 20 if self.bench.rows >= 2_000_000 else 5

    # Who follows.

    def follow(self, command=None):
        """Our program, or without a command a subscription; returns once it reads the log."""
        if command:
            self.process = self.bench.runner.start(command)
        else:
            self.destination.psql(self.subscription())
        self.wait(self.source, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'")

    def leave(self):
        if self.process:
            self.bench.runner.kill(self.process)
            self.process = None
        else:
            self.unsubscribe()

    def wait(self, server, question):
        """Until the answer is true."""
        while server.psql(question) != "t":
            self.bench.runner.left()
            if self.process and self.process.popen.poll() is not None:
                raise Unmeasured(f"the program ended\n{tail(self.process.log)}")
            time.sleep(0.01)

    def beside(self, work):
        """Weighs some work, and our program beside it."""
        before = cpu(self.process.popen.pid) if self.process else 0
        sample = self.bench.runner.measure(work)
        if self.process:
            used = cpu(self.process.popen.pid) - before
            sample.cpu += used
            sample.rss = rss(self.process.popen.pid)
            sample.others = max(sample.others - used / sample.wall, 0)
        return sample

    # Until everything is there.

    def live(self, native):
        """The workload, and how long from its beginning until the destination has all of it."""
        self.begin()
        self.prepare()
        self.follow(None if native else self.pipeline(["log_items", "log_accounts"], initial="skip"))
        last = "INSERT INTO log_accounts VALUES (0, 0, 'the last')"
        arrived = "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM log_accounts WHERE id = 0) LOOP COMMIT; PERFORM pg_sleep(0.005); END LOOP; END $$"

        def work():
            done = [process for sql in [*self.statements(), last] for process in self.run(self.source.psql_command(sql))]
            return done + self.run(self.destination.psql_command(arrived))

        sample = self.beside(work)
        self.check()
        self.leave()
        return sample

    # How late.

    def watch(self):
        self.destination.psql("CREATE TABLE IF NOT EXISTS watch_ends (at timestamptz); DELETE FROM watch_ends")
        return self.bench.runner.start(self.destination.psql_command(*WATCH))

    def watched(self, process):
        """How many transactions were seen, and the median and 99th percentile of how late, in seconds."""
        self.destination.psql("INSERT INTO watch_ends VALUES (now())")
        self.bench.runner.wait([process])
        count, *late = tail(process.log, 1).split("|")
        if int(count) < 100:
            raise Unmeasured(f"only {count} transactions were seen")
        p50, p99 = (float(ms) / 1000 for ms in late)
        return int(count), p50, p99

    def load(self, seconds, touch=False):
        """So many transactions a second as the issue wants, from several clients."""
        folder = self.bench.folder()
        script = os.path.join(folder, "beats.sql")
        before, after = (TOUCH.format(rows=self.bench.rows), "COMMIT;\n") if touch else ("", "")
        with open(script, "w") as text:
            text.write(BEAT.format(before=before, after=after))
        command = [
            self.source.program("pgbench"), "--no-vacuum", "--client", str(CLIENTS), "--rate", str(RATE), "--time", str(seconds),
            "--define", "n=0", "--file", script, self.source.url(),
        ]  # fmt: skip
        return self.bench.runner.start(command)

    def beats(self, *others):
        """Empty tables for transactions that say when they were written, and a slot that stands before them."""
        self.bench.reset()
        self.source.psql(f"DROP PUBLICATION IF EXISTS {PUBLICATION}; DROP TABLE IF EXISTS log_beats; " + BEATS)
        self.source.psql(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE " + ", ".join(["log_beats", *others]))
        self.destination.psql(BEATS)
        self.drop(SLOT)
        self.source.psql(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")

    def all_beats(self):
        """Waits until the destination has them all."""
        look = "SELECT count(*) || ' rows, hash ' || coalesce(sum(hash_record_extended(t, 0)), 0) FROM log_beats t"
        wanted = self.source.psql(look)
        self.wait(self.destination, f"SELECT ({look}) = '{wanted}'")

    def latency(self, native):
        """A sample whose time is the median of how late transactions are seen, and the 99th percentile."""
        self.beats()
        self.follow(None if native else self.pipeline(["log_beats"], initial="skip"))
        found = []

        def work():
            watching, load = self.watch(), self.load(self.seconds())
            self.bench.runner.wait([load])
            self.all_beats()
            found.extend(self.watched(watching))
            return [load]

        sample = self.beside(work)
        self.leave()
        count, sample.wall, p99 = found
        return sample, p99, count

    # A whole table beside it.

    def backfill(self):
        """The table `items`, from an empty destination."""
        self.bench.reset()
        self.drop(SLOT)
        self.source.psql(f"DROP PUBLICATION IF EXISTS {PUBLICATION}; CREATE PUBLICATION {PUBLICATION} FOR TABLE items")
        self.source.psql(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
        command = [*self.pipeline(["items"]), "--until-caught-up"]
        sample = self.bench.runner.measure(lambda: self.run(command))
        self.check_items()
        return sample

    def backfill_under_load(self):
        """The same while the table and another one are written; how late the log is meanwhile, and afterwards."""
        self.beats("items")
        load = self.load(3600, touch=True)
        watching = self.watch()
        self.follow(self.pipeline(["items", "log_beats"]))
        loaded = LOADED.format(rows=self.bench.rows)
        sample = self.beside(lambda: self.run(self.destination.psql_command(loaded)))
        meanwhile = self.watched(watching)
        watching = self.watch()
        time.sleep(self.seconds())
        self.bench.runner.kill(load)
        self.all_beats()
        afterwards = self.watched(watching)
        self.check_items()
        self.leave()
        return sample, meanwhile, afterwards

    def pipe_under_load(self):
        """What a pipe needs for the table while the same is written, and nobody reads the log."""
        self.beats("items")
        load = self.load(3600, touch=True)
        sample = self.bench.one_pipe()
        self.bench.runner.kill(load)
        self.drop(SLOT)
        return sample

    def check_items(self):
        """Its rows; a copy that follows a log has no NOT NULL beyond its key."""
        look = COUNT_AND_HASH.format("items")
        found, wanted = self.destination.psql(look), self.source.psql(look)
        if found != wanted:
            raise Wrong(f"items is not equal\n  is:        {found}\n  should be: {wanted}")

    # One transaction, or many.

    def large(self, step):
        """New rows, twice as many as the benchmark has, by transactions of so many: a backlog, made anew each time."""
        rows = self.bench.rows * 2
        self.begin()
        self.source.psql(inserts(rows, step or rows))
        self.target = self.source.psql("SELECT pg_current_wal_flush_lsn()")
        return self.ours()
