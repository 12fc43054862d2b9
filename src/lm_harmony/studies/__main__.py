"""`python -m lm_harmony.studies`: the process that executes runs, which the worker pool starts."""

from lm_harmony.fast_imports import fast_imports

with fast_imports():
    from lm_harmony.studies.worker import main

main()
