"""Kinds of nodes of a Ray cluster by the memory of their cards, and what a run asks for on each. No Ray is needed here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lm_harmony.engine.memory_estimate import HOST_BYTES, gpus_needed
from lm_harmony.errors import UsageError
from lm_harmony.models.device import gib
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.plan import estimated_memory
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.workload import size_of

SMALL = 1_000_000_000
"""Number of weights from which a model gets a GPU of its own. Smaller ones share it, because they do not keep it busy."""
SHARES = (0.25, 0.5)
"""Parts of a GPU that a smaller model may get, the first one that holds it."""
CARDS_GB = {
    "H200": 141,
    "H100": 80,
    "A100-80G": 80,
    "A100-40G": 40,
    "A100": 40,
    "L40S": 48,
    "L4": 24,
    "A10G": 24,
    "V100": 16,
    "T4": 16,
}
"""Accelerator type as Ray detects it -> memory in 10^9 bytes, by the data sheets; the smaller one where there are several."""
_OWN = re.compile(r"gpu_gb_(\d+)")
"""Custom resource of a node, which says how many GB each of its GPUs has: `ray start --resources '{"gpu_gb_24": 1}'`."""
_TYPE = "accelerator_type:"


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes of a cluster whose cards have equal memory, or all nodes where there is no GPU."""

    resource: str | None
    """Ray resource that only these nodes have; None: Ray may choose any node with a GPU, or with a CPU."""
    gpus: int
    """Number of GPUs of all these nodes; 0 on a cluster without GPUs."""
    per_node: int = 1
    """Number of GPUs of the node that has most; a model may be spread over them."""
    cpus: int
    """Number of CPUs of all these nodes."""
    memory: float
    """Bytes of one card, or of host memory of the largest node; infinite if it is not known."""

    def __str__(self) -> str:
        """Name the nodes for a log line."""
        size = "of unknown memory" if math.isinf(self.memory) else f"with {gib(self.memory)}"
        return f"{self.gpus} GPUs {size}" if self.gpus else f"{self.cpus} processors"

    def holds(self, run: RunLocation) -> bool:
        """Tell whether the memory holds a run; one whose model cannot be read is held, because it reports its own error."""
        found = _memory_of(run.spec, self.gpus > 0)
        if run.spec.execution.device_map is not None:
            return self.per_node >= 2 and (found is None or gpus_needed(found[1], self.memory) <= self.per_node)
        return found is None or found[1] <= self.memory

    def share(self, run: RunLocation) -> float:
        """Return the GPUs that a run gets: one, as many as its device map needs, or a part for a model with few weights."""
        found = _memory_of(run.spec, True)
        if run.spec.execution.device_map is not None:
            if found is None or math.isinf(self.memory):
                return float(self.per_node)
            return float(max(2, gpus_needed(found[1], self.memory)))
        if found is None or math.isinf(self.memory) or size_of(run.spec.model, run.spec.recipe).parameters >= SMALL:
            return 1.0
        return next((share for share in SHARES if found[0] <= share * self.memory), 1.0)

    def needs(self, run: RunLocation) -> dict[str, Any]:
        """Return what Ray must reserve for a run: GPU, kind of card, CPU and host memory, as options of an actor."""
        found = _memory_of(run.spec, self.gpus > 0)
        if not self.gpus:
            return {"num_cpus": 1, **({} if found is None else {"memory": found[0] if found[0] <= self.memory else found[1]})}
        kind = {} if self.resource is None else {"resources": {self.resource: 0.001}}
        return {"num_gpus": self.share(run), "memory": HOST_BYTES, **kind}

    def workers(self, runs: Sequence[RunLocation]) -> int:
        """Return the number of workers that these nodes can have at once for ``runs``."""
        shares = [self.share(run) for run in runs if self.holds(run)]
        return int(self.gpus / min(shares, default=1.0)) if self.gpus else self.cpus


@lru_cache(maxsize=4096)
def _memory_of(spec: RunSpec, on_card: bool) -> tuple[int, int] | None:
    return estimated_memory(spec, on_card=on_card)


def kinds_of_nodes(nodes: Iterable[Mapping[str, float]]) -> list[NodeKind]:
    """Return the kinds of nodes, those with most memory first; nodes without a GPU are left out if any node has one.

    Args:
        nodes: resources of each node, as ``ray.nodes()`` gives them.
    """
    every = list(nodes)
    on_cards: dict[tuple[str | None, float], list[int]] = {}
    for resources in every:
        if resources.get("GPU", 0) >= 1:
            on_cards.setdefault(_card(resources), []).append(int(resources["GPU"]))
    kinds = [
        NodeKind(resource=name, gpus=sum(counts), per_node=max(counts), cpus=0, memory=size)
        for (name, size), counts in on_cards.items()
    ]
    if not kinds:
        cpus = sum(int(resources.get("CPU", 0)) for resources in every)
        largest = max((resources.get("memory", math.inf) for resources in every if resources.get("CPU")), default=math.inf)
        kinds = [NodeKind(resource=None, gpus=0, cpus=max(1, cpus), memory=largest)]
    return sorted(kinds, key=lambda kind: -kind.memory)


def _card(resources: Mapping[str, float]) -> tuple[str | None, float]:
    """Return the resource that names the cards of a node, and the bytes of one card: infinite if no resource says it."""
    found = [(name, float(match[1]) * 1e9) for name in resources if (match := _OWN.fullmatch(name))]
    types = [name for name in resources if name.startswith(_TYPE)]
    known = [(name, CARDS_GB[kind] * 1e9) for name in types if (kind := name.removeprefix(_TYPE)) in CARDS_GB]
    return next(iter([*found, *sorted(known, key=lambda card: -card[1])]), (None, math.inf))


def refuse_too_large(kinds: Sequence[NodeKind], runs: Sequence[RunLocation]) -> None:
    """Check that every run fits on some node.

    Raises:
        UsageError: a model fits nowhere; the message names each such model with the memory that it needs.
    """
    if all(kind.per_node < 2 for kind in kinds) and any(run.spec.execution.device_map is not None for run in runs):
        raise UsageError(
            "ray: device_map = auto needs a node with at least two GPUs, and the cluster has none. Remove device_map."
        )
    needed: dict[str, int] = {}
    for run in runs:
        if not any(kind.holds(run) for kind in kinds):
            found = _memory_of(run.spec, kinds[0].gpus > 0) or (0, 0)
            needed[run.spec.model.name] = max(found[1], needed.get(run.spec.model.name, 0))
    if needed:
        what = "card" if kinds[0].gpus and runs[0].spec.execution.device_map is None else "node"
        size = max(kind.memory * (kind.per_node if what == "node" and kind.gpus else 1) for kind in kinds)
        listed = ", ".join(f"{model} ({gib(least)})" for model, least in needed.items())
        raise UsageError(
            f"ray: these models fit on no {what} of the cluster, whose largest has {gib(size)}: {listed}. Add a "
            f"larger {what}, leave them out with --skip, or set a shorter max_length or quantize in their recipe."
        )
