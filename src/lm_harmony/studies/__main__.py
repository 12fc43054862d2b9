"""`python -m lm_harmony.studies`: the process that executes runs, which the worker pool starts."""

import gc

gc.disable()  # collections take a third of the time in which the libraries are imported, and find nothing
from lm_harmony.studies.worker import main  # noqa: E402

gc.freeze()
gc.enable()
main()
