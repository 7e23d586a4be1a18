"""The cases: who competes in each, and what must come out."""

from logs import Logs
from measure import Gate

MIB = 1 << 20


class Case:
    """A name, and contenders that run by turns; the first two make the ratio."""

    name = title = ""
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
            yield Gate(f"wall time / {second}", "×", self.limit, self.ratios(samples))
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


class LogInserts(Case):
    """A backlog of transactions of 1,000 rows each."""

    name, title = "log-inserts", "a log's backlog, PostgreSQL to PostgreSQL: inserts, 1,000 rows per transaction"
    limit, rss_limit = 1.0, 100

    def contenders(self):
        self.logs = Logs(self.bench, self.name)
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

    name, title = "log-mixed", "a log's backlog: small updates, then one transaction with half as many rows as a fifth of the table"


ALL = {
    case.name: case
    for case in (Copy1, Copy2, CopyStages, Parquet, Upsert, Resume, Scale, LogInserts, LogMixed)
}
