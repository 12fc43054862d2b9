"""The demo's world and questions depend only on the seed. No exposure text contains a test question."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_harmony.benchmarks.harness import HarnessTask, open_task
from lm_harmony.benchmarks.types import Example
from lm_harmony.demo.build import write_rows
from lm_harmony.demo.family import MEMBERS
from lm_harmony.demo.pretraining import exposure_texts
from lm_harmony.demo.study import FAST_BENCHMARKS, FAST_MODELS, MODELS, SHIPPED
from lm_harmony.demo.texts import BENCHMARKS, SIZES, TASKS, plain_texts, rows_of, splits_of
from lm_harmony.demo.world import World, make_world, often

ROLES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


@pytest.fixture(scope="module")
def opened(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HarnessTask]:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(world, 0, folder)
    return lambda task: open_task(str(TASKS / f"{task}.yaml"), data_dir=folder)


def rendered(task: HarnessTask, role: str) -> list[Example]:
    documents = task.documents(role)  # type: ignore[arg-type]
    return [task.example(number, row, chat=None, aliases="first") for number, row in enumerate(documents)]


def test_the_seed_determines_a_world_and_its_texts(world: World) -> None:
    again = make_world(0)
    assert again == world and make_world(1) != world
    first, second = (list(itertools.islice(plain_texts(one, random.Random(3)), 200)) for one in (world, again))
    assert first == second


def test_the_shipped_rows_are_those_of_seed_0(world: World, tmp_path: Path) -> None:
    write_rows(world, 0, tmp_path)
    for task, role in itertools.product(BENCHMARKS, ROLES):
        file = f"{task}/{role}.jsonl"
        assert (SHIPPED / "rows" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_frequent_items_are_drawn_more_often() -> None:
    draw = random.Random(0)
    drawn = [often(draw, range(100)) for _ in range(5_000)]
    assert drawn.count(0) > 2 * drawn.count(9) > 4 * drawn.count(90) > 0


@pytest.mark.parametrize("kind", ["animals", "kinds", "praise", "blame", "things", "problems"])
def test_the_halves_are_disjoint_and_complete(world: World, kind: str) -> None:
    taught, asked = (set(getattr(world.half(half), kind)) for half in ("taught", "asked"))  # type: ignore[arg-type]
    assert not taught & asked and taught | asked == set(getattr(world, kind))
    assert abs(len(taught) - len(asked)) <= 1


@pytest.mark.parametrize("task", BENCHMARKS)
def test_splits_share_no_question_and_are_loaded_like_other_benchmarks(task: str, opened: Callable[[str], HarnessTask]) -> None:
    loaded = opened(task)
    examples = {role: rendered(loaded, role) for role in ROLES}
    questions = {role: {example.request_texts for example in examples[role]} for role in ROLES}
    for role in ROLES:
        assert len(examples[role]) == len(questions[role]) == SIZES[role]
        assert all(example.continuation is not None and example.continuation.startswith(" ") for example in examples[role])
    assert not any(questions[one] & questions[other] for one, other in itertools.combinations(ROLES, 2))


@pytest.mark.parametrize("task", BENCHMARKS)
def test_no_exposure_text_is_a_row_that_is_scored(world: World, task: str, opened: Callable[[str], HarnessTask]) -> None:
    seen = set(itertools.islice(exposure_texts(task, world, random.Random(5), opened(task)), 20_000))
    scored = {f"{example.context}{example.continuation}" for role in ROLES[1:] for example in rendered(opened(task), role)}
    contexts = {example.context for role in ROLES[1:] for example in rendered(opened(task), role)}
    assert len(seen) >= len(world.half("taught").animals) and not seen & scored
    assert not [text for text in seen if text.startswith(tuple(contexts))]


def test_each_row_of_a_half_is_generated_once(world: World) -> None:
    rows = [repr(row) for row in rows_of("micro_sums", world, "taught", random.Random(0))]
    assert len(rows) == len(set(rows)) == len(world.half("taught").problems)


def test_labels_are_balanced_so_that_guessing_is_visible(world: World) -> None:
    for task in ("micro_reviews", "micro_entails", "micro_grammar"):
        labels = [row["label"] for row in splits_of(task, world, 0)["test"]]
        assert 0.4 < sum(labels) / len(labels) < 0.6


def test_plain_text_contains_no_question_format(world: World) -> None:
    read = " ".join(itertools.islice(plain_texts(world, random.Random(0)), 3_000)).split()
    for word in ("review", "verdict", "premise", "claim", "follows", "subject", "profile", "gap", "solve", "acceptable"):
        assert word not in read


def test_half_of_the_models_are_exposed_with_two_models_for_each_format() -> None:
    assert tuple(member.name for member in MEMBERS) == MODELS
    exposed = [member.exposed for member in MEMBERS]
    assert sum(bool(tasks) for tasks in exposed) == 4
    assert all(sum(task in tasks for tasks in exposed) == 2 for task in BENCHMARKS)
    assert set(FAST_MODELS) <= set(MODELS) and set(FAST_BENCHMARKS) <= set(BENCHMARKS)
