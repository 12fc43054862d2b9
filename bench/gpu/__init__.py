"""The steps of ``bench/gpu_day.py``, each of which runs in a separate process."""
