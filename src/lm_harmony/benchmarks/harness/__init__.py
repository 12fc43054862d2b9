"""The only importer of lm_eval: its tasks, their documents, requests, filters and metrics.

lm_eval defines what is asked and how an answer is counted; this room calls lm_eval's own code for both, so that equal replies
give equal scores. What it leaves out is lm_eval's task index (16 s), its request cache (keyed without model and split) and its
few-shot documents (the protocol is zero-shot; materialising 392,702 of them takes longer than scoring).
"""

from lm_harmony.benchmarks.harness.task import HarnessTask, open_task
from lm_harmony.benchmarks.harness.task_file import Role

__all__ = ["HarnessTask", "Role", "open_task"]
