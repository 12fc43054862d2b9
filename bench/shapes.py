"""Training and scoring of models of real shapes with random weights, against the chip's peak: ``python -m bench.shapes``.

For GPUs, and in need of as little as possible there: no model folder, no benchmark, no lm_eval. Token ids are random, texts as
long as those of arc_easy (some 40 tokens of question, four answers of some 6). Prints tokens a second, the share of the peak that
they stand for, and what eight runs at once gain over eight runs in turn.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.resources import files

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PretrainedConfig, Qwen2Config

from lm_harmony.engine.forward import in_batches
from lm_harmony.engine.paths import Paths, choose_paths
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.together import Lesson, fine_tune_together
from lm_harmony.engine.trees import shared_row
from lm_harmony.models.loading import LanguageModel, assemble, resolve_device, resolve_precision
from lm_harmony.recipe import PUBLISHED

_QWEN2_5 = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "rope_theta": 1e6}
SHAPES: dict[str, PretrainedConfig] = {
    "qwen2.5-0.5b": Qwen2Config(
        **_QWEN2_5,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128_256,
        max_position_embeddings=131_072,
        rope_theta=5e5,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        **(_QWEN2_5 | {"vocab_size": 152_064}),
        hidden_size=3_584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
    # For a look at the bench itself where there is no GPU.
    "tiny": LlamaConfig(vocab_size=1_024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4),
}
"""Published configurations, vocabulary included."""


@dataclass(frozen=True, kw_only=True)
class ShapeFlags:
    """What is measured, and against what."""

    shapes: tuple[str, ...] = ("qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-7b")
    """Names of ``SHAPES``."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    peak_tflops: float | None = None
    """Dense peak of the chip in the dtype that runs, in 1e12 FLOPs a second (H100 and H200, bf16: 989); None: no shares."""
    batch: int = 8
    """Sequences of an optimizer step."""
    steps: int = 20
    """Steps of training that are timed, after as many that are not."""
    questions: int = 500
    """Questions of four answers that are scored."""
    joint: tuple[str, ...] = ("qwen2.5-0.5b",)
    """Shapes of which eight runs are also trained together and in turn."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """One line of the table."""

    shape: str
    """The model."""
    work: str
    """What it did."""
    tokens_per_second: float
    """Tokens computed a second."""
    flops_per_second: float
    """What they stand for: parameters x tokens x 4 in training (the base is frozen), x 2 in scoring."""


def main(flags: ShapeFlags) -> None:
    """Measure every shape and print a table and a JSON line."""
    device = resolve_device(flags.device)
    reached: list[Reached] = []
    gains: dict[str, float] = {}
    for shape in flags.shapes:
        model = _random_model(shape, device)
        paths = choose_paths(model)
        assert paths.fast, f"{shape}: the fast paths are not exact here, and their figures would be of something else"
        print(f"{shape}: passes of {paths.room}")
        reached += [_training(shape, model, paths, flags), _scoring(shape, model, paths, flags)]
        if shape in flags.joint:
            gains[shape] = _joint_gain(model, paths, flags)
        del model
        if device.type != "cpu":
            torch.accelerator.empty_cache()
    _show(reached, gains, device, flags)


def _random_model(shape: str, device: torch.device) -> LanguageModel:
    dtype = getattr(torch, resolve_precision("auto", device, adapter=True).weights)
    with torch.device(device):  # made where it stays: seven billion weights take minutes on a processor
        module = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
    shipped = files("lm_harmony.demo") / "shipped"
    tokenizer = next(path.parent for path in sorted(shipped.rglob("tokenizer.json")))  # type: ignore[attr-defined]
    return assemble(shape, module, AutoTokenizer.from_pretrained(str(tokenizer)))


def _texts(model: LanguageModel, count: int, *, seed: int, answers: int = 1) -> list[TokenSequence]:
    """Make ``count`` questions with ``answers`` answers each."""
    draw, vocabulary = random.Random(seed), model.module.config.vocab_size
    made = []
    for row in range(count):
        question = draw.choices(range(vocabulary), k=max(8, round(draw.lognormvariate(3.6, 0.4))))
        for _ in range(answers):
            answer = draw.choices(range(vocabulary), k=max(1, round(draw.lognormvariate(1.7, 0.6))))
            first = 1 if answers == 1 else len(question)  # training learns all tokens
            made.append(TokenSequence(ids=(*question, *answer), first_label=first, row=row))
    return made


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time ``work`` to its end on the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def _training(shape: str, model: LanguageModel, paths: Paths, flags: ShapeFlags) -> Reached:
    rows = _texts(model, flags.batch * flags.steps, seed=1)
    seconds = [_seconds(lambda: _train(model, paths, [rows], flags, at_once=1), model.device) for _ in range(2)]
    rate = sum(len(row.ids) - 1 for row in rows) / seconds[-1]
    work = f"training, LoRA, batch {flags.batch}"
    return Reached(shape=shape, work=work, tokens_per_second=rate, flops_per_second=4 * model.module.num_parameters() * rate)


def _train(model: LanguageModel, paths: Paths, runs: list[list[TokenSequence]], flags: ShapeFlags, *, at_once: int) -> None:
    recipe = replace(PUBLISHED, epochs=1, batch_size=flags.batch)
    lessons = [Lesson(sequences=rows, recipe=recipe, seed=seed) for seed, rows in enumerate(runs)]
    for _ in fine_tune_together(model, lessons, paths=paths, micro_batch=flags.batch, at_once=at_once):
        pass


def _scoring(shape: str, model: LanguageModel, paths: Paths, flags: ShapeFlags) -> Reached:
    asked = _texts(model, flags.questions, seed=2, answers=4)
    ordered = [asked[place] for place in paths.order(asked)]
    batches: list[Sequence[TokenSequence]] = []

    def one(batch: Sequence[TokenSequence]) -> None:
        batches.append(batch)
        paths.score(model.module, batch)

    def score() -> None:
        batches.clear()
        with torch.no_grad():
            for _ in in_batches(ordered, paths.room.scoring_tokens, one, end_of_batch=paths.end_of_batch()):
                pass

    seconds = [_seconds(score, model.device) for _ in range(2)]
    computed = sum(shared_row(batch).tokens for batch in batches)
    rate = computed / seconds[-1]
    work = f"scoring, {flags.questions} questions of 4 answers"
    return Reached(shape=shape, work=work, tokens_per_second=rate, flops_per_second=2 * model.module.num_parameters() * rate)


def _joint_gain(model: LanguageModel, paths: Paths, flags: ShapeFlags) -> float:
    """Return how many times faster eight runs are together than in turn: the median of three, alternating."""
    runs = [_texts(model, flags.batch * flags.steps, seed=10 + run) for run in range(8)]
    ratios = []
    for number in range(4):
        together = _seconds(lambda: _train(model, paths, runs, flags, at_once=8), model.device)
        in_turn = _seconds(lambda: _train(model, paths, runs, flags, at_once=1), model.device)
        ratios += [in_turn / together] if number else []
    return statistics.median(ratios)


def _show(reached: list[Reached], gains: dict[str, float], device: torch.device, flags: ShapeFlags) -> None:
    table = Table("shape", "work", "tokens/s", "share of the peak", title="random weights of real shapes")
    shares = [line.flops_per_second / (flags.peak_tflops * 1e12) if flags.peak_tflops else None for line in reached]
    for line, share in zip(reached, shares, strict=True):
        table.add_row(line.shape, line.work, f"{line.tokens_per_second:,.0f}", "" if share is None else f"{share:.1%}")
    for shape, gain in gains.items():
        table.add_row(shape, "eight runs together against in turn", f"{gain:.2f}x", "")
    Console(width=120).print(table)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    rows = [
        {"shape": line.shape, "work": line.work, "tokens_per_second": line.tokens_per_second, "share": share}
        for line, share in zip(reached, shares, strict=True)
    ]
    found = {"bench": "shapes", "date": date.today().isoformat(), "chip": chip, "torch": torch.__version__}
    print(json.dumps({**found, "rows": rows, "joint": gains}))


if __name__ == "__main__":
    main(tyro.cli(ShapeFlags))
