"""What a Ray actor executes. Ray imports this module in the process of the actor."""

from lm_harmony.fast_imports import fast_imports

with fast_imports():
    from lm_harmony.studies.worker import RunExecutor


class RayExecutor(RunExecutor):
    """Executes runs as ``RunExecutor`` does, after faster imports."""
