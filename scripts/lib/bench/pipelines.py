"""What strategies are measured against: the same work by hand in SQL, from the same state of both ends."""

import json
import os
import subprocess
import time

from measure import Unmeasured, Wrong

TOTALS = "SELECT day, count(*) AS n, sum(price) AS total, max(updated_at) AS newest FROM {} GROUP BY day"
COLUMNS = "id qty price note code active day updated_at uid doc blob".split()
# The columns whose canonical form a database can compute.
CANONICAL = [c for c in COLUMNS if c != "doc"]


class Pipelines:
    """Pipelines between the two servers of a benchmark, and destinations to begin from."""

    def __init__(self, bench):
        self.bench = bench
        self.source, self.destination, self.runner = bench.source, bench.destination, bench.runner
        self.marks = {}

    # Runs of the program.

    def write(self, name, strategies, copy="items_copy", **more):
        folder = self.bench.folder()
        path = os.path.join(folder, f"{name}.yaml")
        pipeline = {
            "name": name,
            "datastores": {
                "from": {"type": "postgres", "url": self.source.url()},
                "to": {"type": "postgres", "url": self.destination.url()},
            },
            "source": {"datastore": "from", "table": "items"},
            "destination": {"datastore": "to", "table": copy},
            "strategies": strategies,
            **more,
        }
        with open(path, "w") as text:
            json.dump(pipeline, text)
        return path

    def run(self, pipeline, strategy, data=None):
        """One run to its end: the process and its summary."""
        folder = data or self.bench.folder()
        report = os.path.join(folder, "report.json")
        command = [
            self.bench.binary, "run", "--config", pipeline, "--strategy", strategy,
            "--data-dir", os.path.join(folder, "data"), "--quiet", "--output", "json",
        ]  # fmt: skip
        with open(report, "wb") as out:
            process = self.runner.start(command, cwd=folder, stdout=out)
        self.runner.wait([process])
        with open(report) as text:
            return process, json.load(text)

    def measured(self, pipeline, strategy, data=None):
        summary = {}

        def work():
            process, found = self.run(pipeline, strategy, data)
            summary.update(found)
            return [process]

        return self.runner.measure(work), summary

    # Where runs begin.

    def keep(self, name):
        """The destination as it is becomes the one that runs begin from."""
        self.destination.psql("VACUUM (ANALYZE)")
        self.destination.psql(f"ALTER DATABASE bench RENAME TO {name}", database="postgres")
        self.destination.psql(f"CREATE DATABASE bench TEMPLATE {name} STRATEGY file_copy", database="postgres")
        self.bench.checkpoint()

    def begin(self, name):
        self.destination.psql("DROP DATABASE bench WITH (FORCE)", database="postgres")
        self.destination.psql(f"CREATE DATABASE bench TEMPLATE {name} STRATEGY file_copy", database="postgres")
        self.bench.checkpoint()

    def settle(self):
        """What was stamped now is behind the margin of a delta afterwards."""
        time.sleep(2)

    # A copy in which 100 rows are others, 50 are missing and 50 too many.

    def prepare_scattered(self):
        if self.marks.get("scattered"):
            return
        self.bench.table_by_hand(key=True)
        self.runner.wait(self.bench.pipe())
        step = self.bench.rows // 100
        self.destination.psql(
            f"UPDATE items_copy SET note = 'another' WHERE id % {step} = 7;"
            f"DELETE FROM items_copy WHERE id % {step * 2} = 11;"
            f"INSERT INTO items_copy SELECT id + {self.bench.rows}, qty, price, note, code, active, day, updated_at, uid, doc, blob"
            f" FROM items_copy WHERE id % {step * 2} = 13"
        )
        self.keep("scattered")
        self.marks["scattered"] = True

    def repair(self, pipeline, columns=COLUMNS):
        self.prepare_scattered()
        self.begin("scattered")
        before = loopback()
        sample, summary = self.measured(pipeline, "hash")
        moved = loopback() - before
        found = tuple(summary[k] for k in ("updated", "inserted", "deleted"))
        if found != (100, 50, 50):
            raise Wrong(f"100 rows differ, 50 are missing and 50 too many; repaired were {found}")
        self.equal(columns)
        return sample, moved

    def equal(self, columns):
        """Both ends have the same rows in these columns."""
        sql = "SELECT count(*) || ' ' || coalesce(sum(hash_record_extended(t, t.id)), 0) FROM (SELECT {} FROM {}) t"
        there = self.source.psql(sql.format(", ".join(columns), "items"))
        here = self.destination.psql(sql.format(", ".join(columns), "items_copy"))
        if here != there:
            raise Wrong(f"the destination is {here}, the source {there}")

    def scan(self, sql):
        """One scan of each side, both at once."""
        self.prepare_scattered()
        self.begin("scattered")

        def work():
            both = [
                self.runner.start(server.psql_command(sql.format(table)))
                for server, table in ((self.source, "items"), (self.destination, "items_copy"))
            ]
            self.runner.wait(both)
            return both

        return self.runner.measure(work)

    def reladiff(self, columns):
        """reladiff with two threads: it finds and does not repair."""
        self.prepare_scattered()
        self.begin("scattered")
        command = ["reladiff", self.source.url(), "items", self.destination.url(), "items_copy", "-k", "id", "-j", "2", "--stats"]
        for column in columns[1:]:
            command += ["-c", column]

        def work():
            process = self.runner.start(command, stdout=subprocess.DEVNULL)
            self.runner.wait([process])
            return [process]

        return self.runner.measure(work)

    # A destination that was equal until 1 % of the source's rows changed.

    def prepare_changed(self, pipeline):
        if "changed" in self.marks:
            return
        self.bench.reset()
        self.run(pipeline, "delta")
        self.keep("before")
        self.settle()
        mark = self.source.psql("SELECT now()")
        self.source.psql("UPDATE items SET note = 'changed ' || id, updated_at = now() WHERE id % 100 = 3")
        self.source.psql("VACUUM (ANALYZE) items")
        self.settle()
        self.bench.learn("items")
        self.marks["changed"] = mark

    def delta(self, pipeline):
        self.prepare_changed(pipeline)
        self.begin("before")
        sample, summary = self.measured(pipeline, "delta")
        if summary["read"] != summary["updated"] or summary["read"] < self.bench.rows // 100:
            raise Wrong(f"{summary['read']} rows were read and {summary['updated']} updated")
        self.bench.check("items_copy")
        return sample

    def delta_by_hand(self, pipeline):
        """COPY of the changed rows out, COPY into a temporary table, INSERT ON CONFLICT."""
        self.prepare_changed(pipeline)
        self.begin("before")
        mark = self.marks["changed"]
        sets = ", ".join(f"{c} = excluded.{c}" for c in COLUMNS[1:])
        apply = [
            "-c", "CREATE TEMP TABLE changed (LIKE items_copy)",
            "-c", "COPY changed FROM STDIN (FORMAT binary)",
            "-c", f"INSERT INTO items_copy SELECT * FROM changed ON CONFLICT (id) DO UPDATE SET {sets}",
        ]  # fmt: skip
        sample = self.piped(f"COPY (SELECT * FROM items WHERE updated_at >= '{mark}') TO STDOUT (FORMAT binary)", apply)
        self.bench.check("items_copy")
        return sample

    def piped(self, query, apply):
        read, write = os.pipe()

        def work():
            with open(read, "rb") as inward, open(write, "wb") as outward:
                both = [
                    self.runner.start(self.source.psql_command(query), stdout=outward),
                    self.runner.start(self.destination.psql_command("SELECT 1")[:-2] + apply, stdin=inward),
                ]
            self.runner.wait(both)
            return both

        return self.runner.measure(work)

    # Totals of 4,000 days, of which 40 changed; in a tenth of the table the same 40 of 400.

    def prepare_tenth_of_days(self):
        """A table of the first 400 days: as many rows in each group, and a tenth of all."""
        if "tenth of days" in self.marks:
            return
        self.source.psql(
            "CREATE TABLE items_days (LIKE items INCLUDING ALL);"
            "INSERT INTO items_days SELECT * FROM items WHERE day < date '2015-01-01' + 400"
        )
        self.source.psql("VACUUM (ANALYZE, FREEZE) items_days")
        self.marks["tenth of days"] = True

    def prepare_groups(self, pipeline, table="items"):
        if f"groups of {table}" in self.marks:
            return
        self.source.psql(f"CREATE INDEX IF NOT EXISTS {table}_day ON {table} (day)")
        self.bench.reset()
        self.run(pipeline, "delta")
        self.keep(f"{table}_totals")
        self.settle()
        mark = self.source.psql("SELECT now()")
        self.source.psql(
            f"UPDATE {table} SET price = price + 1, updated_at = now()"
            " WHERE day < date '2015-01-01' + 40 AND (id / 4000) % 10 = 0"
        )
        self.source.psql(f"VACUUM (ANALYZE) {table}")
        self.settle()
        self.bench.learn(table)
        self.marks[f"groups of {table}"] = mark

    def totals(self, pipeline, table="items"):
        self.prepare_groups(pipeline, table)
        self.begin(f"{table}_totals")
        sample, summary = self.measured(pipeline, "delta")
        self.check_totals(table)
        return sample, summary

    def totals_by_hand(self, pipeline):
        """The groups of changed rows computed by one query, and INSERT ON CONFLICT."""
        self.prepare_groups(pipeline)
        self.begin("items_totals")
        mark = self.marks["groups of items"]
        changed = f"(SELECT * FROM items WHERE day IN (SELECT day FROM items WHERE updated_at >= '{mark}')) i"
        apply = [
            "-c", "CREATE TEMP TABLE changed (LIKE totals)",
            "-c", "COPY changed FROM STDIN",
            "-c", "INSERT INTO totals SELECT * FROM changed ON CONFLICT (day) DO UPDATE"
            " SET n = excluded.n, total = excluded.total, newest = excluded.newest",
        ]  # fmt: skip
        sample = self.piped(f"COPY ({TOTALS.format(changed)}) TO STDOUT", apply)
        self.check_totals()
        return sample

    def totals_anew(self, pipeline):
        """All groups, computed anew by one query."""
        self.prepare_groups(pipeline)
        self.begin("items_totals")
        self.destination.psql("TRUNCATE totals")
        sample = self.piped(f"COPY ({TOTALS.format('items')}) TO STDOUT", ["-c", "COPY totals FROM STDIN"])
        self.check_totals()
        return sample

    def check_totals(self, table="items"):
        sql = "SELECT md5(string_agg(concat_ws(' ', day, n, total, newest), ',' ORDER BY day)) FROM {} t"
        there = self.source.psql(sql.format(f"({TOTALS.format(table)})"))
        if self.destination.psql(sql.format("totals")) != there:
            raise Wrong("the totals are not those of the source")

    # Nothing to do.

    def prepare_idle(self, pipeline):
        if "idle" in self.marks:
            return self.marks["idle"]
        self.bench.reset()
        data = self.bench.folder()
        self.run(pipeline, "delta", data)
        self.settle()
        self.run(pipeline, "delta", data)
        self.marks["idle"] = data
        return data

    def idle(self, pipeline):
        data = self.prepare_idle(pipeline)
        sample, summary = self.measured(pipeline, "delta", data)
        if summary["read"]:
            raise Wrong(f"{summary['read']} rows were read where nothing had changed")
        return sample

    def start_up(self):
        """The program alone: started, and over."""

        def work():
            done = [self.runner.start([self.bench.binary, "--version"])]
            self.runner.wait(done)
            return done

        return self.runner.measure(work)

    def connect(self):
        """A connection to each server, one after the other, as the program needs them."""

        def work():
            done = []
            for server in (self.source, self.destination):
                done.append(self.runner.start(server.psql_command("SELECT 1")))
                self.runner.wait(done[-1:])
            return done

        return self.runner.measure(work)


def loopback():
    """Bytes that went over the loopback device since boot; each is counted once on its way in."""
    with open("/proc/net/dev") as devices:
        for line in devices:
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                return int(counts.split()[0])
    raise Unmeasured("there is no loopback device")
