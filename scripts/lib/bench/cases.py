"""The cases: who competes in each, and what must come out."""

from archives import Archives
from live import Live
from logs import Logs
from measure import Gate
from pipelines import CANONICAL, COLUMNS, Pipelines

MIB = 1 << 20
MIXED = "small updates, then one transaction with half as many rows as a fifth of the table"


class Case:
    """A name, and contenders that run by turns; the first two make the ratio."""

    name = title = ""
    measured, unit, scale = "wall time", "s", 1
    limit = None
    cpu_limit = None  # seconds per 5,000,000 rows
    rss_limit = None

    def __init__(self, bench):
        self.bench = bench
        self.notes = []

    def contenders(self):
        raise NotImplementedError

    def finish(self):
        """Called once after the last pair."""

    def ratios(self, samples, over=1):
        names = list(samples)
        return [a.wall / b.wall for a, b in zip(samples[names[0]], samples[names[over]])]

    def gates(self, samples):
        ours = next(iter(samples.values()))
        second = list(samples)[1]
        if self.limit:
            yield Gate(f"{self.measured} / {second}", "×", self.limit, self.ratios(samples))
        if self.cpu_limit:
            scale = 5_000_000 / self.bench.rows
            yield Gate("client CPU per 5,000,000 rows", "s", self.cpu_limit, [s.cpu * scale for s in ours])
        if self.rss_limit:
            yield Gate("RSS", "MiB", self.rss_limit, [s.rss / MIB for s in ours])


class Copy1(Case):
    """One stream."""

    name, title = "copy-1", "PostgreSQL to PostgreSQL, one stream"
    limit, cpu_limit, rss_limit = 1.05, 3, 64

    def contenders(self):
        return {
            "synctool --workers 1": lambda: self.bench.copy("--workers", "1")[0],
            "psql | psql": self.bench.one_pipe,
        }


class Copy2(Case):
    """What a user gets who says nothing."""

    name, title = "copy-2", "PostgreSQL to PostgreSQL, the default plan"
    limit, cpu_limit, rss_limit = 1.1, 3, 64

    def contenders(self):
        return {
            "synctool": self.ours,
            "2 × psql | psql, then the key": self.bench.two_pipes,
            "psql | psql": self.bench.one_pipe,
            **({"pgcopydb": self.bench.pgcopydb} if self.bench.has_pgcopydb() else {}),
        }

    def ours(self):
        sample, summary = self.bench.copy()
        self.notes = [f"{summary['partitions']} partitions", *summary["reasons"]]
        return sample

    def finish(self):
        if not self.bench.has_pgcopydb():
            self.notes.append("pgcopydb is not installed (apt-get install pgcopydb): not compared")


class CopyStages(Case):
    """Every value is decoded, looked at and encoded again."""

    name, title = "copy-stages", "PostgreSQL to PostgreSQL, through a stage (value_map)"
    limit, rss_limit = 1.3, 256

    def contenders(self):
        return {
            "synctool with a stage": self.bench.copy_through_a_stage,
            "psql | psql": self.bench.one_pipe,
        }


class Parquet(Case):
    """To files."""

    name, title = "parquet", "PostgreSQL to Parquet (zstd)"
    limit = 1.1
    target = None

    def contenders(self):
        return {"synctool to Parquet": self.ours, "COPY to /dev/null": self.bench.read_only}

    def ours(self):
        sample, self.target = self.bench.to_parquet()
        return sample

    def finish(self):
        self.bench.check_parquet(self.target)
        self.notes.append("the last pair's files, read back into a table, are equal to the source")


class Upsert(Case):
    """Into a table that is there; no limit is set yet, the ratio is for the record."""

    name, title = "upsert", "PostgreSQL to PostgreSQL, into a table of which 1 % is old and 1 % missing"

    def contenders(self):
        return {"synctool --full-mode upsert": self.ours, "by hand: COPY, INSERT ON CONFLICT, DELETE": self.bench.upsert_by_hand}

    def ours(self):
        sample, summary = self.bench.upsert()
        self.notes = [f"{summary['inserted']} inserted, {summary['updated']} updated, {summary['unchanged']} unchanged"]
        return sample


class Resume(Case):
    """kill -9 at half."""

    name, title = "resume", "killed with half of the partitions done, and run again"
    limit = 1.1

    def contenders(self):
        return {"killed and run again": self.ours, "undisturbed": lambda: self.bench.copy()[0]}

    def ours(self):
        sample, done, summary = self.bench.killed_at_half()
        self.notes.append(
            f"{done} of {summary['partitions']} partitions done before the kill, {summary['skipped']} skipped by the rerun"
        )
        return sample


class Scale(Case):
    """Ten times the rows."""

    name, title = "scale", "ten times the rows"
    limit = 11

    def contenders(self):
        self.bench.load_tenth()
        return {
            "synctool, all rows": lambda: self.bench.copy()[0],
            "synctool, a tenth": lambda: self.bench.copy(table="items_tenth")[0],
        }

    def gates(self, samples):
        yield from super().gates(samples)
        large, small = samples.values()
        yield Gate("RSS / RSS of a tenth", "×", 1.25, [a.rss / b.rss for a, b in zip(large, small)])


class OfPipelines(Case):
    """Pipelines of the current form; those of one benchmark share what they begin from."""

    def __init__(self, bench):
        super().__init__(bench)
        bench.pipelines = getattr(bench, "pipelines", None) or Pipelines(bench)
        self.pipelines = bench.pipelines


class HashDiff(OfPipelines):
    """100 rows differ, 50 are missing, 50 too many: found and repaired."""

    name, title = "hash-diff", "200 scattered differences found and repaired, record hashes"
    limit, rss_limit = 2.4, 64
    columns = COLUMNS
    wire_limit = 0.01  # of the table's size
    peer_limit = 0.25  # of reladiff's time
    scan = "SELECT count(*), sum(hash_record_extended(t, 0)) FROM {} t"
    more = {}

    def contenders(self):
        self.moved = []
        pipeline = self.pipelines.write("scattered", [{"name": "hash", "type": "hash"}], **self.more)
        return {
            "synctool run, hash": lambda: self.ours(pipeline),
            "one scan of each side": lambda: self.pipelines.scan(self.scan),
            **({"reladiff, finding alone": self.peer} if self.bench.has_reladiff() else {}),
        }

    def peer(self):
        return self.pipelines.reladiff(CANONICAL)

    def gates(self, samples):
        yield from super().gates(samples)
        yield Gate("bytes over the loopback / the table's", "×", self.wire_limit, self.moved)
        if not self.bench.has_reladiff():
            self.notes.append("reladiff is not installed: not compared")
        elif self.peer_limit:
            yield Gate("wall time / reladiff's", "×", self.peer_limit, self.ratios(samples, 2))

    def ours(self, pipeline):
        sample, moved = self.pipelines.repair(pipeline, self.columns)
        table = int(self.bench.source.psql("SELECT pg_table_size('items')"))
        self.moved.append(moved / table)
        self.notes.append(f"over the loopback: {moved / MIB:.1f} MiB, {moved / table:.2%} of the table")
        return sample


class HashDiffCanonical(HashDiff):
    """The same by the canonical form of rows, as between servers whose types differ."""

    name, title = "hash-diff-canonical", "200 scattered differences found and repaired, canonical form"
    limit = 2
    columns = CANONICAL
    scan = (
        "SELECT count(*), sum(('x' || left(md5(concat_ws('|', " + ", ".join(CANONICAL) + ")), 15))::bit(60)::bigint) FROM {} t"
    )
    more = {"hash_algo": "canonical", "columns": CANONICAL}


class HashDiffMd5(HashDiffCanonical):
    """The same by MD5 of that form, as between different engines."""

    name, title = "hash-diff-md5", "200 scattered differences found and repaired, MD5 of the canonical form"
    # The scan that it is measured by alone takes as long as a fifth to a quarter of reladiff's whole run.
    peer_limit = None
    more = {"hash_algo": "md5_sum_hash", "columns": CANONICAL}


class Delta(OfPipelines):
    """1 % of the rows."""

    name, title = "delta", "1 % of the rows changed, upserted"
    limit, rss_limit = 1.2, 64

    def contenders(self):
        pipeline = self.pipelines.write("changed", [{"name": "delta", "type": "delta", "column": "updated_at"}])
        return {
            "synctool run, delta": lambda: self.pipelines.delta(pipeline),
            "by hand: COPY, INSERT ON CONFLICT": lambda: self.pipelines.delta_by_hand(pipeline),
        }


class Aggregate(OfPipelines):
    """1 % of the groups: what is done follows them, as by hand, and not the table's size."""

    name, title = "aggregate", "1 % of 4,000 groups refreshed"
    limit, rss_limit = 1.2, 64

    def contenders(self):
        pipeline = self.pipeline("groups")
        return {
            "synctool run, aggregate": lambda: self.ours(pipeline),
            "by hand: the changed groups": lambda: self.pipelines.totals_by_hand(pipeline),
            "by hand: all groups anew": lambda: self.pipelines.totals_anew(pipeline),
        }

    def pipeline(self, name, table="items"):
        return self.pipelines.write(
            name,
            [{"name": "delta", "type": "delta", "column": "updated_at"}],
            copy="totals",
            source={"datastore": "from", "table": table},
            sync_type="aggregate",
            group_by=["day"],
            columns=[
                "day",
                {"dest": "n", "expr": "count(*)"},
                {"dest": "total", "expr": "sum(price)"},
                {"dest": "newest", "expr": "max(updated_at)"},
            ],
        )

    def ours(self, pipeline, table="items"):
        sample, summary = self.pipelines.totals(pipeline, table)
        self.notes.append(f"{table}: {summary['updated']} groups updated, {summary['unchanged']} unchanged")
        return sample


class AggregateScale(Aggregate):
    """The same groups, changed alike, in the table and in a tenth of it: the time follows them, not the table's size."""

    name, title = "aggregate-scale", "40 groups refreshed: of 4,000, and of 400 in a tenth of the table"
    limit, rss_limit = 2, None

    def contenders(self):
        self.pipelines.prepare_tenth_of_days()
        whole, tenth = self.pipeline("groups"), self.pipeline("groups_of_tenth", "items_days")
        return {
            "synctool run, 4,000 groups": lambda: self.ours(whole),
            "synctool run, 400 groups": lambda: self.ours(tenth, "items_days"),
        }


class Idle(OfPipelines):
    """Nothing to do; and the start of the program alone."""

    name, title = "idle", "a delta that is up to date"
    extra, start_limit = 0.1, 0.05

    def contenders(self):
        pipeline = self.pipelines.write("idle", [{"name": "delta", "type": "delta", "column": "updated_at"}])
        return {
            "synctool run, nothing to do": lambda: self.pipelines.idle(pipeline),
            "two connections": self.pipelines.connect,
            "synctool --version": self.pipelines.start_up,
        }

    def gates(self, samples):
        yield Gate("wall time over connecting", "s", self.extra, self.ratios(samples))
        yield Gate("start-up", "s", self.start_limit, [s.wall for s in samples["synctool --version"]])

    def ratios(self, samples, over=1):
        ours, others = list(samples.values())[0], list(samples.values())[over]
        return [a.wall - b.wall for a, b in zip(ours, others)]


class LogInserts(Case):
    """A backlog of transactions of 1,000 rows each."""

    name, title, kind = "log-inserts", "a log's backlog, PostgreSQL to PostgreSQL: inserts, 1,000 rows per transaction", "inserts"
    limit, rss_limit = 1.0, 100

    def contenders(self):
        self.logs = Logs(self.bench, self.kind)
        self.logs.workload()
        return {
            "synctool run --until-caught-up": self.logs.ours,
            "native subscription": self.logs.native,
            "decoding alone (SQL peek)": self.logs.peek,
        }

    def finish(self):
        self.logs.finish()


class LogMixed(LogInserts):
    """Many small transactions, and one that is large."""

    name, title, kind = "log-mixed", f"a log's backlog: {MIXED}", "mixed"


class LogDrainStream(Case):
    """The library alone, into nothing."""

    name, title, kind = "log-drain-stream", f"a log's backlog streamed as typed Arrow, to nowhere: {MIXED}", "mixed"
    way, limit, rss_limit = "stream", 0.95, 100
    peer = True

    def contenders(self):
        self.logs = Logs(self.bench, self.kind)
        self.logs.workload()
        return {
            f"synctool's library, {self.way}": lambda: self.logs.drain(self.way),
            **self.yardsticks({"pg_recvlogical to /dev/null": self.logs.recvlogical, "decoding alone (SQL peek)": self.logs.peek}),
            **({"Debezium Engine": self.logs.debezium} if self.peer and self.bench.has_debezium() else {}),
        }

    def gates(self, samples):
        yield from super().gates(samples)
        if "Debezium Engine" not in samples:
            if self.peer:
                self.notes.append("Java or Debezium Engine is not installed: not compared")
            return
        yield Gate("wall time / Debezium's", "×", 1 / 2.5, self.ratios(samples, 3))
        ours, theirs = next(iter(samples.values())), samples["Debezium Engine"]
        yield Gate("RSS / Debezium's", "×", 1 / 20, [a.rss / b.rss for a, b in zip(ours, theirs)])

    def yardsticks(self, both):
        """The first is judged by."""
        return both

    def finish(self):
        self.logs.finish()


class LogDrainStreamInserts(LogDrainStream):
    """The other workload."""

    name, title, kind = "log-drain-stream-inserts", "the same: inserts, 1,000 rows per transaction", "inserts"


class LogDrainCatchUp(LogDrainStream):
    """By SQL, as a long backlog is read."""

    name, title, kind = "log-drain-catch-up", f"a log's backlog read by SQL as typed Arrow, to nowhere: {MIXED}", "mixed"
    way, limit, peer = "catch-up", 1.3, False

    def yardsticks(self, both):
        return dict(reversed(both.items()))


class LogDrainCatchUpInserts(LogDrainCatchUp):
    """The other workload."""

    name, title, kind = "log-drain-catch-up-inserts", "the same: inserts, 1,000 rows per transaction", "inserts"


class LogLive(Case):
    """Both follow while the log is written as fast as one session can."""

    name, title, kind = "log-live", f"followed while it is written, until everything is there: {MIXED}", "mixed"
    limit, rss_limit = 1.15, 100

    def contenders(self):
        self.live = Live(self.bench, self.kind)
        return {
            "synctool run": lambda: self.live.live(native=False),
            "native subscription": lambda: self.live.live(native=True),
        }

    def finish(self):
        self.live.finish()


class LogLiveInserts(LogLive):
    """The other workload."""

    name, title, kind = "log-live-inserts", "the same: inserts, 1,000 rows per transaction", "inserts"


class LogLatency(Case):
    """1,000 small transactions a second: how late each is seen."""

    name, title = "log-latency", "from a transaction's statement until it is seen at the destination, 1,000 a second"
    measured, unit, scale = "median", "ms", 1000
    limit, p99_limit, rss_limit = 1.5, 2.0, 100

    def contenders(self):
        self.live = Live(self.bench, "")
        self.p99 = {"synctool run": [], "native subscription": []}
        return {who: lambda who=who: self.one(who) for who in self.p99}

    def one(self, who):
        sample, p99, count = self.live.latency(native=who != "synctool run")
        self.p99[who].append(p99)
        self.notes.append(f"{who}: median {sample.wall * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms of {count} transactions")
        return sample

    def gates(self, samples):
        yield from super().gates(samples)
        ours, native = self.p99.values()
        yield Gate("p99 / native subscription", "×", self.p99_limit, [a / b for a, b in zip(ours, native)])

    def finish(self):
        self.live.finish()


class LogHuge(Case):
    """Memory does not grow with a transaction."""

    name, title = "log-huge", "one transaction with twice the rows of the table, and as many rows by transactions of 1,000"
    rss_limit, growth = 100, 1.25

    def contenders(self):
        self.live = Live(self.bench, "inserts")
        return {
            "synctool, one transaction": lambda: self.live.large(None),
            "synctool, small transactions": lambda: self.live.large(1000),
        }

    def gates(self, samples):
        yield from super().gates(samples)
        one, many = samples.values()
        yield Gate("RSS / RSS of small transactions", "×", self.growth, [a.rss / b.rss for a, b in zip(one, many)])

    def finish(self):
        self.live.finish()


class Backfill(Case):
    """The first load of a table, in chunks beside the log."""

    name, title = "backfill", "a table's first load beside an idle log"
    limit, rss_limit = 1.5, 100

    def contenders(self):
        self.live = Live(self.bench, "")
        return {"synctool run --until-caught-up": self.ours, "psql | psql": self.bench.one_pipe}

    def ours(self):
        return self.live.backfill()

    def finish(self):
        self.live.finish()


class BackfillLoad(Backfill):
    """The same under load, and what the log has of it."""

    name, title = "backfill-load", "a table's first load while it is written, 1,000 transactions a second"
    limit, lag_limit = 2.5, 2.0

    def contenders(self):
        self.lags = []
        self.live = Live(self.bench, "")
        return {"synctool run": self.ours, "psql | psql beside the same load": self.live.pipe_under_load}

    def ours(self):
        sample, (_, _, meanwhile), (count, _, afterwards) = self.live.backfill_under_load()
        self.lags.append(meanwhile / afterwards)
        self.notes.append(
            f"the log's p99: {meanwhile * 1000:.1f} ms meanwhile, {afterwards * 1000:.1f} ms afterwards ({count} transactions)"
        )
        return sample

    def gates(self, samples):
        yield from super().gates(samples)
        yield Gate("the log's p99 lag / without a backfill", "×", self.lag_limit, self.lags)


class OfArchives(Case):
    """One production that archives its log; the cases of one benchmark share it and its changes."""

    def __init__(self, bench):
        super().__init__(bench)
        self.archives = bench.archives = getattr(bench, "archives", None) or Archives(bench)
        if not hasattr(self.archives, "target"):
            self.archives.workload()


class DataSync(OfArchives):
    """Half of the changes are new rows, two fifths changed ones, a tenth deleted ones; 100 in a transaction."""

    name, title = "data-sync", "archived log applied: a fifth as many changes as the table has rows"
    limit, rss_limit = 1.5, 128

    def contenders(self):
        return {"synctool datasync run-once": self.ours, "native subscription": self.archives.native}

    def ours(self):
        sample = self.archives.ours()
        self.notes.append(f"of these the batch: {self.archives.phases()}")
        return sample


class WalStats(OfArchives):
    """Every record of the same segments, counted."""

    name, title = "wal-stats", "archived log, its records counted"
    limit = 1.0

    def contenders(self):
        return {"synctool wal stats": self.archives.stats, "pg_waldump --stats": self.archives.waldump}


class DataSyncSmall(OfArchives):
    """A running service: 2,000 rows change, then nothing does."""

    name, title = "data-sync-small", "2,000 changed rows arrive at a running service; an idle archive"
    most, idle_limit, window = 1.0, 0.5, 30
    rss_limit = 128

    def contenders(self):
        self.archives.service()
        return {"synctool, the batch": self.ours, "by hand: UPDATE": self.archives.small_by_hand}

    def ours(self):
        sample = self.archives.small_batch()
        self.notes.append(f"of the batch: {self.archives.phases()}")
        return sample

    def finish(self):
        self.idle, scratch = self.archives.idle(self.window)
        self.notes.append(f"idle, the scratch server keeps {scratch:.2f} % of a core busy")
        self.archives.end_service()

    def gates(self, samples):
        yield from super().gates(samples)
        yield Gate("a small batch", "s", self.most, [s.wall for s in list(samples.values())[0]])
        yield Gate("CPU of an idle service", "% of a core", self.idle_limit, [self.idle])


ALL = {
    case.name: case
    for case in (
        Copy1, Copy2, CopyStages, Parquet, Upsert, Resume, Scale, HashDiff, HashDiffCanonical, HashDiffMd5, Idle, Delta, Aggregate,
        AggregateScale, LogInserts, LogMixed, LogDrainStream, LogDrainStreamInserts, LogDrainCatchUp, LogDrainCatchUpInserts,
        LogLive, LogLiveInserts, LogLatency, LogHuge, Backfill, BackfillLoad, WalStats, DataSync, DataSyncSmall,
    )
}  # fmt: skip
