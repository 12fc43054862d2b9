"""A part of the models of a matrix, chosen by family, kind and size."""

from __future__ import annotations

from collections.abc import Sequence

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.errors import UsageError, did_you_mean


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
