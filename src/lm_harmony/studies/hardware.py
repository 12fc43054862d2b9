"""The speed of a machine: a GPU by its data sheet and marked assumptions, or this machine as ``calibration`` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from lm_harmony.engine.memory import GPU_GENERATION_ROWS, GPU_SCORING_TOKENS, GPU_TRAINING_TOKENS, MemoryBudget
from lm_harmony.engine.memory_estimate import PROCESS_BYTES
from lm_harmony.runs.preflight import check_hardware


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number that a prediction of time uses, and its source."""

    name: str
    """Description of the number for users."""
    value: float
    """The number itself, in ``unit``."""
    unit: str
    """Unit of the number, without a prefix such as giga."""
    source: str
    """Data sheet, measurement or assumption that the number comes from."""
    measured: bool = False
    """True if the number was measured; False if it is from a data sheet, inferred or assumed."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The speed of a machine. A constant that is None is already contained in a measured rate."""

    name: str
    """Name of the machine."""
    training: Constant
    """FLOPs per second of training."""
    scoring: Constant
    """FLOPs per second of scoring."""
    decoding: Constant
    """FLOPs per second of generating answers."""
    attention: Constant | None = None
    """FLOPs per second of attention."""
    memory: Constant | None = None
    """Bytes per second of weights and cache that a decoding step reads."""
    launch: Constant | None = None
    """Seconds that the host needs to launch one kernel."""
    kernels: Constant | None = None
    """Kernels that one operator launches, on average."""
    layout: Constant | None = None
    """Seconds per token in which Python prepares a scoring pass while the device waits."""
    stop_check: Constant | None = None
    """Seconds per generated token in which Python searches for stop strings while the device waits."""
    run: Constant
    """Seconds of a run that do not depend on its tokens: reading rows and writing results."""
    load: Constant
    """Seconds of loading a model and the libraries."""
    memory_budget: MemoryBudget
    """Tokens and rows that fit into one pass."""
    weight_bytes: int
    """Bytes of one weight."""
    card: Constant | None = None
    """Memory of the GPU in bytes."""
    power: Constant | None = None
    """Power of the GPU in watts, for estimates of energy."""
    process: Constant
    """Memory of a run beside its tensors, in bytes."""

    def constants(self, *, decoding: bool = True) -> list[Constant]:
        """Return the constants of a prediction; without ``decoding`` only those that a study without generation needs."""
        unused = () if decoding else (self.decoding, self.memory, self.stop_check)
        values = [getattr(self, field.name) for field in fields(self)]
        cache = (CACHE_TRAFFIC,) if decoding and self.memory else ()
        return [*(one for one in values if isinstance(one, Constant) and one not in unused), *cache]


_SHEETS = {
    "h200": (989e12, 4.8e12, 141e9, 700),
    "h100": (989e12, 3.35e12, 80e9, 700),
    "a100": (312e12, 2.04e12, 80e9, 400),
    "a100-40": (312e12, 1.555e12, 40e9, 400),
    "l40s": (362e12, 0.864e12, 48e9, 350),
    "rtx4090": (165e12, 1.01e12, 24e9, 450),
}
"""Dense bf16 FLOPs per second, memory bytes per second, bytes of memory, and watts, from the data sheets (H100 SXM, A100 SXM)."""
_HOST = "on one core of an AMD EPYC, 2026-11-28"
LAUNCH_SECONDS, KERNELS_PER_OPERATOR = 9e-6, 1.25
"""Inferred from eager PyTorch in general: about 50 ms for the 5,600 kernels of a training step at 7B, and 200 kernels
per layer on CUDA for 161 operators of the dispatcher. Neither was measured with this engine."""
CACHE_TRAFFIC = Constant(
    name="decoding steps, cache",
    value=1,
    unit="caches moved a step",
    source="attention reads it, and new tokens are written in place: assumed",
)
"""How often a decoding step reads or writes the keys and values of all earlier tokens."""


def _gpu(name: str, peak: float, bandwidth: float, memory: float, watts: float) -> Hardware:
    """Return the speed of a GPU by its data sheet and the assumptions below."""

    def rate(what: str, share: float, why: str) -> Constant:
        source = f"{share:.0%} of the data sheet's peak ({peak / 1e12:.0f}): {why}"
        return Constant(name=what, value=share * peak, unit="FLOP/s", source=source)

    return Hardware(
        name=name,
        training=rate("training", 0.45, "a target"),
        scoring=rate("scoring", 0.55, "a target"),
        decoding=rate("decoding", 0.55, "as scoring"),
        attention=rate("attention", 0.2, "assumed"),
        memory=Constant(
            name="decoding steps",
            value=0.7 * bandwidth,
            unit="B/s",
            source=f"70% of the data sheet's {bandwidth / 1e12:g}: assumed",
        ),
        launch=Constant(
            name="launches",
            value=LAUNCH_SECONDS,
            unit="s a kernel",
            source="inferred: some 50 ms for the 5,600 kernels of a training step at 7B",
        ),
        kernels=Constant(
            name="kernels",
            value=KERNELS_PER_OPERATOR,
            unit="an operator",
            source="inferred: 200 kernels a layer on CUDA for 161 operators",
        ),
        layout=Constant(name="Python, scoring", value=2.0e-6, unit="s a token", source=_HOST, measured=True),
        stop_check=Constant(name="Python, decoding", value=2.3e-6, unit="s a token", source=_HOST, measured=True),
        run=Constant(name="fixed, run", value=5.0, unit="s a run", source="rows and files: assumed"),
        load=Constant(name="fixed, model", value=30.0, unit="s a model", source="loading: assumed"),
        memory_budget=MemoryBudget(
            training_tokens=GPU_TRAINING_TOKENS, scoring_tokens=GPU_SCORING_TOKENS, generation_rows=GPU_GENERATION_ROWS
        ),
        weight_bytes=2,
        card=Constant(name="card", value=memory, unit="B", source="data sheet, in units of 10^9 bytes"),
        power=Constant(name="power", value=watts, unit="W", source="data sheet's limit, drawn all the time: assumed"),
        process=Constant(name="memory", value=PROCESS_BYTES["cuda"], unit="B a run", source="context and workspaces: assumed"),
    )


HARDWARE: Mapping[str, Hardware] = MappingProxyType({name: _gpu(name, *sheet) for name, sheet in _SHEETS.items()})
"""Name of a GPU -> its speed with bfloat16 weights."""


def hardware_named(name: str) -> Hardware:
    """Return the speed of a GPU in ``HARDWARE``.

    Raises:
        UsageError: there is no GPU of that name.
    """
    check_hardware(name)
    return HARDWARE[name.lower()]
