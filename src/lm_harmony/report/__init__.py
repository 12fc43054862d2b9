"""Knowledge -> pictures and pages. No statistics are made here: they come from lm_harmony.analysis."""
