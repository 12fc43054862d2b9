"""The process that executes runs: ``python -m lm_harmony.studies``.

The coordinator of the study writes one request a line to standard input (``messages``). The worker writes one answer a line to
standard output. When the coordinator ends, however it ends, the pipe closes and the worker ends after
its current operation.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from lm_harmony.engine.joint_training import JointRuns
from lm_harmony.engine.training import ByEpochs, alone
from lm_harmony.errors import DamagedFile, HarmonyError, NotCurrent
from lm_harmony.redaction import hide_secrets
from lm_harmony.runs.caches import DirectScoreCache, RunCaches
from lm_harmony.runs.protocol import add_direct_score, run_by_epochs
from lm_harmony.stop_signals import exit_status, raise_if_stopped, stop_on_signals, stopped_by
from lm_harmony.studies.hub_revisions import HubRevisions
from lm_harmony.studies.messages import LEASE_LOST, MemoryRequest, MemoryResult, Outcome, RunResult, decode_request, result_of
from lm_harmony.studies.plan import runs_fitting_in_memory
from lm_harmony.studies.run_location import RunLocation, remote_of

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Seconds after which a worker whose coordinator has ended is ended at once. Slurm and cloud machines allow 30."""


class RunExecutor:
    """Executes runs, one after another or jointly, and keeps the loaded model and the direct scores between them."""

    def __init__(self, caches: RunCaches | None = None) -> None:
        """Use ``caches``, or make them for the results of the first run."""
        self._caches = caches
        self._runs: JointRuns[RunLocation, RunResult] = JointRuns()

    def answer(self, request: str) -> str:
        """Return the encoded answer to an encoded request."""
        asked = decode_request(request)
        if isinstance(asked, MemoryRequest):
            return MemoryResult(runs_that_fit=_runs_that_fit(asked)).model_dump_json()
        runs = [one.run() for one in asked.runs]
        # A process with several runs in progress does not end when one of them has lost its lease, whose writes are refused.
        lost = _end_process if len(runs) == 1 and not self._runs else _go_on
        for run, one in zip(runs, asked.runs, strict=True):
            if run not in self._runs:
                self._runs.add(run, self._execute(run, one.abandoned, lost))
        ended, result = self._runs.advance()
        return result.model_copy(update={"place": runs.index(ended)}).model_dump_json()

    def execute(self, run: RunLocation) -> RunResult:
        """Execute a run alone and return how it ended. Whatever exception ends the run, the next one can be executed."""
        return alone(self._execute)(run, None, _end_process)

    def close(self) -> None:
        """End the runs in progress, so that they release their leases."""
        self._runs.close()

    def _execute(self, run: RunLocation, abandoned: str | None, lost: Callable[[], None]) -> ByEpochs[RunResult]:
        """Execute a run by epochs and return how it ended; the arguments are those of ``_complete``."""
        if self._caches is None:
            self._caches = RunCaches(direct_scores=DirectScoreCache(run.results_dir / "direct", remote_of(run.url)))
        try:
            yield from _complete(run, self._caches, abandoned, lost)
        except Exception as error:  # noqa: BLE001 - an unexpected error of one run must not end the others
            if not isinstance(error, HarmonyError):
                log.error("%s", traceback.format_exc())
            return result_of(error).model_copy(update={"loads": self._caches.model.loads})
        return RunResult(outcome=Outcome.FINISHED, loads=self._caches.model.loads)


def _complete(run: RunLocation, caches: RunCaches, abandoned: str | None, lost: Callable[[], None]) -> ByEpochs[None]:
    """Finish a run: start it, or resume it after its last finished epoch. Write failure.json if it cannot be finished.

    Args:
        run: the run.
        caches: the loaded model and the direct scores.
        abandoned: state of the run's lease that another process has watched for so long that it is free.
        lost: called when another process has taken the run over.

    Raises:
        LeaseHeld: another process executes the run now.
        HarmonyError: the run cannot be finished; failure.json holds the same message.
        DamagedFile: a file of the run's folder cannot be read. If that file is the record, failure.json is not written, because
            ``Study.status`` reports it.
        StoreUnavailable: the results cannot be written. failure.json is not written, and the finished epochs are kept.
    """
    spec = run.spec
    with run.leases.hold(run.name, lost=lost, abandoned=abandoned) as lease:
        store = replace(run.store, lease=lease)
        store.pull()
        state = run.state()
        if not state.readable:  # the file may be all that is left of the run, so it is not overwritten
            raise DamagedFile(str(state.reason))
        state = state.unless_moved(HubRevisions().moved(state.sources if state.finished else ()))
        if state.finished:
            return
        try:
            try:
                if not store.is_finished():
                    yield from run_by_epochs(spec, store, resume=True, caches=caches)
                elif state.reason is None:
                    add_direct_score(store, spec, caches)
                else:
                    raise NotCurrent(state.reason)
            except NotCurrent as error:
                log.info("%s: starting again from the first epoch: %s", run.name, error)
                yield from run_by_epochs(spec, store, overwrite=True, caches=caches)
        except HarmonyError as error:
            if result_of(error).outcome == Outcome.FAILED:
                run.write_failure(store, kind=type(error).__name__, cause=str(error), attempts=1)
            raise


def _end_process() -> None:
    """End this process, because another one has taken over its run. Its writes would be refused."""
    os._exit(LEASE_LOST)


def _go_on() -> None:
    """Let the other runs of this process go on. The run that has lost its lease ends at its next write."""


def _runs_that_fit(request: MemoryRequest) -> int:
    specs = request.run_specs()
    try:
        return runs_fitting_in_memory(specs, request.others)
    except HarmonyError:  # each run reports the error when it is executed
        return len(specs)


def main() -> None:
    """Answer the requests on standard input until it closes."""
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    # Libraries print to standard output. The answers go to a copy of it, and what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    hide_secrets()
    sys.stdout = sys.stderr
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    requests: queue.Queue[str] = queue.Queue()

    def read_requests() -> None:
        for line in sys.stdin:
            requests.put(line)
        # The coordinator has ended: release the lease after the current operation. The main thread is named, because a signal to
        # another thread would not wake it while it waits for a request.
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(0)

    main_thread, executor = threading.get_ident(), RunExecutor()
    stop_on_signals(once=True)  # Ctrl-C reaches this process before the coordinator asks it to end
    try:
        threading.Thread(target=read_requests, daemon=True).start()
        while True:
            raise_if_stopped()
            print(executor.answer(requests.get()), file=answers, flush=True)
    except KeyboardInterrupt:
        executor.close()
        log.info("stopped by %s", stopped_by())
        os._exit(exit_status())
