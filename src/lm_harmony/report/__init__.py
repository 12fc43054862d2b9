"""Presentation of analyses: text tables, figures and the HTML page. Statistics come from lm_harmony.analysis."""
