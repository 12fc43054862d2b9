"""The steps of ``bench/gpu_day.py``, each run in a process of its own."""
