"""What is measured: the program, and PostgreSQL's own tools doing the same by hand."""

import configparser
import json
import os
import shutil
import subprocess

import building
from measure import Unmeasured, Wrong, describe, tail

# Bound to the row: a record's hash is a sum over its columns, so values that trade places would leave the sum as it was.
COUNT_AND_HASH = "SELECT count(*) || ' rows, hash ' || coalesce(sum(hash_record_extended(t, t.id)), 0) FROM {} t"
SHAPE = """
  SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END,
                    ', ' ORDER BY attnum)
         || ', key ' || coalesce((SELECT pg_get_constraintdef(oid) FROM pg_constraint
                                  WHERE conrelid = '{0}'::regclass AND contype = 'p'), 'none')
  FROM pg_attribute WHERE attrelid = '{0}'::regclass AND attnum > 0 AND NOT attisdropped"""


class Bench:
    """Two servers with the tables to be copied, and everybody who copies them."""

    def __init__(self, source, destination, runner, binary, rows, directory):
        self.source, self.destination = source, destination
        self.runner, self.binary, self.rows, self.directory = runner, binary, rows, directory
        self.facts = {}
        self.runs = 0
        self.given = False  # whether the program was there already

    def load(self, script):
        self.source.script(script, n=self.rows)
        self.learn("items")

    def load_tenth(self):
        """The first tenth of the rows as a table of its own."""
        if "items_tenth" not in self.facts:
            self.source.psql(
                "CREATE TABLE items_tenth (LIKE items INCLUDING ALL);"
                f"INSERT INTO items_tenth SELECT * FROM items WHERE id <= {self.rows // 10}"
            )
            self.source.psql("VACUUM (ANALYZE, FREEZE) items_tenth")
            self.learn("items_tenth")

    def learn(self, table):
        self.facts[table] = self.look(self.source, table)

    def look(self, server, table):
        return server.psql(COUNT_AND_HASH.format(table)) + "; " + server.psql(SHAPE.format(table))

    def reset(self):
        """An empty destination, and nothing left to write at both ends from what was before."""
        self.destination.psql("DROP DATABASE bench WITH (FORCE)", database="postgres")
        self.destination.psql("CREATE DATABASE bench", database="postgres")
        self.checkpoint()

    def checkpoint(self):
        for server in (self.source, self.destination):
            server.psql("CHECKPOINT")

    def check(self, copy, of="items"):
        """The copy must hold the same rows, in columns of the same types, with the same key."""
        found = self.look(self.destination, copy)
        if found != self.facts[of]:
            raise Wrong(f"{copy} is not equal to {of}\n  is:        {found}\n  should be: {self.facts[of]}")

    # The program.

    def example(self, name):
        """A program of the library's examples."""
        if name not in self.facts:
            self.facts[name] = building.example(name, self.binary, self.given)
        return self.facts[name]

    def folder(self):
        self.runs += 1
        path = os.path.join(self.directory, f"run-{self.runs}")
        os.mkdir(path)
        return path

    def command(self, folder, target, *options, table="items", copy="items_copy", output="json"):
        return [
            self.binary, "copy", self.source.url(), table, target, copy,
            "--data-dir", os.path.join(folder, "data"), "--quiet", "--output", output, *options,
        ]  # fmt: skip

    def program(self, target, *options, env=None, folder=None, **names):
        """One run to its end: the process and its summary."""
        folder = folder or self.folder()
        report = os.path.join(folder, "report.json")
        with open(report, "wb") as out:
            process = self.runner.start(self.command(folder, target, *options, **names), env, folder, stdout=out)
        self.runner.wait([process])
        with open(report) as text:
            summary = json.loads(text.read().splitlines()[-1] if names.get("output") == "ndjson" else text.read())
        return process, summary

    def copy(self, *options, env=None, table="items"):
        """A whole copy into an empty destination, compared afterwards."""
        self.reset()
        summary = {}

        def work():
            process, found = self.program(self.destination.url(), *options, env=env, table=table)
            summary.update(found)
            return [process]

        sample = self.runner.measure(work)
        self.check("items_copy", table)
        return sample, summary

    def copy_through_a_stage(self):
        """The same copy as a pipeline with a stage that looks at every value of one column and leaves it as it is."""
        self.reset()
        folder = self.folder()
        pipeline = os.path.join(folder, "stages.yaml")
        with open(pipeline, "w") as text:
            json.dump(
                {
                    "name": "stages",
                    "datastores": {
                        "from": {"type": "postgres", "url": self.source.url()},
                        "to": {"type": "postgres", "url": self.destination.url()},
                    },
                    "source": {"datastore": "from", "table": "items"},
                    "destination": {"datastore": "to", "table": "items_copy"},
                    "transform": [{"value_map": {"column": "code", "mapping": {"no such code": "C"}}}],
                    "strategies": [{"name": "full", "type": "full"}],
                },
                text,
            )
        report = os.path.join(folder, "report.json")

        def work():
            command = [
                self.binary, "run", "--config", pipeline, "--data-dir", os.path.join(folder, "data"),
                "--quiet", "--output", "json",
            ]  # fmt: skip
            with open(report, "wb") as out:
                process = self.runner.start(command, cwd=folder, stdout=out)
            self.runner.wait([process])
            return [process]

        sample = self.runner.measure(work)
        self.check("items_copy")
        return sample

    # Into a table of which a part is old.

    def reset_to_changed(self):
        """A destination that has the table with its key, but 1 % of its rows are old and 1 % are missing."""
        if "changed" not in self.facts:
            self.table_by_hand(key=True)
            self.runner.wait(self.pipe())
            self.destination.psql("UPDATE items_copy SET note = 'old' WHERE id % 100 = 0")
            self.destination.psql("DELETE FROM items_copy WHERE id % 100 = 1")
            self.destination.psql("VACUUM (ANALYZE) items_copy")
            self.destination.psql("ALTER DATABASE bench RENAME TO changed", database="postgres")
            self.facts["changed"] = True
        else:
            self.destination.psql("DROP DATABASE bench WITH (FORCE)", database="postgres")
        self.destination.psql("CREATE DATABASE bench TEMPLATE changed STRATEGY file_copy", database="postgres")
        self.checkpoint()

    def upsert(self):
        self.reset_to_changed()
        summary = {}

        def work():
            process, found = self.program(self.destination.url(), "--full-mode", "upsert")
            summary.update(found)
            return [process]

        sample = self.runner.measure(work)
        self.check("items_copy")
        return sample, summary

    def upsert_by_hand(self):
        """psql | psql into a table beside, then one statement for what differs and one for what is gone."""
        self.reset_to_changed()
        self.destination.psql("CREATE UNLOGGED TABLE load (LIKE items_copy)")
        columns = "qty price note code active day updated_at uid doc blob".split()
        new, old = (", ".join(f"{side}.{c}" for c in columns) for side in ("excluded", "t"))
        merge = (
            "INSERT INTO items_copy AS t SELECT * FROM load ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{c} = excluded.{c}" for c in columns)
            + f" WHERE ({old}) IS DISTINCT FROM ({new})"
        )
        gone = "DELETE FROM items_copy t WHERE NOT EXISTS (SELECT FROM load l WHERE l.id = t.id)"

        def work():
            pipe = self.pipe(into="load")
            self.runner.wait(pipe)
            done = self.runner.start(self.destination.psql_command(f"BEGIN; {merge}; {gone}; DROP TABLE load; COMMIT"))
            self.runner.wait([done])
            return [*pipe, done]

        sample = self.runner.measure(work)
        self.check("items_copy")
        return sample

    # By hand.

    def table_by_hand(self, key):
        self.reset()
        columns = self.source.psql(
            "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod)"
            " || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, ', ' ORDER BY attnum)"
            " FROM pg_attribute WHERE attrelid = 'items'::regclass AND attnum > 0 AND NOT attisdropped"
        )
        key = ", PRIMARY KEY (id)" if key else ""
        self.destination.psql(f"CREATE TABLE items_copy ({columns}{key})")
        self.checkpoint()

    def pipe(self, what="items", into="items_copy"):
        read, write = os.pipe()
        with open(read, "rb") as inward, open(write, "wb") as outward:
            return [
                self.runner.start(self.source.psql_command(f"COPY {what} TO STDOUT (FORMAT binary)"), stdout=outward),
                self.runner.start(self.destination.psql_command(f"COPY {into} FROM STDIN (FORMAT binary)"), stdin=inward),
            ]  # fmt: skip

    def one_pipe(self):
        """psql | psql into a table that has its key."""
        self.table_by_hand(key=True)

        def work():
            processes = self.pipe()
            self.runner.wait(processes)
            return processes

        sample = self.runner.measure(work)
        self.check("items_copy")
        return sample

    def two_pipes(self):
        """Two pipes by halves of the key, the key built after them with the memory that the program gives it."""
        self.table_by_hand(key=False)
        half = self.rows // 2

        def work():
            pipes = [
                *self.pipe(f"(SELECT * FROM items WHERE id <= {half})"),
                *self.pipe(f"(SELECT * FROM items WHERE id > {half})"),
            ]
            self.runner.wait(pipes)
            add = "SET maintenance_work_mem = '256MB'; ALTER TABLE items_copy ADD PRIMARY KEY (id)"
            build = self.runner.start(self.destination.psql_command(add))
            self.runner.wait([build])
            return [*pipes, build]

        sample = self.runner.measure(work)
        self.check("items_copy")
        return sample

    def read_only(self):
        """One COPY to nowhere."""
        self.checkpoint()
        with open(os.devnull, "wb") as nowhere:

            def work():
                read = self.runner.start(self.source.psql_command("COPY items TO STDOUT (FORMAT binary)"), stdout=nowhere)
                self.runner.wait([read])
                return [read]

            return self.runner.measure(work)

    def pgcopydb(self):
        """pgcopydb with two jobs, told to copy this table and its key only."""
        self.reset()
        folder = self.folder()
        filters = configparser.ConfigParser(allow_no_value=True)
        filters["include-only-table"] = {"public.items": None}
        filters["exclude-index"] = {"public.items_updated_at": None}
        path = os.path.join(folder, "filters.ini")
        with open(path, "w") as ini:
            filters.write(ini)
        command = [
            "pgcopydb", "clone", "--source", self.source.url(), "--target", self.destination.url(),
            "--table-jobs", "2", "--index-jobs", "2", "--skip-vacuum", "--no-acl", "--no-owner",
            "--filters", path, "--dir", os.path.join(folder, "work"),
        ]  # fmt: skip

        def work():
            process = self.runner.start(command, cwd=folder)
            self.runner.wait([process])
            return [process]

        sample = self.runner.measure(work)
        self.check("items")
        return sample

    @staticmethod
    def has_pgcopydb():
        return shutil.which("pgcopydb") is not None

    @staticmethod
    def has_reladiff():
        return shutil.which("reladiff") is not None

    @staticmethod
    def has_debezium():
        return shutil.which("javac") is not None and "SYNCTOOL_DEBEZIUM" in os.environ

    # Parquet.

    def to_parquet(self):
        self.checkpoint()
        folder = self.folder()
        target = os.path.join(folder, "out")
        summary = {}

        def work():
            process, found = self.program(f"parquet:{target}", folder=folder, copy="items")
            summary.update(found)
            return [process]

        sample = self.runner.measure(work)
        if summary["read"] != self.rows:
            raise Wrong(f"{summary['read']} of {self.rows} rows went to Parquet")
        return sample, target

    def check_parquet(self, target):
        """Reads the files back into a table like the first and compares that."""
        self.table_by_hand(key=True)
        command = [
            self.binary, "copy", f"parquet:{target}", "items", self.destination.url(), "items_copy",
            "--data-dir", os.path.join(self.folder(), "data"), "--quiet", "--full-mode", "append",
        ]  # fmt: skip
        self.runner.wait([self.runner.start(command, cwd=self.directory)])
        self.check("items_copy")

    # Killed and run again.

    def killed_at_half(self):
        """Killed when half of the partitions are done, then run again: what both took, and the second one's report."""
        self.reset()
        folder = self.folder()
        target = self.destination.url()
        done = set()
        summary = {}

        def work():
            process = self.runner.start(
                self.command(folder, target, output="ndjson"), cwd=folder, stdout=subprocess.PIPE
            )
            partitions = None
            with process.popen.stdout as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "planned":
                        partitions = event["partitions"]
                    elif event["type"] == "partition_done":
                        done.add(event["partition"])
                        if len(done) * 2 >= partitions:
                            break
                    self.runner.left()
                if not partitions or len(done) * 2 < partitions:
                    self.runner.wait([process])
                    raise Unmeasured(f"{describe(process.command)} ended before half of it was done\n{tail(process.log)}")
                self.runner.kill(process)
            again, found = self.program(target, folder=folder)
            summary.update(found)
            return [process, again]

        sample = self.runner.measure(work)
        self.check("items_copy")
        if not summary["resumed"] or summary["skipped"] < len(done):
            raise Wrong(f"{len(done)} partitions were done before the kill, the rerun skipped {summary['skipped']}")
        return sample, len(done), summary
