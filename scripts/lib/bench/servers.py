"""Two private PostgreSQL servers, found by the pid of their first process and stopped by it."""

import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time

from measure import TICK, Unmeasured, tail

PR_SET_PDEATHSIG = 1


def memory(name):
    with open("/proc/meminfo") as info:
        for line in info:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    raise Unmeasured(f"/proc/meminfo has no {name}")


def shared_buffers():
    return "1GB" if memory("MemAvailable") > 8 << 30 else "512MB"


SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": shared_buffers(),
    "wal_level": "logical",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    # Of all tables: a copy that somebody else makes cannot be told so before it is filled.
    "autovacuum": "off",
    # Or a subscription that is made soon after another waits five seconds before it begins.
    "wal_retrieve_retry_interval": "200ms",
}


def free_port():
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class Cluster:
    """One server with the database `bench`."""

    def __init__(self, name, directory, programs, more=None):
        self.name, self.programs, self.more = name, programs, more or {}
        self.directory = os.path.join(directory, name)
        self.log = os.path.join(self.directory, "server.log")
        # The server refuses to run as root.
        self.account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.process = self.port = None

    def program(self, name):
        path = os.path.join(self.programs, name)
        if os.path.exists(path):
            return path
        path = shutil.which(name)
        if path is None:
            raise Unmeasured(f"{name} is missing; install postgresql-client")
        return path

    def as_account(self):
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def start(self):
        os.mkdir(self.directory)
        if self.account:
            os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        initdb = [self.program("initdb"), "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
        made = subprocess.run(
            initdb, cwd=self.directory, capture_output=True, text=True, timeout=300, check=False, **self.as_account()
        )
        if made.returncode:
            raise Unmeasured(f"initdb failed\n{made.stderr}")
        for _ in range(5):
            self.port = free_port()
            self.launch()
            if self.answers():
                self.psql("CREATE DATABASE bench", database="postgres")
                return
        raise Unmeasured(f"the server {self.name} did not start\n{tail(self.log)}")

    def launch(self):
        settings = {**SETTINGS, **self.more, "port": self.port, "unix_socket_directories": ""}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.program("postgres"), "-D", "data", *words],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
                **self.as_account(),
            )

    def answers(self):
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            asked = subprocess.run(
                self.psql_command("SELECT 1", database="postgres"), capture_output=True, timeout=60, check=False
            )
            if asked.returncode == 0:
                return True
            time.sleep(0.1)
        return False

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)

    def url(self, database="bench"):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def psql_command(self, *statements, database="bench"):
        """Runs them in a session, each in a transaction of its own."""
        words = [word for sql in statements for word in ("-c", sql)]
        return [self.program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.url(database), *words]

    def psql(self, sql, database="bench", timeout=1800):
        done = subprocess.run(
            self.psql_command(sql, database=database), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise Unmeasured(f"{self.name}: {sql}\n{done.stderr}")
        return done.stdout.strip()

    def script(self, path, timeout=1800, **variables):
        words = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
        command = [self.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", *words, "-f", path, self.url()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise Unmeasured(f"{self.name}: {path}\n{done.stderr}")

    def cpu(self):
        """CPU seconds of the server so far: its first process, the children it has waited for, those that live."""
        total = 0
        for pid in [self.process.pid, *self.children()]:
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile: the parent's account has it
            total += sum(map(int, fields[11:15]))
        return total / TICK

    def children(self):
        pid = self.process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as children:
                return children.read().split()
        except OSError:
            return []
