"""Benchmarks of speed: ``python -m bench.scoring`` and the other modules print one table and one JSON line each.

They need a model folder and benchmark rows: ``--model models/SmolLM2-135M-Instruct --data ../shared/data``.
"""
