"""Parts of matrices: models chosen by family, kind and size, and what several matrices have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.analysis.score_rows import CompletePart
from lm_harmony.errors import UsageError, counted, did_you_mean


def chosen_models(
    matrix: ScoreMatrix,
    families: Sequence[str] = (),
    kinds: Sequence[str] = (),
    size: tuple[float, float] | None = None,
) -> ScoreMatrix:
    """Return the matrix of the models that fit every given choice.

    Args:
        matrix: scores to choose from.
        families: families to keep; empty: any.
        kinds: "base" or "instruct"; empty: any.
        size: smallest number of parameters (included) and largest (excluded), in billions; models of unknown size are dropped.

    Raises:
        UsageError: a family is not in the matrix, the sizes are reversed, or no model fits.
    """
    known = sorted({model.family for model in matrix.models if model.family})
    for family in families:
        if family not in known:
            raise UsageError(
                f"family: {family!r} is not in {matrix.source}.{did_you_mean(family, known)} It has {', '.join(known)}."
            )

    def fits(model: ModelMetadata) -> bool:
        sized = size is None or (model.params_b is not None and size[0] <= model.params_b < size[1])
        return sized and (not families or model.family in families) and (not kinds or model.kind in kinds)

    if size is not None and not 0 <= size[0] < size[1]:
        raise UsageError(f"size = {size[0]:g} {size[1]:g} holds no size. Give the smaller number of billions first, such as 1 7.")
    names = [model.name for model in matrix.models if fits(model)]
    if not names:
        raise UsageError(
            f"models: none of the {len(matrix.models)} models of {matrix.source} fits the choice. Choose fewer limits."
        )
    return matrix.subset(names)


def common_part(matrices: Iterable[ScoreMatrix], where: str, command: str) -> CompletePart:
    """Return the models and benchmarks that have trained scores in all matrices, in the order of the first.

    Args:
        matrices: the matrices.
        where: what they are, for the message: "for every ...".
        command: what needs the scores, for the message.

    Raises:
        UsageError: there are fewer than two models or two benchmarks.
    """
    known = list(matrices)
    first, *others = (matrix.complete("trained")[1] for matrix in known)
    models = tuple(name for name in first.models if all(name in other.models for other in others))
    tasks = tuple(name for name in first.benchmarks if all(name in other.benchmarks for other in others))
    if len(models) < 2 or len(tasks) < 2:
        raise UsageError(
            f"{command}: {counted(len(models), 'model')} and {counted(len(tasks), 'benchmark')} "
            f"have a trained score {where}, but two of each are "
            f"needed. Run what is missing."
        )
    every_model = dict.fromkeys(name for matrix in known for name in matrix.model_names)
    every_task = dict.fromkeys(name for matrix in known for name in matrix.benchmark_names)
    return CompletePart(
        models=models,
        benchmarks=tasks,
        dropped_models=tuple(name for name in every_model if name not in models),
        dropped_benchmarks=tuple(name for name in every_task if name not in tasks),
    )
