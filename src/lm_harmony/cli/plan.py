"""``lm-harmony plan``: the work of a study, its time by phase and term, and the constants behind them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from lm_harmony.cli.console import Format, say, show_rows
from lm_harmony.errors import counted
from lm_harmony.models.model_folder import shown_name
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.calibration import calibrate, smallest_run
from lm_harmony.studies.hardware import Hardware, hardware_named
from lm_harmony.studies.plan import ModelPlan, Plan
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.time_model import TERMS, add_phases, binding_term

OVERLAP = """\
time = fixed + Python + the longest of (launches), (FLOPs + attention), (steps):
these three overlap. Python: the host works and the device waits."""
CONTAINED = "The measured rates of FLOPs contain launches, attention and Python."
STEPS = "steps: each decoding step reads all weights and the cache."
FIXED = "fixed: loading models, reading rows, writing files."
"""Explanations below the table of times."""
CARDS = """\
Memory is an estimate, with the card otherwise empty. Gradient checkpointing is
counted with a third more training time. dtype and quantize are other recipes;
their hours are those of bfloat16. Several cards compute one after another, with
gradient checkpointing. Energy: the cards at their power limit for all hours,
without the host and without cooling."""
"""Assumptions below the table of cards."""


def check_cluster(address: str, runs: Sequence[RunLocation]) -> None:
    """Check that every run fits on some node of a Ray cluster; raises as ``ray_pool.nodes_for`` does."""
    from lm_harmony.studies.ray_pool import nodes_for  # Ray is an optional dependency

    nodes_for(address, runs)


def machine_of(hardware: str, specs: Sequence[RunSpec]) -> Hardware:
    """Return the speed of the named GPU, or of this machine for "here", measured on the smallest model."""
    return calibrate(smallest_run(specs)) if hardware == "here" else hardware_named(hardware)


def show_plan(plan: Plan, workers: int, format: Format = "table") -> None:
    """Print the work, the time by phase and term, and the constants of a study, for each model and in total.

    Args:
        plan: the cost of the study.
        workers: number of processes or GPUs that share it.
        format: "table", or a format for other programs, which has a row for each model.
    """
    missing = [f"not counted: {run}: {cause}" for run, cause in plan.missing.items()]
    if format != "table":
        show_rows([_figures(model, plan.hardware.name) for model in plan.models], format)
        say(*missing, stderr=True)
        return
    if plan.models:
        console = Console()  # wraps to the width of the terminal, or of COLUMNS in a pipe
        console.print(_work(plan))
        console.print(*_times(plan), sep="\n", markup=False, highlight=False)
        console.print(*_cards(plan), sep="\n", markup=False, highlight=False)
        console.print(_constants(plan.hardware, decoding="decoding" in plan.phases))
    runs = sum(model.runs for model in plan.models)
    total = f"{counted(runs, 'run')}, {_time(plan.hours)} for one worker"
    if workers > 1:
        total += f", {_time(plan.hours / workers)} for {workers} (if no worker is idle)"
    Console().print(f"{total}; {plan.disk_bytes / 2**30:.2f} GiB stay on disk.", markup=False, highlight=False)
    say(*missing)


def _figures(model: ModelPlan, hardware: str) -> dict[str, str | float]:
    """Return the work, the hours and the cards of a model, for other programs."""
    hours = {phase: one.seconds / 3600 for phase, one in model.phases.items()}
    work = {
        "parameters": model.size.parameters,
        "runs": model.runs,
        "training tokens": model.training_tokens,
        "scoring tokens": model.scoring_tokens,
        "decoding steps": model.decoding_steps,
        "FLOPs": model.flops,
        "memory in bytes": model.memory.total,
        "hours": model.hours,
        **{f"{phase} hours": hours.get(phase, 0.0) for phase in ("training", "scoring", "decoding", "fixed")},
    }
    cards = {card.card: card.way or "does not fit" for card in model.cards}
    return {"model": shown_name(model.model), "hardware": hardware, **work, "bound by": binding_term(model.phases)[0], **cards}


def _plan_table(title: str, *columns: str | Column) -> Table:
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _work(plan: Plan) -> Table:
    """Return a table of the computations of each model."""
    heads = ["weights", "runs", "training\ntokens", "scoring\ntokens", "FLOPs", "memory"]
    writes = any(model.decoding_steps for model in plan.models)
    heads += ["decoding\nsteps"] if writes else []
    table = _plan_table("Work", Column("model", overflow="fold"), *(Column(head, justify="right") for head in heads))
    for model in plan.models:
        table.add_row(
            shown_name(model.model),
            f"{model.size.parameters / 1e6:,.1f} M",
            f"{model.runs}",
            f"{model.training_tokens:,}",
            f"{model.scoring_tokens:,}",
            f"{model.flops:.3g}",
            f"{model.memory.total / 2**30:.1f} GiB",
            *([f"{model.decoding_steps:,}"] if writes else []),
        )
    return table


def _times(plan: Plan) -> Iterator[str]:
    """Yield the lines of a table that fits 80 columns: the time of each phase of each model, term by term."""
    unit, seconds = ("hours", 3600) if plan.hours >= 3 else ("minutes", 60) if plan.hours >= 0.05 else ("seconds", 1)
    terms = [term for term in TERMS if term in add_phases(plan.phases.values()).terms]
    yield f"Time on {plan.hardware.name}, in {unit}"
    widths = [max(7, len(_short(term))) + 1 for term in (*terms, "time")]

    def line(part: str, values: Iterable[str], bound: str) -> str:
        cells = (f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
        return f"  {part:8}{''.join(cells)}  {_short(bound)}"

    yield line("", [*map(_short, terms), "time"], "bound by")
    blocks = [(shown_name(model.model), model.phases) for model in plan.models]
    for name, phases in (*blocks, *([("All models", plan.phases)] if len(blocks) != 1 else [])):
        whole = add_phases(phases.values())
        term, share = binding_term(phases)
        yield f"{name}: {_figure(whole.seconds / seconds)} {unit}, bound by {term} ({share:.0%})"
        for part, one in (*phases.items(), ("all", whole)):
            values = [_figure(one.terms[term] / seconds) if term in one.terms else "" for term in terms]
            yield line(part, [*values, _figure(one.seconds / seconds)], one.bound_by)
    yield OVERLAP if plan.hardware.launch else CONTAINED
    yield from [STEPS] if "decoding steps" in terms else []
    yield from (FIXED, "")


def _cards(plan: Plan) -> Iterator[str]:
    """Yield lines that say for each model on which cards its runs fit, in which way, with hours and energy."""
    yield "Cards"
    for model in plan.models:
        yield from textwrap.wrap(f"{shown_name(model.model)}, one row in a pass: {model.memory.describe()}", 80)
        for one in model.cards:
            cost = "" if one.hours is None else f"  {_time(one.hours)}, {one.energy_kwh:.3g} kWh"
            memory = f"{one.capacity_bytes / 1e9:4.0f} GB  {one.way or 'does not fit':22}{one.memory_bytes / 1e9:7.1f} GB"
            yield f"  {one.card:8}{memory}{cost}"
    yield CARDS
    if plan.hardware.launch is None:
        yield "Hours and energy on a card: give its name as --hardware."
    yield ""


def _short(term: str) -> str:
    return term.replace("decoding steps", "steps")


def _constants(hardware: Hardware, *, decoding: bool) -> Table:
    """Return a table of the constants behind the time, each marked as measured or not."""
    table = _plan_table(
        "Constants behind time and memory", Column("", no_wrap=True), "term", Column("constant", justify="right"), "source"
    )
    for constant in hardware.constants(decoding=decoding):
        mark = "measured" if constant.measured else "not measured"
        table.add_row(mark, constant.name, _with_prefix(constant.value, constant.unit), constant.source)
    return table


def _with_prefix(value: float, unit: str) -> str:
    """Return a number with its unit, in thousands or thousandths of it where that is shorter: 9e-06, "s" -> 9 us."""
    scales = {"T": 1e12, "G": 1e9, "M": 1e6, "": 1.0, "m": 1e-3, "u": 1e-6}
    prefix = next((prefix for prefix, scale in scales.items() if value >= 0.9999 * scale), "u")
    return f"{value / scales[prefix]:.3g} {prefix}{unit}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
