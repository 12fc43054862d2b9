"""lm_eval's tasks: their documents, requests, filters and metrics.

lm_eval defines the requests and the scoring. The harness calls lm_eval's own code for both, so that equal replies give equal
scores. It does not use lm_eval's task index (16 s), its request cache (keyed without model and split) or its few-shot documents:
the protocol is zero-shot, and building 392,702 of them takes longer than scoring.
"""

from lm_harmony.benchmarks.harness.group import Benchmark, open_benchmark, open_task
from lm_harmony.benchmarks.harness.task import HarnessTask

__all__ = ["Benchmark", "HarnessTask", "open_benchmark", "open_task"]
