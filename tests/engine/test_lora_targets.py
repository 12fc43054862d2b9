"""Every causal architecture of transformers is adapted by default, or refused in one line before any work."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, small_module, tried
from micro import write_micro
from tiny import tiny_model, tiny_module, write_tiny_model
from torch import nn

from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.lora_targets import lora_targets
from lm_harmony.errors import ModelError
from lm_harmony.models.loading import build_language_model
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.workload import size_of

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
REFUSED = {"cpmant", "falcon_mamba", "granitemoehybrid", "jamba", "mamba"}
"""Without attention layers at the sizes of the test, or (cpmant) with a prompt of its own."""


def documented() -> dict[str, tuple[str, str]]:
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {row[0]: (row[1], row[2]) for row in rows[1:]}


@pytest.mark.parametrize("part", range(8))
def test_every_architecture_is_adapted_or_refused_in_one_line(part: int) -> None:
    """Each one trains two steps, scores, writes and saves. The table in docs says what was adapted."""
    table = documented()
    for architecture in ARCHITECTURES[part::8]:
        module = small_module(architecture)
        if module is None:
            assert architecture not in table
            continue
        found = tried(architecture, module)
        if found.source == "refused":
            assert architecture in REFUSED and "\n" not in found.refusal and re.search(r"Set --|Use ", found.refusal)
        if found.source != "fails":
            assert table[architecture] == (found.targets or "refused", found.source), architecture


def test_the_derived_modules_are_projections_of_queries_and_values() -> None:
    table = documented()
    assert len(table) > 130 and sum(source == "derived" for _, source in table.values()) > 100
    for architecture, (targets, source) in table.items():
        if source == "derived":
            assert not re.search(r"router|expert|gate_proj|up_proj|down_proj|lm_head|o_proj", targets), architecture
    assert (
        table["phi3"][0] == "qkv_proj"
        and table["olmo2"][0] == "q_proj, v_proj"
        and table["deepseek_v3"][0] == "kv_b_proj, q_b_proj"
    )


def test_a_name_that_matches_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"names 'v_prog', but it has no such module\. Did you mean 'v_proj'"):
        lora_targets(tiny_model(), Lora(target_modules=("q_proj", "v_prog")))
    assert lora_targets(tiny_model(), Lora(target_modules=("q_proj", "self_attn.v_proj"))) == ("q_proj", "self_attn.v_proj")


class Router(nn.Linear):
    """A router of a mixture of experts, whose output is no tensor."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(x), x


def test_all_linear_leaves_out_routers() -> None:
    model = tiny_model()
    assert lora_targets(model, Lora(target_modules=("all-linear",))) == ("all-linear",)
    module = tiny_module()
    module.model.layers[0].router = Router(32, 4)
    routed = build_language_model("routed", module, model.text.tokenizer)
    names = lora_targets(routed, Lora(target_modules=("all-linear",)))
    assert names == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    with trainable(routed, Recipe(lora=Lora(target_modules=("all-linear",))), seed=0) as trainee:
        assert not any("router" in name for name in trainee.trained_parameters())


def spec_of(tmp_path: Path, architecture: str, **lora: tuple[str, ...]) -> RunSpec:
    model = write_tiny_model(tmp_path / "model", architecture)
    task = write_micro(tmp_path / "task")
    recipe = Recipe(epochs=1, lora=Lora(**lora))
    benchmark = BenchmarkSpec(task=str(task), data_dir=task.parent)
    return RunSpec(model=ModelSpec(name=str(model)), benchmark=benchmark, recipe=recipe, direct=True)


def test_derived_modules_are_logged_recorded_and_part_of_the_fingerprint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        derived = train_before_test(spec_of(tmp_path / "a", "olmo2"), RunStore(tmp_path / "derived"))
    assert "PEFT has no default for olmo2; the adapter changes q_proj v_proj." in caplog.text
    assert derived.environment["lora_targets"] == ("q_proj", "v_proj")
    known = train_before_test(spec_of(tmp_path / "b", "llama"), RunStore(tmp_path / "known"))
    assert "lora_targets" not in known.environment
    assert derived.request_fingerprint != known.request_fingerprint  # the same rows and token ids


@pytest.mark.parametrize("names", [("nowhere",), ("q_proj", "nowhere")])
def test_a_model_that_cannot_be_adapted_is_refused_before_the_direct_score(names: tuple[str, ...], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "llama", target_modules=names)
    with pytest.raises(ModelError, match=r"peft_config\.target_modules names 'nowhere'"):
        train_before_test(spec, RunStore(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match=r"peft_config\.target_modules names 'nowhere'"):
        size_of(spec.model, spec.recipe)
