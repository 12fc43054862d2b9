"""Building the demo: a tiny build is bitwise reproducible. Also the models and rows that are part of the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lm_harmony.benchmarks.harness import open_task
from lm_harmony.demo.build import Flags, build
from lm_harmony.demo.family import MEMBERS
from lm_harmony.demo.study import MODELS, SHIPPED
from lm_harmony.demo.texts import BENCHMARKS, TASKS
from lm_harmony.models.checkpoint_names import checkpoint_of
from lm_harmony.models.loading import load_model

LIMIT = 12e6
"""Largest allowed size in bytes of the demo files in the package."""


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "build.log")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(Flags(out=folder, share=0.01, only=("llama-1", "neox-1")))
    return folder


def test_a_build_is_bitwise_reproducible(built: Path, tmp_path: Path) -> None:
    build(Flags(out=tmp_path, share=0.01, only=("llama-1", "neox-1"), workers=1))
    assert digests(built) == digests(tmp_path)
    build(Flags(out=tmp_path / "other", seed=1, share=0.01, only=("llama-1",)))
    weights = "models/llama-1/model.safetensors"
    assert digests(tmp_path / "other")[weights] != digests(built)[weights]


def test_checkpoints_are_saved_without_a_change_of_the_build(built: Path, tmp_path: Path) -> None:
    """The only checkpoint is saved after the last step, so it is the model itself."""
    build(Flags(out=tmp_path, share=0.01, only=("llama-1", "neox-1"), checkpoints=1))
    made = digests(tmp_path)
    assert {name: made.pop(name) for name in digests(built)} == digests(built)
    weights = [name for name in made if name.startswith("checkpoints/neox-1/step") and name.endswith("model.safetensors")]
    assert [made[name] for name in weights] == [digests(built)["models/neox-1/model.safetensors"]]
    point = checkpoint_of(str(tmp_path / Path(weights[0]).parent))
    assert point is not None and point.tokens == pytest.approx(point.step * 1024, rel=0.1)  # type: ignore[operator]


def test_a_build_reports_its_steps(built: Path) -> None:
    first, *models = [json.loads(line) for line in (built / "build.log").read_text().splitlines()]
    assert first["seed"] == 0 and first["share"] == 0.01
    assert [model["name"] for model in models] == ["llama-1", "neox-1"]
    exposed, plain = models
    assert exposed["exposed_tokens"] == pytest.approx(0.2 * exposed["tokens"], rel=0.1) and plain["exposed_tokens"] == 0
    assert all(model["losses"][-1] < model["losses"][0] for model in models)
    assert "micro_reviews" in (built / "models" / "llama-1" / "README.md").read_text()
    assert f"{plain['parameters']:,} parameters" in (built / "models" / "neox-1" / "README.md").read_text()


def test_the_vocabulary_has_every_word_of_every_row(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built / "models" / "llama-1")
    assert 300 <= len(tokenizer) <= 500
    for task in BENCHMARKS:
        opened = open_task(str(TASKS / f"{task}.yaml"), data_dir=built / "rows")
        for role in ("train", "validation", "test"):
            for number, row in enumerate(opened.documents(role)):
                example = opened.example(number, row, chat=None, aliases="first")
                for text in (f"{example.context}{example.continuation}", *(ask.continuation for ask in example.requests)):
                    ids = tokenizer(text)["input_ids"]
                    assert tokenizer.unk_token_id not in ids, text
                    assert not text or tokenizer.decode(ids).strip() == text.strip()


def test_the_package_has_eight_models_that_load() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < LIMIT
    assert sorted(folder.name for folder in (SHIPPED / "models").iterdir()) == sorted(MODELS)
    sizes = []
    for member in MEMBERS:
        model = load_model(str(SHIPPED / "models" / member.name), device="cpu")
        sizes.append(sum(weight.numel() for weight in model.module.parameters()))
        assert (SHIPPED / "models" / member.name / "README.md").read_text().count(member.name) > 0
        assert model.max_length == 128
    assert sizes == sorted(sizes) and sizes[0] > 1e5 and sizes[-1] < 3e6
    logged = [json.loads(line) for line in (SHIPPED / "build.log").read_text().splitlines()][1:]
    assert [model["parameters"] for model in logged] == sizes
