"""Time the leaderboard command, the page command, and the first view of the page in a browser; or make the pictures in docs/.

    python -m bench.board --runs 5
    python -m bench.board --images docs/images --demo results/demo/board.html

Each command runs in a new process, and its time includes the start-up. The browser opens the file without a cache. The pictures
are the published board (board-published.png) and the page that `lm-harmony demo` wrote (board-demo.png), at 1440 x 900.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import tyro
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

from lm_harmony.benchmarks.catalogue import BENCHMARKS

VISIBLE = """
    new MutationObserver((_, observer) => {
        if (document.documentElement?.dataset.ready !== "true") return;
        observer.disconnect();
        // The second frame begins when the first, which has the table, was painted.
        requestAnimationFrame(() => requestAnimationFrame(() => { globalThis.tableVisible = performance.now(); }));
    }).observe(document, { subtree: true, attributes: true, childList: true });
"""
"""JavaScript that records when the table was visible, in milliseconds after the start of the navigation."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of this benchmark."""

    runs: int = 5
    """Timed repetitions after one warm-up."""
    models: int = 1_000
    """Number of models of the large board, whose scores are made up."""
    images: Path | None = None
    """Folder for pictures of the pages; nothing is timed then."""
    demo: Path = Path("results/demo/board.html")
    """Page that the demo wrote, for its picture."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of one measurement."""

    what: str
    """Description of the timed work."""
    median: float
    """Median of the timed repetitions."""
    low: float
    """Shortest of the timed repetitions."""
    high: float
    """Longest of the timed repetitions."""
    aim: float | None
    """Target in seconds, or None."""


def main(flags: Flags) -> None:
    """Time everything and print a table and one JSON line, or write the pictures."""
    if flags.images is not None:
        write_images(flags.images, flags.demo)
        return
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        small, large = Path(folder, "small.html"), Path(folder, "large.html")
        scores = write_made_up_scores(Path(folder, "scores.csv"), flags.models)
        wide = f"{flags.models:,} x {len(BENCHMARKS)}"
        rows = [
            timed("leaderboard --published", lambda: command("leaderboard", "--published"), flags.runs, 2),
            timed("page, 61 x 24", lambda: command("page", "--published", "-o", str(small)), flags.runs, 5),
            timed("first view, 61 x 24", lambda: first_view(browser, small), flags.runs, 1),
            timed(f"page, {wide}", lambda: command("page", str(scores), "-o", str(large)), min(flags.runs, 3), None),
            timed(f"first view, {wide}", lambda: first_view(browser, large), flags.runs, None),
        ]
        sizes = {"61 x 24": small.stat().st_size, wide: large.stat().st_size}
        show(rows, sizes, browser.version)


def timed(what: str, once: Callable[[], float], runs: int, aim: float | None) -> Timed:
    """Run once to warm up, then time ``runs`` repetitions."""
    taken = [once() for _ in range(runs + 1)][1:]
    return Timed(what=what, median=statistics.median(taken), low=min(taken), high=max(taken), aim=aim)


def command(*words: str) -> float:
    """Run lm-harmony in a new process and return its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lm_harmony.cli", *words], check=True, capture_output=True)
    return time.perf_counter() - started


def first_view(browser: Browser, path: Path) -> float:
    """Open a page without a cache and return the seconds until its table was visible."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(VISIBLE)
    page.goto(path.as_uri())
    page.wait_for_function("globalThis.tableVisible")
    seconds = page.evaluate("tableVisible") / 1_000
    context.close()
    return float(seconds)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


DRAWN = "html[data-ready] body:not(:has(article[id^=chart-]:not([hidden]):not([data-drawn])))"
"""Selector that exists when every chart of a page is drawn."""


def write_images(folder: Path, demo: Path) -> None:
    """Write the first screen of the published board and of the demo's page as PNG files with 128 colours."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        published = Path(scratch, "published.html")
        command("page", "--published", "-o", str(published))
        for name, source in (("board-published", published), ("board-demo", demo)):
            page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
            page.goto(source.resolve().as_uri())
            page.wait_for_selector(DRAWN)
            # The default method would merge the colours of small dots with grey.
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)
            picture.save(folder / f"{name}.png", optimize=True)
            print(f"{folder / name}.png: {(folder / f'{name}.png').stat().st_size / 1000:.0f} kB")
            page.close()


def write_made_up_scores(path: Path, models: int) -> Path:
    """Write made-up direct and trained scores of models, with standard errors."""
    draw = random.Random(0)
    lines = ["model,benchmark,preparation,score,stderr,count"]
    for number in range(models):
        for task in BENCHMARKS:
            for preparation, lowest in (("direct", 0.2), ("trained", 0.4)):
                score = min(1.0, max(0.0, lowest + 0.5 * number / models + draw.gauss(0, 0.05)))
                lines.append(f"lab{number % 12}/model-{number},{task},{preparation},{score:.4f},0.0100,2000")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def show(rows: list[Timed], sizes: dict[str, int], browser: str) -> None:
    """Print the table and the JSON line."""
    table = Table("what", "median (s)", "min - max", "aim", title="The board")
    for row in rows:
        table.add_row(
            row.what, f"{row.median:.2f}", f"{row.low:.2f} - {row.high:.2f}", "" if row.aim is None else f"< {row.aim:g}"
        )
    for what, size in sizes.items():
        table.add_row(f"size, {what}", f"{size / 1e6:.2f} MB", "", "< 6 MB")
    Console(width=110).print(table)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "chromium": browser}
    print(
        json.dumps(
            {
                "bench": "board",
                "date": date.today().isoformat(),
                "machine": machine,
                "rows": [asdict(row) for row in rows],
                "bytes": sizes,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Flags))
