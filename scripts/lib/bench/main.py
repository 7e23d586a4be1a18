"""`./scripts/bench`: builds the program, starts two servers, runs the cases in turns, prints ratios and judges them."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone

import building
import cases
from building import ROOT
from contenders import Bench
from measure import Runner, Unmeasured, Wrong, interval
from servers import SETTINGS, Cluster, memory

# Below this many rows, a quarter of a second of planning and starting is more than the gates leave.
JUDGED_FROM = 2_000_000
MIB = 1 << 20


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Speed and memory as ratios to PostgreSQL's own tools.")
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of the table (default 5,000,000)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs per case (default 7)")
    parser.add_argument("--only", action="append", choices=list(cases.ALL), help="only this case; may be repeated")
    parser.add_argument("--yardsticks", action="store_true", help="measure only what the program is compared with")
    parser.add_argument("--json", metavar="FILE", help="write all samples and verdicts to a file")
    parser.add_argument("--binary", metavar="FILE", help="measure this program instead of building one")
    parser.add_argument("--minutes", type=float, default=120, help="give up after so long (default 120)")
    parser.add_argument("--dir", metavar="DIR", help="where servers and files are kept meanwhile (default: a temporary one)")
    options = parser.parse_args()
    if options.rows < 1000 or options.pairs < 1:
        parser.error("at least 1000 rows and one pair are needed")
    return options


def words(*command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def machine(source):
    cpu = platform.processor()
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": words("git", "describe", "--always", "--dirty"),
        "cpu": f"{os.cpu_count()} × {cpu}",
        "memory": f"{memory('MemTotal') / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "postgresql": source.psql("SHOW server_version"),
        "settings": ", ".join(f"{k}={v}" for k, v in SETTINGS.items()),
        "compiler": words("rustc", "--version"),
        "load before": " ".join(f"{x:.1f}" for x in os.getloadavg()),
    }


def show(facts):
    for name, value in facts.items():
        print(f"  {name:12} {value}")
    sys.stdout.flush()


def run_case(case, options):
    print(f"\n{case.name}: {case.title}")
    contenders = case.contenders()
    if options.yardsticks:
        contenders = {name: run for name, run in contenders.items() if not name.startswith(("synctool", "killed"))}
        contenders.pop("undisturbed", None)
    samples = {name: [] for name in contenders}
    for pair in range(1, options.pairs + 1):
        for name, run in contenders.items():
            sample = run()
            samples[name].append(sample)
            print(
                f"  {pair}  {name:32} {sample.wall * case.scale:7.2f} {case.unit}   client CPU {sample.cpu:6.2f} s   RSS {sample.rss / MIB:6.1f} MiB"
                f"   servers' CPU {sample.servers:6.2f} s   others {sample.others:4.2f} cores",
                flush=True,
            )
        if len(samples) > 1:
            first, second = list(samples.values())[:2]
            print(f"  {pair}  ratio {first[-1].wall / second[-1].wall:.3f}", flush=True)
    if not options.yardsticks:
        case.finish()
    return samples


def judge(case, samples, options):
    """Prints each gate with its interval; the verdicts."""
    verdicts = []
    for gate in case.gates(samples):
        found, held = gate.verdict()
        judged = options.rows >= JUDGED_FROM
        word = ("ok" if held else "FAILED") if judged else "not judged"
        print(
            f"  = {gate.what}: {found.median:.3f} {gate.unit} ({found.low:.3f} to {found.high:.3f},"
            f" {found.confidence:.0%}), gate {gate.limit:g} {gate.unit}: {word}"
        )
        verdicts.append({"what": gate.what, "limit": gate.limit, **asdict(found), "held": held, "judged": judged})
    first = next(iter(samples))
    for other in list(samples)[2:]:
        found = interval([a.wall / b.wall for a, b in zip(samples[first], samples[other])])
        print(f"  = {case.measured} / {other}: {found.median:.3f} × ({found.low:.3f} to {found.high:.3f})")
    # Less shaken by other programs than wall time: what the machine had to do in all.
    second = list(samples)[1]
    work = interval([(a.cpu + a.servers) / (b.cpu + b.servers) for a, b in zip(samples[first], samples[second])])
    print(f"  = CPU of clients and servers / {second}: {work.median:.3f} × ({work.low:.3f} to {work.high:.3f})")
    for note in dict.fromkeys(case.notes):
        print(f"    {note}")
    sys.stdout.flush()
    return verdicts


def measure(options, directory):
    if options.yardsticks:
        binary = None
    else:
        binary = os.path.abspath(options.binary) if options.binary else building.program()
    programs = os.path.join(os.environ["SYNCTOOL_CACHE"], "postgres-15", "bin")
    source, destination = (Cluster(name, directory, programs) for name in ("source", "destination"))
    runner = Runner(directory, [source, destination], options.minutes)
    result = {"rows": options.rows, "pairs": options.pairs, "cases": {}}
    try:
        for server in (source, destination):
            server.start()
        result["machine"] = machine(source)
        show(result["machine"])
        bench = Bench(source, destination, runner, binary, options.rows, directory)
        bench.given = options.binary is not None
        began = time.monotonic()
        bench.load(os.path.join(ROOT, "benches", "items.sql"))
        bench.read_only()
        size = source.psql("SELECT pg_size_pretty(pg_table_size('items'))")
        print(f"  items        {options.rows} rows, {size}, made in {time.monotonic() - began:.0f} s", flush=True)
        wrong = False
        for name in options.only or cases.ALL:
            case = cases.ALL[name](bench)
            found = result["cases"][name] = {}
            try:
                samples = run_case(case, options)
            except Wrong as error:
                print(f"  WRONG: {error}", flush=True)
                found["wrong"] = str(error)
                wrong = True
                continue
            found["samples"] = {who: [asdict(s) for s in runs] for who, runs in samples.items()}
            if not options.yardsticks:
                found["gates"] = judge(case, samples, options)
        result["machine"]["load after"] = " ".join(f"{x:.1f}" for x in os.getloadavg())
    finally:
        runner.stop_all()
        for server in runner.clusters:
            server.stop()
        # What was measured before an error is of use too.
        if options.json:
            with open(options.json, "w") as out:
                json.dump(result, out, indent=1)
    gates = [g for case in result["cases"].values() for g in case.get("gates", [])]
    failed = [g for g in gates if g["judged"] and not g["held"]]
    print(f"\n{len(gates)} gates, {len(failed)} failed" + (", a copy was WRONG" if wrong else ""))
    return 1 if failed or wrong else 0


def main():
    options = arguments()
    directory = tempfile.mkdtemp(prefix="synctool-bench-", dir=options.dir)
    # The servers' own user must reach their folders in it.
    os.chmod(directory, 0o711)
    try:
        return measure(options, directory)
    except Unmeasured as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.TimeoutExpired as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
