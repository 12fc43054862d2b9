"""What every test session says about itself."""

from __future__ import annotations

from shared import DATA


def pytest_report_header() -> str:
    """Say whether the tests on real rows run or are skipped."""
    return f"real benchmark rows in ../shared/data: {'present, their tests run' if DATA.is_dir() else 'absent, their tests skip'}"
