"""A plan predicts the tokens and operations that runs then compute."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fork_server import forked_python
from micro import write_micro
from tiny import tiny_model, tiny_tokenizer, write_tiny_model
from transformers import LlamaConfig
from world import write_world

from lm_harmony.cli.plan import show_plan
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.errors import UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.preflight import GPUS
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.calibration import calibrate, next_rows, smallest_run
from lm_harmony.studies.cards import FITS, way_to_fit
from lm_harmony.studies.flops import TrainingWork, scoring_flops, training_flops
from lm_harmony.studies.hardware import HARDWARE, hardware_named
from lm_harmony.studies.local_pool import local_workers
from lm_harmony.studies.plan import make_plan
from lm_harmony.studies.study import Study
from lm_harmony.studies.workload import size_of, workload

RECIPE = Recipe(epochs=3, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model", chat=True))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=RECIPE,
        execution=Execution(device="cpu"),
    )


@pytest.mark.parametrize("change", ["unchanged", "completion only", "max steps", "chat", "all weights", "corpus"])
def test_tokens_are_predicted_exactly(spec: RunSpec, tmp_path: Path, change: str) -> None:
    (tmp_path / "corpus").mkdir()
    for role, texts in (("train", 12), ("validation", 3), ("test", 12)):  # the test texts need one, two or three windows
        lines = "\n\n".join(f"{role} {place}: " + "the quick brown fox; " * (8 * (place % 3 + 1)) for place in range(texts))
        (tmp_path / "corpus" / f"{role}.txt").write_text(lines)
    changed = {
        "unchanged": spec,
        "corpus": replace(spec, benchmark=BenchmarkSpec(task=f"corpus:{tmp_path / 'corpus'}")),
        "completion only": replace(spec, recipe=replace(RECIPE, completion_only=True, batch_size=5)),
        "max steps": replace(spec, recipe=replace(RECIPE, max_steps=6)),
        "chat": replace(spec, model=replace(spec.model, apply_chat_template=True)),
        "all weights": replace(spec, recipe=replace(RECIPE, lora=None)),
    }[change]
    planned = workload(changed, MemoryBudget())
    record = train_before_test(changed, RunStore(tmp_path / "run"))
    assert planned.training_tokens == record.costs["training_tokens"]
    assert planned.scoring_tokens == record.costs["scoring_tokens"]
    assert planned.test_rows == record.data.test == 12


def test_parameter_counts_are_read_without_loading_weights(spec: RunSpec) -> None:
    size, model = workload(spec, MemoryBudget()).size, tiny_model()
    assert size.parameters == model.module.num_parameters() and size.layers == 2
    assert size.computing == size.parameters - 2 * 300 * 32  # without input embedding and output layer
    with trainable(model, RECIPE, seed=0) as trainee:
        assert size.trained == sum(weight.numel() for weight in trainee.trained_parameters().values())
    assert size.adapted == 2 * 7  # q, k, v, o and three MLP projections
    assert (size.query_width, size.key_width, size.grouped) == (4 * 8, 2 * 8, True)
    assert workload(replace(spec, recipe=replace(RECIPE, lora=None)), MemoryBudget()).size.adapted == 0


def test_direct_scores_are_counted_once_for_all_seeds(tmp_path: Path) -> None:
    one, two = (
        Study.read(write_world(tmp_path / str(len(seeds)), models=["models/llama"], benchmarks=["fives.yaml"], seeds=seeds))
        for seeds in ([0], [0, 1])
    )
    plans = [make_plan(study.spec.runs, HARDWARE["h200"]).models[0] for study in (one, two)]
    without_direct = make_plan([replace(spec, direct=False) for spec in one.spec.runs], HARDWARE["h200"]).models[0]
    direct = plans[0].scoring_tokens - without_direct.scoring_tokens
    assert direct > 0
    assert plans[1].scoring_tokens == 2 * without_direct.scoring_tokens + direct


def test_direct_scores_with_examples_are_counted_for_each_seed(spec: RunSpec, tmp_path: Path) -> None:
    """Their tokens are those of the run itself; another seed draws other examples, and another recipe has the same."""
    few = replace(spec, direct=True, direct_fewshot=(0, 2))
    record = train_before_test(few, RunStore(tmp_path / "run"))
    [one] = make_plan([few], HARDWARE["h200"]).models
    assert one.scoring_tokens == record.costs["scoring_tokens"]
    [plain] = make_plan([replace(few, direct_fewshot=(0,))], HARDWARE["h200"]).models
    added = one.scoring_tokens - plain.scoring_tokens
    other = replace(few, recipe=replace(RECIPE, learning_rate=1.0))
    [both] = make_plan([few, other], HARDWARE["h200"]).models
    assert added > 0 and both.scoring_tokens == one.scoring_tokens + workload(spec, MemoryBudget()).scoring_tokens
    [seeds] = make_plan([few, replace(few, seed=1)], HARDWARE["h200"]).models
    assert seeds.scoring_tokens - both.scoring_tokens > added / 2


def test_a_run_that_cannot_be_counted_is_listed_as_missing(tmp_path: Path) -> None:
    study = Study.read(write_world(tmp_path, models=["models/llama", "no/model"], benchmarks=["fives.yaml"], seeds=[0]))
    plan = make_plan(study.spec.runs, HARDWARE["h200"])
    assert [model.runs for model in plan.models] == [1]
    (name,) = plan.missing
    assert "no/model" in name


def test_every_learning_rate_is_trained_and_validated(spec: RunSpec) -> None:
    several = replace(spec, recipe=replace(spec.recipe, learning_rate=(1e-4, 2e-4, 3e-4)))
    one, three = (workload(each, HARDWARE["h200"].memory_budget) for each in (spec, several))
    assert three.training == TrainingWork(**{name: 3 * count for name, count in asdict(one.training).items()})
    assert three.epochs == 3 * one.epochs and three.test == one.test and three.direct == one.direct
    assert calibrate(several, seconds=0.0).training.measured


def test_unknown_hardware_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'h200'"):
        hardware_named("H2O0")
    assert tuple(HARDWARE) == GPUS  # the names that are checked before torch is imported


def test_calibrate_measures_the_rates_of_this_machine(spec: RunSpec) -> None:
    here = calibrate(spec, seconds=2.0)
    assert 1e6 < here.training.value < 1e15 and 1e6 < here.scoring.value < 1e15 and here.weight_bytes == 4
    assert here.training.measured and here.scoring.measured and not here.decoding.measured
    plan = make_plan([spec], here)
    assert plan.hours < 0.1 and "not measured" not in "".join(one.source for one in here.constants(decoding=False))
    # The measured rates include launches and attention, which must not be counted a second time.
    load = workload(spec, here.memory_budget)
    flops = training_flops(load.size, load.training)
    scored = load.epochs * scoring_flops(load.size, load.validation) + scoring_flops(load.size, load.test)
    expected = flops / here.training.value + scored / here.scoring.value + here.run.value + here.load.value
    assert plan.hours * 3600 == pytest.approx(expected)


def test_the_command_prints_the_plan_in_80_columns(tmp_path: Path) -> None:
    path = write_world(tmp_path, models=["models/llama", "models/gpt2"], benchmarks=["fives.yaml"], seeds=[0])
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    command = [forked_python(environment), "-m", "lm_harmony.cli", "plan", str(path), "--hardware", "h200", "--workers", "8"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "2 runs" in shown and "llama" in shown and "All models" in shown and "bound by fixed" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("  training")] == ["launches"] * 3
    # Every constant is marked as measured or as not measured.
    starts = [line.strip() for line in shown.splitlines() if "measured" in line]
    assert [line.split("  ")[0] for line in starts].count("not measured") == len(HARDWARE["h200"].constants(decoding=False)) - 1
    assert [line.split("  ")[0] for line in starts].count("measured") == 1
    assert any(line.startswith("not measured  launches") and "9 us a kernel" in line for line in starts)
    assert "decoding" not in shown  # this study generates no text


def test_the_plan_marks_measured_and_unmeasured_constants(spec: RunSpec, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(make_plan([spec], calibrate(spec, seconds=0.0)), workers=1)
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    marks = {line[14:29].strip(): line[:13].strip() for line in shown if line.startswith((" measured", " not measured"))}
    assert marks == {
        "training": "measured",
        "scoring": "measured",
        "fixed, model": "measured",
        "fixed, run": "not measured",
        "memory": "not measured",
    }
    assert any("launches, attention and Python" in line for line in shown)


def test_the_plan_prints_runs_that_cannot_be_counted(spec: RunSpec, capsys: pytest.CaptureFixture[str]) -> None:
    missing = replace(spec, benchmark=replace(spec.benchmark, data_dir=Path("nowhere")))
    plan = make_plan([missing], HARDWARE["h200"])
    show_plan(plan, workers=1)
    assert f"not counted: {next(iter(plan.missing))}" in capsys.readouterr().out


@pytest.mark.usefixtures("forked_workers")
def test_the_number_of_workers_is_limited_by_the_memory_of_the_largest_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (huge := tmp_path / "huge").mkdir()
    config = LlamaConfig(hidden_size=131_072, intermediate_size=524_288, num_hidden_layers=4, vocab_size=300)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(huge)  # 1.1 trillion weights would need 4.4 terabytes
    tiny_tokenizer().save_pretrained(huge)
    small, large = (
        Study.read(write_world(tmp_path / str(number), models=models, benchmarks=["fives.yaml"], seeds=[0, 1]))
        for number, models in enumerate((["models/llama"], ["models/llama", str(huge)]))
    )
    with caplog.at_level("WARNING", logger="lm_harmony"):
        pools = [local_workers(2, study.runs) for study in (small, large)]
    for worker in (worker for pool in pools for worker in pool):
        worker.stop()
    assert [len(pool) for pool in pools] == [2, 1]
    assert [record.message for record in caplog.records if "1 worker instead of 2:" in record.message]


def test_the_time_of_a_calibration_is_limited(tmp_path: Path) -> None:
    """The next measurement starts only if it ends in time even when it takes as many times longer as it has more rows."""
    assert next_rows(1, last=0.5, left=20.0) == 8
    assert next_rows(8, last=4.0, left=9.0) == 16
    assert next_rows(8, last=4.0, left=7.9) is None
    rows, spent, last = 1, 0.0, 1.0
    while rows is not None:
        spent += last
        following = next_rows(rows, last=last, left=30.0 - spent)
        last, rows = last * (following or 0) / rows, following
    assert spent <= 30.0


def test_the_smallest_model_of_a_study_is_measured(spec: RunSpec, tmp_path: Path) -> None:
    large = replace(spec, model=ModelSpec(name=str(write_config(tmp_path / "large", 1_024))))
    unreadable = replace(spec, model=ModelSpec(name=str(tmp_path / "nothing")))
    assert smallest_run([large, unreadable, spec]) == spec


def write_config(folder: Path, hidden: int) -> Path:
    """Write configuration and tokenizer of a model without its weights."""
    folder.mkdir()
    config = LlamaConfig(hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=hidden // 160, vocab_size=300)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_each_card_gets_the_first_way_in_which_the_run_fits(spec: RunSpec, tmp_path: Path) -> None:
    small = workload(spec, HARDWARE["h200"].memory_budget)
    assert way_to_fit(small, int(24e9))[0] == FITS
    load = replace(small, size=size_of(ModelSpec(name=str(write_config(tmp_path / "seven", 4_096))), spec.recipe), longest=1_000)
    weights = 2 * load.size.parameters
    assert 11e9 < weights < 24e9
    ways = [way_to_fit(load, int(capacity))[0] for capacity in (141e9, 1.8 * weights, 1.3 * weights, 0.7 * weights, 1e9)]
    assert ways[0] == FITS and ways[1:3] == ["smaller passes", "gradient checkpointing"]
    assert str(ways[3]).startswith("quantize") and ways[4] is None
    spread = replace(load, spec=replace(spec, execution=Execution(device_map="auto")))
    assert [way_to_fit(spread, int(capacity))[::2] for capacity in (1.3 * weights, 0.7 * weights)] == [
        ("gradient checkpointing", 1),
        ("2 cards", 2),
    ]
    everything = replace(load, spec=replace(spec, recipe=replace(RECIPE, lora=None)))
    assert way_to_fit(everything, int(weights))[0] is None  # all weights cannot be trained in quantized form


def test_hours_and_energy_are_given_for_every_card_that_holds_the_run(spec: RunSpec) -> None:
    [model] = make_plan([spec], HARDWARE["h200"]).models
    assert [card.card for card in model.cards] == list(HARDWARE)
    for card in model.cards:
        power = HARDWARE[card.card].power
        assert power is not None and card.hours is not None and card.energy_kwh == card.hours * power.value / 1000
    here = make_plan([spec], calibrate(spec, seconds=0.0)).models[0]
    assert all(card.way == FITS and card.hours is None for card in here.cards)  # its passes are those of a CPU
