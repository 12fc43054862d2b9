"""Measurements side by side: ``python -m bench.scoring`` and its like print one table and one JSON line each.

They need a real model folder and real rows: ``--model models/SmolLM2-135M-Instruct --data ../shared/data``.
"""
