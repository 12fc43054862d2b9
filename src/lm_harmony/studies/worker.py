"""Where a run of a study is carried out: a process that takes runs from its coordinator until that one is gone.

The coordinator starts ``python -m lm_harmony.studies.worker`` and writes one JSON line an run; the worker answers each
with one line. It may first be asked how many such runs the memory of its device holds at once. When the coordinator ends, however
it ends, its pipe closes and the worker ends at once: nobody works unseen.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lm_harmony.errors import DamagedFile, HarmonyError, NotCurrent, StoreError
from lm_harmony.runs.caches import DirectScoreCache, RunCaches
from lm_harmony.runs.protocol import add_direct, train_before_test
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.hub_revisions import HubRevisions
from lm_harmony.studies.lease import LeaseHeld, lease, remote_lease
from lm_harmony.studies.plan import runs_fitting_in_memory
from lm_harmony.studies.run_location import RunLocation, record_failure, remote_of

log = logging.getLogger(__name__)

HELD_PAUSE = 1.0
"""Seconds before the answer that another study holds a run."""


def complete(run: RunLocation, caches: RunCaches) -> None:
    """Finish a run: begin it, or go on after its last finished epoch; record why it cannot be done.

    Raises:
        LeaseHeld: another study works on it now.
        HarmonyError: it cannot be done; failure.json says so too.
        DamagedFile: a file of its folder cannot be read. Of a record that cannot, ``Study.status`` tells: nothing is written.
        StoreError: the disk is full or gone; nothing is recorded, what was finished stays.
    """
    spec, store = run.spec, run.store
    with _leased(run):
        store.pull()
        state = run.state()
        if not state.readable:  # it may be all that is left of the run
            raise DamagedFile(str(state.reason))
        state = state.unless_moved(HubRevisions().moved(state.sources if state.finished else ()))
        if state.finished:
            return
        try:
            try:
                if not store.is_finished():
                    train_before_test(spec, store, resume=True, caches=caches)
                elif state.reason is None:
                    add_direct(store, spec, caches)
                else:
                    raise NotCurrent(state.reason)
            except NotCurrent as error:
                log.info("%s: carried out again from its beginning: %s", run.name, error)
                train_before_test(spec, store, overwrite=True, caches=caches)
        except HarmonyError as error:
            if isinstance(error, StoreError) and not isinstance(error, DamagedFile):
                raise
            record_failure(run, kind=type(error).__name__, cause=str(error), attempts=1)
            raise


def _leased(run: RunLocation) -> AbstractContextManager[None]:
    remote = run.store.remote
    if remote is None:
        return lease(run.store.folder, lost=_leave)
    return remote_lease(remote, run.name, lost=_leave)


def _leave() -> None:
    """End this process: another one has taken its run over, and what it writes from here on would spoil that run."""
    os._exit(3)


def caches_for(results_dir: Path, url: str | None) -> RunCaches:
    """Return what the runs of one process hand on to one another."""
    return RunCaches(direct_scores=DirectScoreCache(results_dir / "direct", remote_of(url)))


def execute(run: RunLocation, caches: RunCaches) -> dict[str, Any]:
    """Carry out a run and say how it went: {"outcome": finished | failed | held | no room, ...}."""
    try:
        complete(run, caches)
        said: dict[str, Any] = {"outcome": "finished"}
    except LeaseHeld:
        time.sleep(HELD_PAUSE)  # whoever sent this run will send it again
        said = {"outcome": "held"}
    except HarmonyError as error:
        disk = isinstance(error, StoreError) and not isinstance(error, DamagedFile)
        said = {"outcome": "no room" if disk else "failed", "kind": type(error).__name__, "cause": str(error)}
    except Exception as error:  # noqa: BLE001 - the study's edge: one run's surprise must not cost the others
        log.error("%s", traceback.format_exc())
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        outcome = "no room" if full else "surprised"
        said = {"outcome": outcome, "kind": type(error).__name__, "cause": str(error)}
    return {**said, "loads": caches.model.loads}


def _fitting(specs: list[dict[str, Any]]) -> dict[str, int]:
    try:
        return {"fitting": runs_fitting_in_memory([RunSpec.from_dict(spec) for spec in specs])}
    except HarmonyError:  # each run will say so itself
        return {"fitting": len(specs)}


def main() -> None:
    """Take runs from standard input until it closes."""
    # Libraries print to standard output; the coordinator's line is caches apart from that.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    waiting: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)  # the coordinator is gone

    threading.Thread(target=listen, daemon=True).start()
    caches: RunCaches | None = None
    while True:
        asked = json.loads(waiting.get())
        if "fitting" in asked:
            print(json.dumps(_fitting(asked["fitting"])), file=replies, flush=True)
            continue
        spec, results_dir = RunSpec.from_dict(asked["spec"]), Path(asked["results_dir"])
        caches = caches or caches_for(results_dir, asked["url"])
        run = RunLocation(spec=spec, results_dir=results_dir, url=asked["url"])
        print(json.dumps(execute(run, caches)), file=replies, flush=True)


if __name__ == "__main__":
    main()
