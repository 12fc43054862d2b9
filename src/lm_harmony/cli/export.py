"""``lm-harmony export``: the scores of finished runs in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm_harmony.cli.console import say
from lm_harmony.errors import UsageError, counted
from lm_harmony.runs.preflight import check_folder

_MOST_LEFT_OUT = 10


def export(
    results: Annotated[Path, tyro.conf.Positional],
    /,
    to: Literal["csv", "parquet", "lm_eval", "every-eval-ever", "hub"],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("export"),
    organization: str | None = None,
    pull_request: bool = False,
    push_adapter: str | None = None,
    private: bool = False,
) -> bool:
    """Write the scores of finished runs in the format of another tool. Runs whose files have changed since are left out.

    The exit status is 1 if nothing was written.

    Example: `lm-harmony export results --to csv`

    Args:
        results: a folder of runs.
        to: csv and parquet: one table with a row for each score. lm_eval: the files of `lm_eval --output_path`. every-eval-ever:
            records of Every Eval Ever, schema 0.3.0. hub: .eval_results/<benchmark>.yaml for the repository of each model.
        output: folder for the files; those of an earlier export are overwritten.
        organization: who publishes the scores, for every-eval-ever.
        pull_request: with --to hub, open a pull request with the files in the repository of each model.
        push_adapter: with --to hub, upload the adapter of one run with its card and record to this repository, ORG/NAME.
        private: with --push_adapter, a new repository is private.
    """
    check_folder("output", output)
    of_hub = {"pull_request": pull_request, "push_adapter": push_adapter, "private": private}
    for name, given in {**of_hub, "organization": organization}.items():
        if given and to != (wanted := "hub" if name in of_hub else "every-eval-ever"):
            raise UsageError(f"{name} is for --to {wanted}, and --to is {to}. Change one of them.")
    if private and push_adapter is None:
        raise UsageError("private is for a new repository. Add --push_adapter ORG/NAME, or remove it.")
    from lm_harmony.report import upload
    from lm_harmony.report.export import export as write

    if push_adapter is not None:
        upload.check_repository("push_adapter", push_adapter)
    written = write(results, output, to, organization=organization)
    say(*written.left_out[:_MOST_LEFT_OUT], stderr=True)
    more = len(written.left_out) - _MOST_LEFT_OUT
    if more > 0:
        say(f"{more} more are left out", stderr=True)
    say(f"{counted(len(written.files), 'file')} in {output}")
    if pull_request:
        for model, url in upload.propose_scores(output, written.files):
            say(f"{model}: {url}")
    if push_adapter is not None:
        say(upload.push_adapter(results, push_adapter, private=private))
    return bool(written.files) or push_adapter is not None
