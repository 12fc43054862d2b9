"""``python -m tests.chaos --minutes 10 --seed 0``: faults at random moments on a small study, until the time is over.

A study of eight runs is executed again and again, by one or two commands at once: first with its results in a folder, then on S3
behind a proxy that spoils requests, and in longer runs also on a Ray cluster. A random generator with the given seed chooses what
happens and when: SIGKILL, SIGTERM, SIGSTOP, SIGCONT, a full disk, a read-only file system, damaged files, failing requests. Each
part ends without faults. The records and the score matrix must equal those of a study that nothing disturbed.

The processes are forked (``fork_server``), so that a killed worker is replaced in a fraction of a second. Where this user may not
mount file systems, the disk is never full or read-only.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "studies"), str(HERE.parent / "src")]

import yaml  # noqa: E402
from fork_server import forked_python  # noqa: E402
from s3 import BUCKET, KEYS, client, keys, s3_server  # noqa: E402
from s3_proxy import CLIENT, FaultyProxy  # noqa: E402
from world import write_world  # noqa: E402

from lm_harmony.analysis.matrix import ScoreMatrix  # noqa: E402
from lm_harmony.runs.lease import Holder  # noqa: E402
from lm_harmony.runs.record import RunRecord  # noqa: E402
from lm_harmony.runs.remote import RemoteSync  # noqa: E402
from lm_harmony.studies.run_location import remote_of  # noqa: E402
from lm_harmony.studies.study import Study  # noqa: E402

WORLD = {
    "models": ["models/llama", "models/gpt2"],
    "benchmarks": ["parity.yaml", "threes.yaml"],
    "recipe": {"epochs": 6, "learning_rate": 0.01, "lora": {"target_modules": ["all-linear"]}},
}
KINDS = {
    "SIGKILL of a worker": 4,
    "SIGKILL of a command": 1,
    "SIGTERM of a command": 1,
    "SIGSTOP of a worker": 2,
    "second command": 1,
    "damaged file": 2,
}
NEED_MOUNT = {"full disk": 1, "read-only file system": 1}
"""Faults, with how often they happen relative to each other."""
KINDS_ON_RAY = {"SIGKILL of a worker": 1}
"""Faults of the part on a Ray cluster. A command that is killed would leave a worker that has taken seconds to start."""
RAY_SLOWER = 5
"""By how much longer the time between two faults is on Ray, so that workers finish epochs in between."""
URL = f"s3://{BUCKET}/results"
FAULTY_REQUESTS = 0.05
"""Share of the requests to S3 that meet a fault."""
SHARES = {"folder": 5, "S3": 3}
"""Parts, with how long each one takes relative to the others."""
MINUTES_FOR_RAY, SHARE_OF_RAY = 5.0, 2
"""The part on a Ray cluster is left out of shorter runs, because the cluster takes half a minute to start."""
SUSPENDED = (0.2, 1.0, 3.0)
"""Seconds for which a process is stopped."""
SUSPENDED_LONG = 170.0
"""Seconds within which another process takes the run of a stopped one over. It watches the lease for 120 seconds."""
Check = Counter[str]


class Chaos:
    """The study, the commands that execute it now, and what has happened to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the study below ``folder`` and execute it once without faults."""
        self.draw, self.happened, self.bad = random.Random(seed), Check(), Check()
        self.results, self.disk = folder / "disk" / "results", folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        self.file = write_world(folder, **WORLD, results_dir=str(self.results))
        self.open = ExitStack()
        self.s3 = self.open.enter_context(s3_server())
        self.proxy = self.open.enter_context(FaultyProxy(self.s3, seed=seed))
        given = {**os.environ, **KEYS, **CLIENT, "AWS_MAX_ATTEMPTS": "3", "LM_HARMONY_CACHE_DIR": str(self.disk / "cache")}
        self.environment = {**given, "AWS_ENDPOINT_URL": self.proxy.url}
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": self.s3, "LM_HARMONY_CACHE_DIR": str(folder / "cache")}  # of the checks
        self.url, self.kinds, self.options = "", KINDS | (NEED_MOUNT if self.mounted else {}), list[str]()
        self.python, self.log = forked_python(self.environment), folder / "log.txt"
        self.commands: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[int, tuple[float, Path, str]] = {}
        self.left: dict[Path, str] = {}
        self.overtaken: set[str] = set()
        self.long = 0
        self.drawn = ""
        self.records: dict[str, bytes] = {}
        started = time.monotonic()
        self.start()
        self.commands[0].wait()
        self.wait = (time.monotonic() - started) / 6  # most seconds between two faults: a run may be finished in between
        self.expected, self.matrix = self.finished(), ScoreMatrix.from_records(self.results)
        assert len(self.expected) == len(Study.read(self.file).runs), self.log.read_text()
        self.remove_results()

    def start(self) -> None:
        """Start a command that continues the study."""
        words = [self.python, "-m", "lm_harmony.cli", "study", str(self.file), "--workers", "1", "--retry-failed"]
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [*words, *self.options], stdout=log, stderr=log, cwd=self.file.parent, env=self.environment
            )
        self.commands.append(started)

    def finished(self) -> dict[tuple[str, str, int], RunRecord]:
        """Return the records of all finished runs."""
        study = Study.read(self.file)
        records = [run.store.record() for run in study.status().finished]
        return {(record.spec.model.name, record.benchmark, record.spec.seed): record for record in records}

    def contents(self, name: str) -> dict[str, bytes]:
        """Return the content of every file of the results with this name, by its path."""
        found = {}
        if self.url:
            for key in [key for key in keys(self.s3) if key.endswith(f"/{name}")]:
                found[key] = client(self.s3).get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for path in () if self.url else find(self.results, name):
            with suppress(OSError):
                found[str(path)] = path.read_bytes()
        return found

    def remove_results(self) -> None:
        """Remove the results and the working copies, for the next study."""
        for key in keys(self.s3):
            client(self.s3).delete_object(Bucket=BUCKET, Key=key)
        for folder in (self.results, Path(os.environ["LM_HARMONY_CACHE_DIR"])):
            shutil.rmtree(folder, ignore_errors=True)
        remote_of.cache_clear()

    def leases(self) -> dict[Path, Holder]:
        """Return the holders of all leases, ended ones included."""
        found = {}
        for path in find(self.results, ".*.lease"):
            with suppress(OSError):
                found[path] = Holder.read(path.read_text())
        return found

    def holders(self) -> list[tuple[Path, int, str]]:
        """Return the leases whose process runs, each with process and token of its holder."""
        running = [(path, holder) for path, holder in self.leases().items() if holder.process_status() != "ended"]
        return [(path, holder.pid, holder.token) for path, holder in running if holder.pid]

    def look(self) -> None:
        """Check that no record changed, and that no epoch of a run is there twice. Count leases that were taken over."""
        records = self.contents("record.json")
        for name, content in records.items():
            if self.records.setdefault(name, content) != content:
                self.bad["changed"] += 1
        self.bad["lost"] += len(self.records.keys() - records.keys())
        for content in self.contents("epochs.jsonl").values():
            self.bad["doubled"] += doubled(content.decode(errors="replace"))
        tokens = {path: holder.token for path, holder in self.leases().items()}
        for path, token in [*self.left.items()]:
            if tokens.get(path, token) != token:
                self.happened["takeovers"] += 1
                self.overtaken.add(token)
                del self.left[path]
                for pid, (_, where, stopped) in self.stopped.items():
                    if (where, stopped) == (path, token):
                        self.stopped[pid] = time.monotonic() + 1, path, token

    def wake(self, *, all_of_them: bool = False) -> None:
        """Continue the processes whose time is over."""
        for pid, (until, _, token) in [*self.stopped.items()]:
            if all_of_them or time.monotonic() > until:
                del self.stopped[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    self.happened["SIGCONT after the run was taken over"] += token in self.overtaken

    def kill_all(self) -> None:
        """End all commands, and their workers, at once."""
        self.wake(all_of_them=True)
        for command in self.commands:
            command.kill()
            command.wait()
        self.commands.clear()
        while holders := self.holders():
            for _, pid, _ in holders:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def fault(self) -> None:
        """Let one fault happen. A fault of a worker is put off while no worker holds the lease of a run."""
        kind = self.drawn or self.draw.choices([*self.kinds], [*self.kinds.values()])[0]
        holders = [holder for holder in self.holders() if holder[1] not in self.stopped and "direct" not in holder[0].parts]
        running = [command for command in self.commands if command.poll() is None]
        self.drawn = kind if kind.endswith("worker") and not holders else ""
        if self.suspended_long():
            if len(running) == 1:
                self.start()  # one command waits for its stopped worker, and the other one watches the lease
        elif kind.endswith("worker") and holders:
            path, pid, token = self.draw.choice(holders)
            seconds = self.draw.choice(SUSPENDED)
            if "STOP" in kind and self.long > 0:
                self.long, seconds = self.long - 1, SUSPENDED_LONG
            self.left[path] = token
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if "STOP" in kind else signal.SIGKILL)
                self.happened[kind + (" on Ray" if self.options else "")] += 1
                if "STOP" in kind:
                    self.stopped[pid] = time.monotonic() + seconds, path, token
        elif kind.endswith("of a command") and running:
            self.draw.choice(running).send_signal(signal.SIGKILL if "KILL" in kind else signal.SIGTERM)
            self.happened[kind] += 1
        elif kind == "second command" and len(running) == 1:
            self.start()
            self.happened[kind] += 1
        elif kind == "damaged file":
            self.kill_all()
            self.happened[kind] += damage(self.results, self.draw)
        elif kind == "full disk":
            self.fill()
            self.happened[kind] += 1
        elif kind == "read-only file system":
            self.kill_all()
            self.happened[kind] += self.read_only()

    def suspended_long(self) -> bool:
        """Return whether a process is stopped until its run is taken over. Nothing else happens meanwhile."""
        return any(until - time.monotonic() > max(SUSPENDED) for until, _, _ in self.stopped.values())

    def fill(self) -> None:
        """Leave no room on the disk for some seconds."""
        with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(self.draw.uniform(0.2, 1.5))
        (self.disk / "filler").unlink()

    def read_only(self) -> bool:
        """Start the study on a read-only file system, which must end it with one line; return whether it was read-only."""
        remount, end = ["mount", "-o", "remount,ro", str(self.disk)], time.monotonic() + 5
        while subprocess.run(remount, capture_output=True).returncode != 0:  # a killed process still writes
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        self.start()
        self.bad["not refused on a read-only file system"] += self.commands.pop().wait() != 1
        subprocess.run(["mount", "-o", "remount,rw", str(self.disk)], check=True)
        return True

    def compare(self) -> None:
        """Compare the finished study with the one that nothing disturbed, and remove its results."""
        self.look()
        found = self.finished()
        self.bad["lost"] += len(self.expected.keys() - found.keys())
        self.bad["different"] += sum(found[name] != self.expected[name] for name in found.keys() & self.expected.keys())
        self.bad["doubled"] += sum(len({e.epoch for e in record.epochs}) != len(record.epochs) for record in found.values())
        self.bad["doubled"] += len(self.contents("record.json")) != len(self.expected)
        self.bad["matrix"] += not equal(
            ScoreMatrix.from_records(RemoteSync(URL).folder if self.url else self.results), self.matrix
        )
        self.bad["tracebacks"] += self.log.read_text(errors="replace").count("Traceback")
        self.happened["studies"] += 1
        self.remove_results()
        self.records.clear()
        self.left.clear()

    def run(self, minutes: float) -> None:
        """Let faults happen in each part until its time is over, and then let its study end without any."""
        parts = SHARES | ({"Ray": SHARE_OF_RAY} if minutes >= MINUTES_FOR_RAY else {})
        for part, share in parts.items():
            own = minutes * share / sum(parts.values())
            self.long = int(own // 3) if part == "folder" else 0
            if part == "S3":
                self.use_s3()
            elif part == "Ray":
                self.use_ray()
            self.run_part(own)

    def use_s3(self) -> None:
        """Move the results of the study behind the proxy. Their working copy is on the disk that may be full."""
        study = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        self.file = self.file.with_name("on_s3.yaml")
        self.file.write_text(yaml.safe_dump({**study, "results_dir": URL}), encoding="utf-8")
        self.url, self.folder_of_results = URL, self.results
        self.results = self.disk / "cache" / RemoteSync(URL).folder.name
        self.proxy.rate = FAULTY_REQUESTS

    def use_ray(self) -> None:
        """Let a Ray cluster execute the study, whose results are in a folder again."""
        from ray.cluster_utils import Cluster  # imports for seconds

        self.proxy.rate, self.url, self.results = 0.0, "", self.folder_of_results
        self.file, self.kinds = self.file.with_name("study.yaml"), KINDS_ON_RAY
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 4 << 30, "include_dashboard": False})
        self.open.callback(cluster.shutdown)
        self.options, self.wait = ["--ray", cluster.address], RAY_SLOWER * self.wait

    def run_part(self, minutes: float) -> None:
        """Let faults happen until the time is over, and then let the study end without any."""
        end, next_fault, next_look = time.monotonic() + 60 * minutes, 0.0, 0.0
        while time.monotonic() < end:
            running = [command for command in self.commands if command.poll() is None]
            if not running:
                if len(self.finished()) == len(self.expected):
                    self.compare()
                self.commands.clear()
                self.start()
            if time.monotonic() > next_fault:
                self.fault()
                next_fault = time.monotonic() + (0.0 if self.drawn else self.draw.uniform(0.1, self.wait))
            self.wake()
            if time.monotonic() > next_look:
                self.look()
                next_look = time.monotonic() + (1.0 if self.url else 0.1)
            time.sleep(0.1)
        self.kill_all()
        self.proxy.rate = 0.0
        self.start()
        self.commands[0].wait()
        self.compare()

    def close(self) -> None:
        """End all processes and unmount the disk."""
        self.kill_all()
        self.open.close()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose name matches; folders that disappear meanwhile are left out."""
    return [Path(root) / name for root, _, names in os.walk(folder) for name in fnmatch.filter(names, pattern)]


def doubled(lines: str) -> int:
    """Return how many epochs are not later than the one before them; lines that are no JSON are left out."""
    epochs = []
    for line in lines.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            epochs.append(int(json.loads(line)["epoch"]))
    return sum(later <= earlier for earlier, later in itertools.pairwise(epochs))


def equal(one: ScoreMatrix, other: ScoreMatrix) -> bool:
    """Return whether two matrices hold the same scores and errors to the last digit."""
    pairs: list[tuple[Any, Any]] = [(one.scores(kind), other.scores(kind)) for kind in ("direct", "trained")]
    return all(a.values.equals(b.values) and a.stderrs.equals(b.stderrs) for a, b in pairs)


def damage(results: Path, draw: random.Random) -> bool:
    """Remove, cut or change a file of an unfinished run; return whether there was one."""
    names = ("epochs.jsonl", "direct.json", "config.yaml", "optimizer.safetensors", "adapter_model.safetensors")
    runs = [path.parent for path in find(results, "config.yaml") if not (path.parent / "record.json").exists()]
    files = sorted(path for run in runs for path in find(run, "*") if path.name in names)
    if not files:
        return False
    path, how = draw.choice(files), draw.choice(("remove", "cut", "change"))
    content = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        content[draw.randrange(len(content))] ^= 0x55
        path.write_bytes(content)
    return True


def main() -> int:
    """Print what happened; the exit status is 1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="minutes with faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), given.seed)
        try:
            chaos.run(given.minutes)
        finally:
            chaos.close()
        chaos.happened |= {f"S3: {fault}": times for fault, times in chaos.proxy.counts.items()}
        for what, times in sorted(chaos.happened.items()):
            print(f"{times:6} {what}")
        bad = {what: times for what, times in chaos.bad.items() if times}
        if bad:
            print(chaos.log.read_text(errors="replace")[-5000:])
        print(f"{bad.get('lost', 0)} lost, {bad.get('doubled', 0)} doubled, matrix {'different' if 'matrix' in bad else 'equal'}")
        print(*(f"{times} {what}" for what, times in bad.items()), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
