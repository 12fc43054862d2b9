"""Steps 3, 4 and 7: LoRA steps, joint training of several runs, and the memory of training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from bench.gpu.measure import Profile, StepWatch, peak_bytes, reset_peak, wait
from bench.gpu.models import (
    Counted,
    backends,
    counting,
    each_shape,
    linear_weights,
    one_shape,
    random_model,
    share_of_peak,
    texts,
)
from bench.gpu.rows import Bench
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import Backend
from lm_harmony.engine.joint_training import JointRuns
from lm_harmony.engine.memory import training_bytes_per_token
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import ByEpochs, Training, fine_tune
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import PUBLISHED, Recipe

MARKS = (2, 6, 10, 14, 18)
"""Steps after which the time is read. They give four samples of four steps. Losses are copied after steps 8 and 16."""
HOST_STEPS = 2
"""Steps after the last mark, for which only the launching is timed. No losses are copied between steps 16 and 24."""
PROFILE_MARKS = (2, 4)
"""First and last step of the profile. No losses are copied between them."""
JOINT_MARKS = (1, 3, 5, 7)
"""Steps after which the time is read in joint training."""


@dataclass
class _Samples:
    """Reads the time and the counts of a forward pass after the steps in ``marks``."""

    device: torch.device
    marks: tuple[int, ...]
    counted: Counted
    host_ms: float | None = None
    started: float = field(default_factory=time.perf_counter)
    read: list[tuple[float, int, int, int]] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        if step in self.marks:
            wait(self.device)
            counts = self.counted
            self.read.append((time.perf_counter(), counts.tokens, counts.labels, counts.passes))
        if step == self.marks[-1] + HOST_STEPS:
            self.host_ms = (time.perf_counter() - self.read[-1][0]) * 1e3 / HOST_STEPS

    def row(self, bench: Bench, model: LanguageModel) -> dict[str, Any]:
        """Return the medians of the samples as fields of a row.

        host_ms is the time in which Python launches a step. It does not wait for the results. But CUDA blocks the host if about
        a thousand launches are queued.
        """
        first, last = self.read[0], self.read[-1]
        steps = self.marks[-1] - self.marks[0]
        taken = [
            ((after[0] - before[0]) / (to - since), (after[1] - before[1]) / (after[0] - before[0]))
            for (before, after), (since, to) in zip(pairwise(self.read), pairwise(self.marks), strict=True)
        ]
        tokens, labels = last[1] - first[1], last[2] - first[2]
        body, head = linear_weights(model.module)
        # The base is frozen. FLOPs are those of its forward pass and of the gradients of its inputs, without attention and LoRA.
        flops = 4 * (body * tokens + head * labels)
        rates = [rate for _, rate in taken]
        median = statistics.median(rates)
        return {
            "step_ms": statistics.median(seconds for seconds, _ in taken) * 1e3,
            "host_ms": self.host_ms,
            "tokens_per_s": median,
            "tokens_per_s_min": min(rates),
            "tokens_per_s_max": max(rates),
            "samples": len(taken),
            "steps_per_sample": self.marks[1] - self.marks[0],
            "tokens_per_step": tokens / steps,
            "passes_per_step": (last[3] - first[3]) / steps,
            "first_steps_s": first[0] - self.started,
            "first_steps": self.marks[0],
            **share_of_peak(bench, flops, tokens / median),
        }


def lora_steps(bench: Bench) -> None:
    """Time training of each shape on each backend. Afterwards profile two steps, because the profiler slows down training."""
    timed_models: list[tuple[LanguageModel, dict[str, Backend], dict[str, dict[str, Any]]]] = []
    for shape in bench.sizes.training:
        with bench.measurement("shape", shape=shape):
            model = random_model(bench, shape)
            chosen = backends(bench, model)
            timed_models.append(
                (model, chosen, {name: train_row(bench, model, backend, name) for name, backend in chosen.items()})
            )
    for model, chosen, timed in timed_models:
        for name, backend in chosen.items():
            values = {"shape": model.name, "backend": name, "batch": bench.sizes.batch}
            with bench.measurement("profiled steps", **values) as row:
                row |= {key: timed[name].get(key) for key in ("step_ms", "host_ms")} | _profiled(bench, model, backend)
                if row["gpu_ms"] is not None and row["step_ms"] is not None:
                    row["gpu_busy"] = row["gpu_ms"] / row["step_ms"]


def train_row(bench: Bench, model: LanguageModel, backend: Backend, name: str) -> dict[str, Any]:
    """Write the speed of LoRA steps on one backend, and return the row."""
    what = "optimizer steps of LoRA r 8 as fine_tune takes them; texts of random tokens; peak: linear layers of real tokens"
    with bench.measurement("training", shape=model.name, backend=name, batch=bench.sizes.batch, counted=what) as row:
        counted_backend, counted = counting(backend)
        reset_peak(bench.device)
        samples = _Samples(bench.device, MARKS, counted)
        _train(bench, model, counted_backend, steps=MARKS[-1] + HOST_STEPS + 1, at=samples)
        row |= samples.row(bench, model) | {"peak_bytes": peak_bytes(bench.device)}
    return row


def _train(bench: Bench, model: LanguageModel, backend: Backend, *, steps: int, at: Callable[[int], None]) -> None:
    batch = bench.sizes.batch
    rows = texts(model.module.config.vocab_size, batch * steps, seed=1)
    _epoch(model, backend, rows, batch, at)


def _epoch(
    model: LanguageModel, backend: Backend, rows: list[TokenSequence], batch: int, at: Callable[[int], None] = lambda step: None
) -> None:
    recipe = replace(PUBLISHED, epochs=1, batch_size=batch)
    with trainable(model, recipe, seed=0) as trainee, StepWatch(at):
        for _ in fine_tune(trainee, rows, recipe, seed=0, micro_batch=batch, backend=backend):
            pass


def _profiled(bench: Bench, model: LanguageModel, backend: Backend) -> dict[str, Any]:
    """Return the profile of a step, as the mean of two steps.

    gpu_ms is the time in which the GPU was busy. If it is well below step_ms and host_ms is close to step_ms, the GPU waits for
    Python.
    """
    profiler, found = Profile(bench.device), dict[str, Any]()

    def at(step: int) -> None:
        if step == PROFILE_MARKS[0]:
            wait(bench.device)
            profiler.start()
        if step == PROFILE_MARKS[1]:
            found.update(profiler.stop(parts=PROFILE_MARKS[1] - PROFILE_MARKS[0]))

    _train(bench, model, backend, steps=PROFILE_MARKS[1] + 1, at=at)
    return found


def joint_training(bench: Bench) -> None:
    """Time joint training of several runs on one base model."""
    each_shape(bench, bench.sizes.other, _joint)


def _joint(bench: Bench, model: LanguageModel, chosen: dict[str, Backend]) -> None:
    name, packed = next((name, backend) for name, backend in chosen.items() if backend.packed)
    batch = bench.sizes.batch
    recipe = replace(PUBLISHED, epochs=1, batch_size=batch)
    single_run_rate = None
    for runs in bench.sizes.joint:
        with bench.measurement("joint training", shape=model.name, backend=name, runs=runs, batch=batch) as row:
            counted_backend, counted = counting(packed)
            rows = [texts(model.module.config.vocab_size, batch * (JOINT_MARKS[-1] + 1), seed=10 + run) for run in range(runs)]
            joint = JointRuns[int, None]()
            for seed, own in enumerate(rows):
                joint.add(seed, by_epochs(model, own, recipe, seed, counted_backend))
            reset_peak(bench.device)
            samples = _Samples(bench.device, JOINT_MARKS, counted)
            with StepWatch(samples, optimizers=runs):
                while joint:
                    joint.advance()
            row |= samples.row(bench, model) | {"peak_bytes": peak_bytes(bench.device)}
            single_run_rate = row["tokens_per_s"] if runs == 1 else single_run_rate
            row["gain"] = row["tokens_per_s"] / single_run_rate if single_run_rate else None


def by_epochs(model: LanguageModel, rows: list[TokenSequence], recipe: Recipe, seed: int, backend: Backend) -> ByEpochs[None]:
    """Train a run, as a generator that joint training advances."""
    with trainable(model, recipe, seed=seed) as trainee:
        training = Training(trainee, rows, recipe, seed=seed, micro_batch=recipe.batch_size, backend=backend)
        while not training.finished:
            yield training


def memory(bench: Bench) -> None:
    """Write the peak memory of training on long rows and the estimate of the memory budget."""
    with bench.measurement("shape", shape=bench.sizes.largest):
        one_shape(bench, bench.sizes.largest, _memory)


def _memory(bench: Bench, model: LanguageModel, chosen: dict[str, Backend]) -> None:
    length = bench.sizes.row_tokens
    for name, backend in chosen.items():
        for count in bench.sizes.rows_at_once:
            with bench.measurement("memory", shape=model.name, backend=name, rows=count, row_tokens=length) as row:
                counted_backend, counted = counting(backend)
                rows = [_long_row(model, length, seed) for seed in range(count)]
                bench.release()
                before = torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0
                free = torch.cuda.mem_get_info(bench.device)[0] if bench.device.type == "cuda" else None
                row |= {"weights_bytes": before, "free_bytes": free}
                reset_peak(bench.device)
                _epoch(model, counted_backend, rows, count)
                peak = peak_bytes(bench.device)
                row |= {"passes": counted.passes, "largest_pass_tokens": counted.largest}
                row["budget_tokens"] = backend.memory_budget.training_tokens if backend.packed else None
                row["expected_bytes"] = training_bytes_per_token(model.module) * counted.largest if backend.packed else None
                row["taken_bytes"] = None if peak is None else peak - before
                if backend.packed and peak is not None:
                    row["taken_of_expected"] = row["taken_bytes"] / row["expected_bytes"]


def _long_row(model: LanguageModel, length: int, seed: int) -> TokenSequence:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.module.config.vocab_size, (length + 1,), generator=generator).tolist()
    return TokenSequence(ids=tuple(ids), first_label=1, row=seed)
