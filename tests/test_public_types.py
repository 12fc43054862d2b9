"""The public names are typed: a program that uses all of them passes ``mypy --strict``, and a misuse of one does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """\
from pathlib import Path

from lm_harmony import (
    BenchmarkSpec,
    Caps,
    HarmonyError,
    Lora,
    ModelSpec,
    Prompt,
    Recipe,
    RunRecord,
    RunSpec,
    RunStore,
    ScoreMatrix,
    Study,
    evaluate,
    fine_tune,
    load_model,
    train_before_test,
)

recipe = Recipe(epochs=1, lora=Lora(r=4))
model = load_model("folder", device="cpu")
losses: list[float] = [epoch.loss for epoch in fine_tune(model, [("a", " b")], recipe, output_dir="out")]
rows = {"train": [{"text": "a"}], "test": [{"text": "b"}]}
try:
    record: RunRecord = evaluate(model, (rows, {"task": "mine"}), recipe, caps=Caps(train=8), results_dir=Path("results"))
except HarmonyError as error:
    raise SystemExit(str(error)) from error
if record.trained is not None:
    accuracy: float = record.trained.metrics["acc,none"]
asked = Prompt(system_instruction="Be brief.", max_gen_toks=64)
spec = RunSpec(model=ModelSpec(name="folder"), benchmark=BenchmarkSpec(task="arc_easy"), recipe=recipe, prompt=asked)
again: RunRecord = train_before_test(spec, RunStore(Path("results/again")))
records: list[RunRecord] = list(Study.read(Path("study.yaml")).records())
names: list[str] = list(ScoreMatrix.published().model_names)
"""
MISUSES = {
    "evaluate('folder', 'arc_easy', sed=1)": "call-arg",
    "evaluate(3, 'arc_easy')": "arg-type",
    "evaluate('folder', 'arc_easy').trianed": "attr-defined",
    "Recipe(epochs='many')": "arg-type",
    "next(fine_tune(load_model('folder'), 'text')).los": "attr-defined",
    "Study.read(Path('study.yaml')).run(workers='two')": "arg-type",
    "lm_harmony.evalute('folder', 'arc_easy')": "attr-defined",
}


def check(folder: Path, text: str) -> str:
    """Return the output of ``mypy --strict`` for a program."""
    (folder / "program.py").write_text(text, encoding="utf-8")
    # In a process of its own: mypy changes what the garbage collector leaves out, and so makes all later tests slower.
    words = ["-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict", str(folder / "program.py")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_program_that_uses_every_name_passes_and_every_misuse_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert check(tmp_path, PROGRAM).startswith("Success")
    start = PROGRAM.index("recipe = Recipe")
    output = check(tmp_path, "\n".join(["import lm_harmony", PROGRAM[:start], *MISUSES]) + "\n").splitlines()
    first = PROGRAM[:start].count("\n") + 3
    for line, code in enumerate(MISUSES.values(), start=first):
        assert [one for one in output if f"program.py:{line}: error:" in one and f"[{code}]" in one], (line, output)


def test_the_program_uses_every_name() -> None:
    import lm_harmony

    assert [name for name in lm_harmony.__all__ if PROGRAM.count(name) < 2] == []
