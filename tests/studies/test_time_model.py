"""Time model of plans: each term computed by hand, counts compared with the engine, and the binding term."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import write_micro
from operators import Operators, deep_model, training_step
from tiny import write_tiny_model

from lm_harmony.benchmarks.types import Request
from lm_harmony.cli.plan import show_plan
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED
from lm_harmony.engine.continuous_batching import decode_greedily
from lm_harmony.engine.forward import prefix_tree_logprobs
from lm_harmony.engine.layout import concatenated_layout
from lm_harmony.engine.length_groups import MAX_GROUPS
from lm_harmony.engine.memory import (
    CPU_SCORING_TOKENS,
    GPU_GENERATION_ROWS,
    GPU_SCORING_TOKENS,
    GPU_TRAINING_TOKENS,
    MemoryBudget,
)
from lm_harmony.engine.model_size import ModelSize
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import TrainState
from lm_harmony.engine.training import _backward, micro_batches
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.studies.calibration import measured_here
from lm_harmony.studies.flops import (
    DecodingWork,
    ScoringWork,
    TrainingWork,
    attention_flops,
    decoding_operators,
    generation_flops,
    loglikelihood_flops,
    scoring_operators,
    training_flops,
    training_operators,
)
from lm_harmony.studies.hardware import HARDWARE, Constant
from lm_harmony.studies.plan import ModelPlan, Plan, model_plan
from lm_harmony.studies.time_model import (
    Phase,
    add_phases,
    binding_term,
    decoding_phase,
    overlapped,
    scoring_phase,
    training_phase,
)
from lm_harmony.studies.workload import Workload, _decoding_work, size_of, workload

SIZE = ModelSize(parameters=5_000, computing=3_000, output=1_000, trained=100, layers=2, adapted=4, query_width=8, key_width=4)
H200 = HARDWARE["h200"]
ALL_LINEAR = Recipe(lora=Lora(target_modules=("all-linear",)))


def load_of(size: ModelSize, training: TrainingWork, test: ScoringWork | None = None) -> Workload:
    """Return the workload of a run with one epoch and without validation."""
    spec = RunSpec(model=ModelSpec(name="some"), benchmark=BenchmarkSpec(task="some"))
    nothing = ScoringWork(tokens=0)
    return Workload(
        spec=spec,
        size=size,
        training=training,
        training_rows=1,
        epochs=1,
        validation=nothing,
        test=test or nothing,
        direct={},
        test_rows=1,
        text_bytes=0,
    )


# Each term computed by hand.


def test_flops_equal_the_values_computed_by_hand() -> None:
    training = TrainingWork(tokens=10, labels=3)
    assert training_flops(SIZE, training) == 10 * (4 * 3_000 + 6 * 100) + 3 * 4 * 1_000
    assert training_flops(replace(SIZE, adapted=0), training) == 10 * 6 * 3_000 + 3 * 8 * 1_000
    assert loglikelihood_flops(SIZE, ScoringWork(tokens=50, computed=20, predicted=7)) == 20 * 2 * 3_000 + 7 * 2 * 1_000
    assert generation_flops(SIZE, DecodingWork(contexts=20, tokens=6)) == 26 * 2 * 3_000 + 6 * 2 * 1_000


def test_attention_flops_equal_the_values_computed_by_hand() -> None:
    # The forward pass has two matrix products of 2 x 8 FLOPs for each pair and layer. The backward pass has five.
    assert attention_flops(SIZE, 10) == 2 * 2 * 8 * 2 * 10
    assert attention_flops(SIZE, 10, training=True) == 7 * 2 * 8 * 2 * 10


def test_operator_counts_equal_the_values_computed_by_hand() -> None:
    # 3 passes of (31 + 2 layers of 104 + 4 adapters of 13), 5 calls of 2 in 2 layers, 2 steps of 12.
    assert training_operators(SIZE, TrainingWork(passes=3, calls=5, steps=2)) == 3 * (31 + 208 + 52) + 20 + 24
    shared = training_operators(SIZE, TrainingWork(passes=3, calls=5, steps=2), joint=4)  # four runs share each pass
    assert shared == (3 * (31 + 208 + 52) + 20) / 4 + 24
    # Without an adapter, each layer has 22 more operators.
    assert training_operators(replace(SIZE, adapted=0), TrainingWork(passes=1)) == 31 + 2 * 126
    # 2 passes of (33 + 2 layers of 42), 7 calls in 2 layers, 3 masks of 10 and, with grouped heads, 2 repeats in 2 layers.
    scoring = ScoringWork(tokens=0, passes=2, calls=7, masks=3)
    assert scoring_operators(SIZE, scoring) == 2 * (33 + 84) + 14 + 3 * (10 + 4)
    assert scoring_operators(replace(SIZE, key_width=8), scoring) == 2 * (33 + 84) + 14 + 3 * 10
    # 1 pass over contexts and 9 steps of (30 + 2 layers of 40).
    assert decoding_operators(SIZE, DecodingWork(passes=1, steps=9)) == 10 * (30 + 80)


def test_training_seconds_equal_the_values_computed_by_hand() -> None:
    training = TrainingWork(tokens=10, labels=3, steps=2, passes=3, calls=5, pairs=40)
    terms = training_phase(load_of(SIZE, training), H200).terms
    assert terms == pytest.approx(
        {
            "launches": (3 * 291 + 20 + 24) * 1.25 * 9e-6,
            "FLOPs": (126_000 + 12_000) / (0.45 * 989e12),
            "attention": 7 * 2 * 8 * 2 * 40 / (0.2 * 989e12),
        }
    )


def test_scoring_seconds_equal_the_values_computed_by_hand() -> None:
    phase = scoring_phase(SIZE, ScoringWork(tokens=50, computed=20, predicted=7, passes=2, calls=7, masks=3, pairs=30), H200)
    launches = (2 * 117 + 14 + 42) * 1.25 * 9e-6
    assert phase.terms == pytest.approx(
        {
            "launches": launches,
            "Python": 20 * 2.0e-6,
            "FLOPs": (120_000 + 14_000) / (0.55 * 989e12),
            "attention": 4 * 8 * 2 * 30 / (0.2 * 989e12),
        }
    )
    assert phase.seconds == pytest.approx(launches + 20 * 2.0e-6)  # Python time is added, arithmetic overlaps with launches


def test_decoding_seconds_equal_the_values_computed_by_hand() -> None:
    decoding = DecodingWork(contexts=20, tokens=6, passes=1, steps=9, pairs=60, cached=50)
    terms = decoding_phase(SIZE, ScoringWork(tokens=20, decoding=decoding), H200).terms
    assert terms == pytest.approx(
        {
            "launches": 10 * 110 * 1.25 * 9e-6,
            "Python": 6 * 2.3e-6,
            "FLOPs": (156_000 + 12_000) / (0.55 * 989e12),
            "attention": 4 * 8 * 2 * 60 / (0.2 * 989e12),
            # 4,000 weights nine times, and keys and values of 50 positions in 2 layers once, of 2 bytes each.
            "decoding steps": 2 * (9 * 4_000 + 50 * 2 * 4 * 2) / (0.7 * 4.8e12),
        }
    )


def test_the_longest_of_the_overlapping_terms_determines_the_time() -> None:
    terms = {"launches": 5.0, "Python": 1.0, "FLOPs": 3.0, "attention": 1.5, "decoding steps": 4.0}
    assert (overlapped(terms).seconds, overlapped(terms).bound_by) == (6.0, "launches")
    computing = overlapped({**terms, "FLOPs": 4.0})
    assert (computing.seconds, computing.bound_by) == (6.5, "FLOPs")  # FLOPs and attention do not overlap
    reading = overlapped({**terms, "decoding steps": 8.0})
    assert (reading.seconds, reading.bound_by) == (9.0, "decoding steps")
    both = add_phases([overlapped(terms), reading])
    assert both.seconds == 15.0 and both.terms["launches"] == 10.0
    assert both.deciding == {"launches": 5.0, "Python": 2.0, "decoding steps": 8.0}


def test_measured_rates_include_launches_attention_and_python() -> None:
    here = measured_here(
        training=1e9, answering=2e9, scores=True, writes=False, load_seconds=3.0, budget=MemoryBudget(), weight_bytes=4
    )
    scoring = ScoringWork(tokens=50, computed=20, predicted=7, passes=2, calls=7, pairs=30)
    plan = model_plan(
        "some", [load_of(SIZE, TrainingWork(tokens=10, labels=3, steps=2, passes=3, calls=5, pairs=40), scoring)], here
    )
    assert add_phases(plan.phases.values()).terms == pytest.approx({"FLOPs": 138_000 / 1e9 + 134_000 / 2e9, "fixed": 1.0 + 3.0})


# Counts compared with the engine.


def size_in_memory(model: LanguageModel, adapted: int) -> ModelSize:
    """Return a model size with the layers and adapters of ``model``."""
    return replace(SIZE, layers=model.module.config.num_hidden_layers, adapted=adapted, key_width=8)


@pytest.mark.parametrize("lengths", [[20, 21, 22, 23, 24, 25, 26, 27], [20] * 8], ids=["eight lengths", "one length"])
@pytest.mark.parametrize("adapted", ["q, v", "all linear", "all weights"])
def test_planned_operators_of_a_training_step_are_within_10_percent(lengths: list[int], adapted: str) -> None:
    recipe, linear = {"q, v": (Recipe(), 2), "all linear": (ALL_LINEAR, 7), "all weights": (Recipe(lora=None), 0)}[adapted]
    model = deep_model()
    masks = 2 * 6 * linear  # on a CPU, NumPy computes the masks
    counted = training_step(model, recipe, lengths).total() + masks
    training = TrainingWork(steps=1, passes=1, calls=min(MAX_GROUPS, len(set(lengths))))
    assert training_operators(size_in_memory(model, 6 * linear), training) == pytest.approx(counted, rel=0.1)


def test_planned_operators_are_wrong_for_another_architecture() -> None:
    """Negative control: the planned count is that of a Llama model, so it is too high for GPT-NeoX."""
    model = deep_model("gpt_neox")
    counted = training_step(model, Recipe(), [20] * 8).total()
    planned = training_operators(size_in_memory(model, 6), TrainingWork(steps=1, passes=1, calls=1))
    assert 0.5 < counted / planned < 0.8


@pytest.mark.parametrize("branches", [1, 3])
def test_planned_operators_of_a_scoring_pass_are_within_10_percent(branches: int) -> None:
    model = deep_model()
    texts = [
        TokenSequence(ids=(100 + tree, *range(7, 47 + 8 * tree), last, last + 1), first_label=42 + 8 * tree)
        for tree in range(8)
        for last in range(20, 20 + branches)
    ]
    with torch.no_grad(), PACKED.active(model.module), Operators() as operators:
        prefix_tree_logprobs(model.module, texts)
    scoring = ScoringWork(tokens=0, passes=1, calls=MAX_GROUPS, masks=MAX_GROUPS if branches > 1 else 0)
    assert operators.attention_calls == MAX_GROUPS * 6
    assert scoring_operators(size_in_memory(model, 12), scoring) == pytest.approx(operators.seen.total(), rel=0.1)


def test_planned_passes_and_operators_of_generated_answers_are_those_of_the_engine() -> None:
    model, limit = deep_model(), 5
    budget = MemoryBudget(generation_rows=2)
    requests = [
        Request(kind="generate_until", context=context, continuation="", generation={"max_gen_toks": limit})
        for context in ("the quick brown fox jumps", "the quick brown fox", "is this the city", "the dog", "Q: what", "yes no")
    ]
    context_tokens, decoding = _decoding_work(model, requests, Recipe(), budget)
    contexts = sorted((model.text.encode([request.context])[0] for request in requests), key=len, reverse=True)
    with torch.no_grad(), Operators() as operators:
        answers = list(decode_greedily(model, contexts, batch_size=2, max_new_tokens=limit, is_finished=lambda _: False))
    a, b, c, d, e, f = map(len, contexts)
    assert context_tokens == a + b + c + d + e + f and sum(len(one.written) for one in answers) == decoding.tokens == 6 * limit
    assert (decoding.passes, decoding.steps) == (3, 3 * (limit - 1))
    assert operators.seen["embedding"] == decoding.passes + decoding.steps
    assert contexts[0][:b] == contexts[1] and decoding.contexts == a + c + d + e + f  # the first two have one row of a tokens
    assert decoding.cached == 2 * (4 * a + 10) + 2 * (4 * c + 10) + 2 * (4 * e + 10)  # a + 1, a + 2, a + 3, a + 4 positions
    shared = b - 1  # each context of a row keeps a token of its own
    first = shared * (shared + 1) // 2 + (a - shared) * a
    assert decoding.pairs == decoding.cached + first + (c + d) ** 2 + e * (e + 1) and e == f
    assert decoding_operators(size_in_memory(model, 12), decoding) == pytest.approx(operators.seen.total(), rel=0.1)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=replace(ALL_LINEAR, epochs=2, max_steps=5),
    )


def test_attention_calls_and_passes_are_those_of_the_engine(spec: RunSpec) -> None:
    budget = MemoryBudget(scoring_tokens=60, training_tokens=40)
    run, load = set_up_run(spec), workload(spec, budget)
    backend = replace(PACKED, memory_budget=budget)
    with Operators() as operators:
        scorer = Scorer(model=run.model, backend=backend)
        scorer.reply([request for one in run.splits.validation for request in one.requests])
    assert operators.attention_calls == 2 * load.validation.calls and operators.seen["embedding"] == load.validation.passes > 1
    assert load.validation.masks > 0
    with trainable(run.model, spec.recipe, seed=spec.seed) as trainee:
        state = TrainState(trainee, run.sequences, spec.recipe, seed=spec.seed)
        passed = calls = pairs = 0
        while not state.finished:
            state.begin_epoch()
            for _ in range(state.steps_left):
                with backend.active(run.model.module), Operators() as operators:
                    losses, _ = _backward(state, spec.execution.micro_batch, backend)
                passed, calls = passed + len(losses), calls + operators.attention_calls // 2
                size, budget = spec.execution.micro_batch, backend.memory_budget.training_tokens
                for start, stop in micro_batches(state.batch, size, budget, state.regimes):
                    groups = PackedAttention(concatenated_layout(state.batch[start:stop])).groups
                    pairs += sum(
                        group.segments * (sum(range(1, group.longest + 1)) if group.chains else group.longest**2)
                        for group in groups
                    )
                state.advance(losses)
    assert (load.training.passes, load.training.calls, load.training.pairs) == (passed, calls, pairs)
    assert load.training.passes > load.training.steps == 5
    unequal = [TokenSequence(ids=tuple(range(size)), first_label=1) for size in (51, 51, 61, 51)]
    assert [group.slots for group in PackedAttention(concatenated_layout(unequal)).groups] == [150, 60]


def test_the_gpu_plan_uses_the_memory_budget_of_a_gpu(spec: RunSpec) -> None:
    for hardware in HARDWARE.values():
        budget = hardware.memory_budget
        assert (budget.training_tokens, budget.scoring_tokens) == (GPU_TRAINING_TOKENS, GPU_SCORING_TOKENS)
        assert budget.generation_rows == GPU_GENERATION_ROWS
    many = replace(spec, benchmark=replace(spec.benchmark, task=str(write_micro(Path(spec.benchmark.task).parent, sizes=SIZES))))
    on_gpu, on_cpu = (
        workload(many, budget).test for budget in (H200.memory_budget, MemoryBudget(scoring_tokens=CPU_SCORING_TOKENS))
    )
    assert on_gpu.passes == 1 < on_cpu.passes and on_gpu.tokens == on_cpu.tokens
    assert scoring_phase(size_of(spec.model, spec.recipe), on_gpu, H200).seconds < scoring_phase(SIZE, on_cpu, H200).seconds


SIZES = {"train": 24, "validation": 8, "test": 200}


# The binding term.


def model_of(billions: float, layers: int, width: int) -> ModelSize:
    parameters = int(billions * 1e9)
    return ModelSize(
        parameters=parameters,
        computing=parameters,
        output=0,
        trained=1_000_000,
        layers=layers,
        adapted=2 * layers,
        query_width=width,
        key_width=width // 8,
    )


TINY, LARGE = model_of(0.0005, 4, 112), model_of(14.8, 48, 5_120)
STEPS = 10_000
ROWS = TrainingWork(
    tokens=STEPS * 8 * 200, labels=STEPS * 8 * 200, steps=STEPS, passes=STEPS, calls=STEPS * 8, pairs=STEPS * 8 * 20_100
)
"""Work of 10,000 steps with eight rows of 200 tokens."""
LONG_ROWS = TrainingWork(tokens=10 * 65_536, labels=10 * 65_536, steps=10, passes=10, calls=10, pairs=10 * 65_536 * 65_537 // 2)
"""Work of ten steps with one row of 65,536 tokens."""
ANSWERS = ScoringWork(
    tokens=0,
    decoding=DecodingWork(
        contexts=256 * 100, tokens=256 * 4_000, passes=1, steps=3_999, pairs=256 * 8_400_000, cached=256 * 8_400_000
    ),
)
"""Work of 256 generated answers of 4,000 tokens."""


def planned(size: ModelSize, training: TrainingWork, scoring: ScoringWork | None = None) -> ModelPlan:
    return model_plan("some", [load_of(size, training, scoring)], H200)


def test_the_binding_term_depends_on_model_size_and_workload() -> None:
    assert binding_term(planned(TINY, ROWS).phases)[0] == "training launches"
    assert binding_term(planned(LARGE, ROWS).phases)[0] == "training FLOPs"
    assert binding_term(planned(TINY, LONG_ROWS).phases)[0] == "fixed"
    assert planned(TINY, LONG_ROWS).phases["training"].bound_by == "attention"
    decoding = planned(TINY, TrainingWork(tokens=1), ANSWERS)
    assert decoding.decoding_steps == 3_999 and decoding.phases["decoding"].bound_by == "launches"
    assert binding_term(planned(LARGE, ROWS, ANSWERS).phases)[0] == "training FLOPs"  # much more training than decoding
    # With a large model, each decoding step reads many weights and a cache of 256 rows.
    assert binding_term(planned(LARGE, TrainingWork(tokens=1), ANSWERS).phases)[0] == "decoding steps"
    _, share = binding_term(planned(LARGE, ROWS).phases)
    seconds = planned(LARGE, ROWS).phases["training"].terms["FLOPs"]
    assert share == pytest.approx(seconds / (planned(LARGE, ROWS).hours * 3600))


def test_a_plan_with_large_numbers_is_at_most_80_columns_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulate a terminal, because a pipe gets wider tables.
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "dumb", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    many_steps = replace(ROWS, steps=STEPS * 10_000, passes=STEPS * 10_000, calls=STEPS * 10_000, tokens=10**12)
    models = (planned(LARGE, many_steps, ANSWERS), planned(TINY, ROWS))
    show_plan(Plan(hardware=H200, models=models, disk_bytes=0), workers=8)
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if "for one worker" not in line) <= 80  # the terminal wraps that sentence
    # Each row shows the terms of its phase. Its last word is the binding term.
    start = shown.index("Time on h200, in hours")
    rows = [line.split() for line in shown[start:] if line.startswith("  ")]
    assert rows[0] == ["launches", "Python", "FLOPs", "attention", "steps", "fixed", "time", "bound", "by"]
    training = models[0].phases["training"]
    cells = [f"{training.terms[term] / 3600:,.0f}" for term in ("launches", "FLOPs")]
    assert rows[1][:2] == ["training", cells[0]] and rows[1][2] == cells[1] and rows[1][-1] == training.bound_by == "FLOPs"
    decoding = next(row for row in rows if row[0] == "decoding")
    assert len(decoding) == 8 and decoding[-1] == "steps"
    assert any(line.startswith("All models: ") and "bound by training FLOPs (" in line for line in shown)


def test_every_constant_of_a_gpu_has_a_source_and_a_unit() -> None:
    constants = H200.constants()
    assert {one.name for one in constants if one.measured} == {"Python, scoring", "Python, decoding"}
    assert all(one.source and one.unit for one in constants)
    own = [one for one in vars(H200).values() if isinstance(one, Constant)]
    assert len(constants) == len(own) + 1  # memory traffic of the cache
    assert {one.name for one in constants} - {one.name for one in H200.constants(decoding=False)} == {
        "decoding",
        "decoding steps",
        "decoding steps, cache",
        "Python, decoding",
    }
    assert Phase().seconds == 0
