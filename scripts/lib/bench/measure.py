"""Running commands and weighing them: wall time, CPU, memory, and what a set of pairs says about a ratio."""

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from math import comb

TICK = os.sysconf("SC_CLK_TCK")


class Unmeasured(Exception):
    """Something could not be measured at all; no verdict is given."""


class Wrong(Exception):
    """A copy differs from its source."""


@dataclass
class Sample:
    """What one run took."""

    wall: float
    cpu: float  # user + system of the client processes
    rss: int  # bytes, the largest client process
    servers: float = 0.0  # CPU of both servers meanwhile
    others: float = 0.0  # cores that programs outside this benchmark kept busy meanwhile


@dataclass
class Interval:
    """A median and between which two values it lies with the confidence given."""

    median: float
    low: float
    high: float
    confidence: float


def interval(values):
    """The median's interval by order statistics, at 95 % or as near as so few values come."""
    ordered = sorted(values)
    n = len(ordered)

    def coverage(k):  # of the k-th smallest to the k-th largest
        return 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n

    k = 1
    while k + 1 <= n // 2 and coverage(k + 1) >= 0.95:
        k += 1
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k], max(coverage(k), 0))


def machine_busy():
    """CPU seconds that all cores together were busy since boot, without steal and guest time."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


@dataclass
class Process:
    """A started process with the file its words went to."""

    command: list
    popen: subprocess.Popen
    log: str
    usage: object = None
    status: int = None


class Runner:
    """Starts commands in a directory of its own and waits for them, never longer than until the deadline."""

    def __init__(self, directory, clusters, minutes):
        self.directory = directory
        self.clusters = clusters
        self.end = time.monotonic() + minutes * 60
        self.running = []
        self.started = 0

    def left(self):
        left = self.end - time.monotonic()
        if left <= 0:
            raise Unmeasured("the time set by --minutes is over")
        return left

    def start(self, command, env=None, cwd=None, stdin=subprocess.DEVNULL, stdout=None):
        """`stdout`: a pipe or file; left out, output goes to the log."""
        self.started += 1
        log = os.path.join(self.directory, f"command-{self.started}.log")
        with open(log, "wb") as err:
            popen = subprocess.Popen(
                command, env={**os.environ, **(env or {})}, cwd=cwd, stdin=stdin, stdout=stdout or err, stderr=err
            )
        process = Process(command, popen, log)
        self.running.append(process)
        return process

    def wait(self, processes):
        """Waits for all; a failure or the deadline ends the benchmark with the command's own words."""
        waiting = list(processes)
        while waiting:
            for process in list(waiting):
                pid, status, usage = os.wait4(process.popen.pid, os.WNOHANG)
                if pid:
                    self.reaped(process, status, usage)
                    waiting.remove(process)
                    if process.status != 0:
                        raise Unmeasured(f"{describe(process.command)} exited with {process.status}\n{tail(process.log)}")
            if waiting:
                self.left()
                time.sleep(0.002)

    def reaped(self, process, status, usage):
        process.usage = usage
        process.status = process.popen.returncode = os.waitstatus_to_exitcode(status)
        self.running.remove(process)

    def kill(self, process):
        """kill -9, and wait until it is gone."""
        process.popen.kill()
        _, status, usage = os.wait4(process.popen.pid, 0)
        self.reaped(process, status, usage)

    def stop_all(self):
        for process in list(self.running):
            self.kill(process)

    def measure(self, work):
        """Calls `work`, which returns the processes it waited for, and weighs it."""
        servers = sum(c.cpu() for c in self.clusters)
        busy, own = machine_busy(), own_cpu()
        began = time.monotonic()
        processes = work()
        wall = time.monotonic() - began
        cpu = sum(p.usage.ru_utime + p.usage.ru_stime for p in processes)
        rss = max(p.usage.ru_maxrss for p in processes) * 1024
        servers = sum(c.cpu() for c in self.clusters) - servers
        # The clients are our children: once waited for, they are part of our own account.
        others = machine_busy() - busy - servers - (own_cpu() - own)
        return Sample(wall, cpu, rss, servers, max(others, 0) / wall)


def own_cpu():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def describe(command):
    text = " ".join(str(word) for word in command)
    return text if len(text) < 300 else text[:300] + " …"


def tail(path, lines=15):
    try:
        with open(path, errors="replace") as log:
            return "".join(log.readlines()[-lines:]).rstrip()
    except OSError:
        return ""


@dataclass
class Gate:
    """A limit on what was measured. It fails only if the whole interval lies beyond it."""

    what: str
    unit: str
    limit: float
    values: list = field(default_factory=list)

    def verdict(self):
        found = interval(self.values)
        return found, found.low <= self.limit
