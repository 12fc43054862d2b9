"""``lm-harmony submit`` and ``lm-harmony board add``: a run as one file, and a board that grows by such files."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lm_harmony.cli.console import say
from lm_harmony.errors import HarmonyError, UsageError, counted
from lm_harmony.fast_imports import fast_imports
from lm_harmony.runs.conflicts import refuse_other_files
from lm_harmony.runs.preflight import check_folder, check_request, check_results_folder
from lm_harmony.runs.shots import shots_of

if TYPE_CHECKING:
    from lm_harmony.report.submission import Submission
    from lm_harmony.runs.record import RunRecord
    from lm_harmony.runs.spec import RunSpec

SHARE = 0.1
"""Share of the test rows that are scored again."""
MOST_DIFFERING = 0.02
"""Largest share of these whose outcome may differ: other kernels can turn answers that are nearly tied. One always may."""

_OF_RESCORE = ("model", "adapter", "data_dir", "include_path", "allow_task_code", "trust_remote_code")
"""Flags that have an effect with --rescore only."""


def submit(
    results: Annotated[Path, tyro.conf.Positional],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("submissions"),
    name: str | None = None,
) -> None:
    """Pack finished runs, each into one file that `lm-harmony board add` checks and adds to another board.

    Example: `lm-harmony submit results/arc_easy/my--model/seed0-0123456789abcdef`

    Args:
        results: the folder of a run, or a folder of runs.
        output: folder for the files.
        name: name of the model on boards, such as ORG/MODEL; default: its name on the hub, or its folder's name.
    """
    check_folder("output", output)
    if not results.is_dir():
        wrong = "is a file" if results.exists() else "does not exist"
        raise UsageError(f"results: {results} {wrong}. Give the folder of a run, or of runs.")
    from lm_harmony.analysis.load_records import find_runs
    from lm_harmony.report.shown_names import NAME_FORM, is_name
    from lm_harmony.report.submission import pack, plan_files

    if name is not None and not is_name(name):
        raise UsageError(f"name = {name!r} is no name for a board. Its form is {NAME_FORM}.")
    planned = plan_files(find_runs(results), output, name)
    if not planned:
        raise UsageError(f"results: no finished run lies below {results}. Give the folder of a run, or of runs.")
    for path, (store, record) in planned.items():
        sha256 = pack(store, record, path, name)
        say(f"{path}", f"  SHA-256 {sha256}: send it on another way, so that the receiver can check the file.")


@dataclass(frozen=True, kw_only=True)
class BoardFlags:
    """Flags of ``lm-harmony board``."""

    results: Path = Path("results")
    """Results folder of the board."""
    sha256: str | None = None
    """SHA-256 that the file must have, if there is one file."""
    rescore: bool = False
    """Score a random tenth of the test rows again, and refuse a run whose outcomes differ."""
    model: str | None = None
    """Folder of the model on this machine, for --rescore; default: the model's name on the hub."""
    adapter: Path | None = None
    """Folder of the trained weights, for --rescore; without it only the untouched model is scored."""
    data_dir: Path | None = None
    """Folder with <task>/{train,validation,test}.jsonl, for --rescore."""
    include_path: Path | None = None
    """Folder with task files, for --rescore."""
    allow_task_code: bool = False
    """Let Python code of a task run that lm_eval does not ship, for --rescore."""
    trust_remote_code: bool = False
    """Let code of the model's repository run, for --rescore."""


def board(
    action: Annotated[Literal["add"], tyro.conf.Positional],
    submissions: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    flags: Annotated[BoardFlags, tyro.conf.arg(name="")],
) -> bool:
    """Check submitted runs and add them to a results folder. The exit status is 1 if one of them was refused.

    Example: `lm-harmony board add run.zip --results results --rescore`

    Args:
        action: what to do with the files.
        submissions: files that `lm-harmony submit` wrote.
        flags: where the board is, and what is scored again.
    """
    check_results_folder(flags.results)
    if not submissions:
        raise UsageError("submissions is missing. Give at least one file that `lm-harmony submit` wrote.")
    if flags.sha256 is not None and len(submissions) > 1:
        raise UsageError(f"sha256 is that of one file, and {len(submissions)} are given. Add them one by one.")
    _check_rescore_flags(flags)
    from lm_harmony.report.added_runs import add
    from lm_harmony.report.submission import open_submission

    refused = 0
    for path in submissions:
        try:
            with TemporaryDirectory() as folder:
                found = open_submission(path, Path(folder), flags.sha256)
                spec = found.record.spec
                say(f"{path}: {spec.model.name} on {found.record.benchmark}, seed {spec.seed}", *_told(found))
                if flags.rescore:
                    _rescore(found, _spec_here(found.record, flags), flags.adapter)
                say(f"  added: {add(found, flags.results)}")
        except HarmonyError as error:
            say(f"lm-harmony: {error}", stderr=True)
            refused += 1
    return not refused


def _told(found: Submission) -> Iterator[str]:
    yield f"  SHA-256 {found.sha256}"
    yield f"  follow from the outcomes: {', '.join(found.recomputed) or 'no scores'}"
    if found.unknown:
        yield f"  not computed again, because the metric is of another kind: {', '.join(found.unknown)}"


def _check_rescore_flags(flags: BoardFlags) -> None:
    """Refuse flags without --rescore, and folders that do not exist."""
    given = [name for name in _OF_RESCORE if getattr(flags, name)]
    if given and not flags.rescore:
        raise UsageError(f"{given[0]} is for --rescore. Add --rescore, or remove --{given[0]}.")
    for name in ("adapter", "data_dir", "include_path"):
        folder = getattr(flags, name)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{name} = {folder} is not a folder. Give the folder on this machine, or leave out --{name}.")
    model = Path(flags.model or ".")
    on_hub = len(model.parts) == 2 and not model.is_absolute() and not model.parent.is_dir()
    if not model.is_dir() and not on_hub:
        raise UsageError(f"model = {model} is not a folder. Give the model's folder on this machine, or its name on the hub.")


def _spec_here(record: RunRecord, flags: BoardFlags) -> RunSpec:
    """Return the submitted specification with this machine's files, and without code that only its sender allowed.

    Raises:
        UsageError: a file of the submitted run does not exist here, or another one is in its place.
    """
    from lm_harmony.runs.spec import Execution

    spec = record.spec
    asked, train_on = spec.benchmark, spec.benchmark.train_on
    if (
        flags.model is None
        and "/" not in spec.model.name
        and any(one.kind == "model" and one.path for one in record.sources or ())
    ):
        raise UsageError(f"model is missing: {spec.model.name} was a folder of the sender. Add --model with its folder here.")
    here = replace(
        spec,
        model=replace(spec.model, name=flags.model or spec.model.name, trust_remote_code=flags.trust_remote_code),
        benchmark=replace(
            asked,
            task=_task_here(asked.task, flags.include_path),
            train_on=None if train_on is None else _task_here(train_on, flags.include_path),
            data_dir=flags.data_dir,
            include_path=flags.include_path,
        ),
        execution=Execution(allow_task_code=flags.allow_task_code),
    )
    try:
        check_request(here)
    except UsageError as error:  # which names the flag of `lm-harmony run`
        raise UsageError(str(error).replace("task_name", "the task of the run", 1)) from error
    refuse_other_files(record, here)
    return here


def _task_here(task: str, include_path: Path | None) -> str:
    """Return a task, with its path on this machine if it is a file."""
    if not task.endswith((".yaml", ".yml")):
        return task
    path = Path(task) if include_path is None else include_path / Path(task).name
    if not path.is_file():
        raise UsageError(f"include_path: the task of the run is the file {task}. Give --include_path the folder that holds it.")
    return str(path)


def _rescore(found: Submission, spec: RunSpec, adapter: Path | None) -> None:
    """Score a random tenth of the test rows again.

    Raises:
        UsageError: the adapter has other files than the submitted run's, or too many outcomes differ.
    """
    from lm_harmony.cli.console import quiet_libraries
    from lm_harmony.runs.tested_weights import weights_of

    if adapter is not None and (not found.manifest.adapter or weights_of(adapter) != found.manifest.adapter):
        raise UsageError(f"adapter: the files in {adapter} are not those of the submitted run. Ask its sender for them.")
    weights = {"trained": adapter}
    asked = [name for name in found.record.scores if name != "trained" or adapter is not None]
    if not asked:
        raise UsageError("adapter is missing: the run has no direct score, and its trained score needs the trained weights.")
    quiet_libraries()
    with fast_imports():
        from lm_harmony.runs.rescoring import score_part_again

    seed = secrets.randbelow(2**32)  # nobody can know before which rows are chosen
    for name in asked:
        samples = found.store.samples("test" if name == "trained" else name)
        shots = shots_of(name) or 0
        again = score_part_again(found.record, spec, samples, shots=shots, weights=weights.get(name), share=SHARE, seed=seed)
        told = (
            f"{name}: {counted(again.documents, 'test row')} scored again (seed {seed}), {again.differing} with another outcome, "
            f"log-likelihoods differ by at most {again.largest:.2g}"
        )
        if again.differing > max(1, MOST_DIFFERING * again.documents):
            raise UsageError(f"{told}. The run is refused.")
        say(f"  {told}")
    if "trained" in found.record.scores and adapter is None:
        say("  the trained score was not checked by scoring, because --adapter is not given")


COMMANDS = (submit, board)
"""Commands of this module, in the order of --help."""
