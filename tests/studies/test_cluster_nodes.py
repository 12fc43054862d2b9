"""Kinds of nodes of a cluster, and what a run asks for on each of them. No cluster is started."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from transformers import LlamaConfig
from world import write_world

from lm_harmony.errors import UsageError
from lm_harmony.runs.spec import Execution
from lm_harmony.studies.cluster_nodes import NodeKind, kinds_of_nodes, refuse_too_large
from lm_harmony.studies.pool import RunQueue
from lm_harmony.studies.ray_pool import RayWorker
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.study import Study

SMALL_CARDS = {"CPU": 8.0, "GPU": 4.0, "gpu_gb_24": 1.0, "memory": 64e9}
LARGE_CARDS = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "memory": 512e9}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunLocation, ...]:
    """Return a run of a tiny model, one of a model that needs a large card, and one of a model that fits nowhere."""
    for name, layers in (("large", 28), ("huge", 100)):
        (tmp_path / name).mkdir()
        config = LlamaConfig(hidden_size=8_192, intermediate_size=28_672, num_hidden_layers=layers, vocab_size=300)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    models = ["models/llama", str(tmp_path / "large"), str(tmp_path / "huge")]
    return Study.read(write_world(tmp_path / "world", models=models, benchmarks=["fives.yaml"], seeds=[0])).runs


def test_nodes_are_grouped_by_the_memory_of_their_cards() -> None:
    kinds = kinds_of_nodes([SMALL_CARDS, LARGE_CARDS, LARGE_CARDS, {"CPU": 32.0}])
    assert [(kind.gpus, kind.memory, kind.resource) for kind in kinds] == [
        (16, 80e9, "accelerator_type:H100"),
        (4, 24e9, "gpu_gb_24"),
    ]
    [unknown] = kinds_of_nodes([{"GPU": 2.0, "accelerator_type:Other": 1.0}])
    assert unknown.resource is None and math.isinf(unknown.memory)
    [cpus] = kinds_of_nodes([{"CPU": 2.0, "memory": 8e9}, {"CPU": 1.0, "memory": 4e9}, {"memory": 64e9}])
    assert (cpus.gpus, cpus.cpus, cpus.memory) == (0, 3, 8e9)


def test_a_run_asks_for_a_card_that_holds_it_and_a_small_one_for_a_part(runs: tuple[RunLocation, ...]) -> None:
    large_kind, small_kind = kinds_of_nodes([SMALL_CARDS, LARGE_CARDS])
    small, large, huge = runs
    assert [kind.holds(large) for kind in (large_kind, small_kind)] == [True, False]
    assert not large_kind.holds(huge)
    needs = small_kind.needs(small)
    assert needs["num_gpus"] == 0.25 and needs["resources"] == {"gpu_gb_24": 0.001} and needs["memory"] > 1e9
    assert large_kind.needs(large)["num_gpus"] == 1.0
    assert large_kind.workers([large]) == 8 and large_kind.workers([small, large]) == 32
    on_cpus = kinds_of_nodes([{"CPU": 2.0, "memory": 8e9}])[0].needs(small)
    assert on_cpus["num_cpus"] == 1 and 5e8 < on_cpus["memory"] < 2e9


def test_a_model_with_a_device_map_asks_for_as_many_cards_of_a_node_as_it_needs(runs: tuple[RunLocation, ...]) -> None:
    large_kind, small_kind = kinds = kinds_of_nodes([SMALL_CARDS, LARGE_CARDS, {**LARGE_CARDS, "GPU": 2.0}])
    small, _, huge = (replace(run, spec=replace(run.spec, execution=Execution(device_map="auto"))) for run in runs)
    assert (large_kind.gpus, large_kind.per_node) == (10, 8)
    assert large_kind.needs(small)["num_gpus"] == small_kind.needs(small)["num_gpus"] == 2.0
    count = large_kind.needs(huge)["num_gpus"]
    assert 2 < count < 8 and large_kind.holds(huge) and not small_kind.holds(huge)
    assert large_kind.workers([huge]) == int(10 / count)
    refuse_too_large(kinds, [small, huge])
    with pytest.raises(UsageError, match="ray: device_map = auto needs a node with at least two GPUs, and the cluster has none"):
        refuse_too_large(kinds_of_nodes([{"GPU": 1.0, "gpu_gb_80": 1.0}] * 4), [huge])


def test_a_model_that_fits_nowhere_is_named(runs: tuple[RunLocation, ...]) -> None:
    kinds = kinds_of_nodes([SMALL_CARDS, LARGE_CARDS])
    with pytest.raises(UsageError) as found:
        refuse_too_large(kinds, runs)
    message = str(found.value)
    assert "huge (" in message and "large (" not in message and "llama" not in message and "\n" not in message
    refuse_too_large(kinds, runs[:2])  # the negative control
    refuse_too_large([NodeKind(resource=None, gpus=1, cpus=0, memory=math.inf)], runs)


def test_large_cards_take_large_runs_first_and_small_cards_never(runs: tuple[RunLocation, ...]) -> None:
    kinds = kinds_of_nodes([SMALL_CARDS, LARGE_CARDS])
    on_large, on_small = (RayWorker(number, kind, kinds) for number, kind in enumerate(kinds))
    small, large, _ = runs
    queue = RunQueue([small, large])
    assert queue.take(0, [], lambda: None, on_large.rank) == [large]
    assert queue.take(1, [], lambda: None, on_small.rank) == [small]
    assert on_small.rank(large) is None and on_large.rank(small) == 0
