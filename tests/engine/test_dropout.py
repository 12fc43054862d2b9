"""Dropout masks depend on (seed, step, layer, token, feature) only, and look random in every one of these directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lm_harmony.engine.dropout import DropoutState, SeededDropout

Mask = Callable[[int, int, int], np.ndarray]
"""(seed, step, layer) -> mask of 1,024 tokens x 256 features, 1 where an input is kept."""
TOKENS, FEATURES, DROPPED = 1_024, 256, 0.1


def dropout_layers(count: int, p: float, width: int, device: str = "cpu") -> tuple[DropoutState, list[SeededDropout]]:
    state = DropoutState(device)
    return state, [state.add_layer(p, width) for _ in range(count)]


def mask_of(seed: int, step: int, layer: int) -> np.ndarray:
    state, layers = dropout_layers(8, DROPPED, FEATURES)
    state.set_step(seed, step, [TOKENS])
    return layers[layer].kept(torch.empty(1, TOKENS, FEATURES)).numpy()


def reference(seed: int, step: int, layer: int, tokens: int, features: int, p: float) -> np.ndarray:
    """Compute a mask with Python's integers, which have no largest value."""

    def mixed(word: int) -> int:
        word = (word ^ word >> 16) * 0x7FEB352D % 2**32
        word = (word ^ word >> 15) * 0x846CA68B % 2**32
        return word ^ word >> 16

    first, second = np.random.SeedSequence((seed, step)).generate_state(2).tolist()
    rows = [mixed(mixed(token ^ first) ^ mixed(layer + 1)) | 1 for token in range(tokens)]
    columns = [mixed(feature ^ second) | 1 for feature in range(features)]
    limit = round((1 - p) * 2**32)
    # The comparison is one of signed numbers.
    return np.array([[(row * column + 2**31) % 2**32 < limit for column in columns] for row in rows])


@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 1), (2**32 - 1, 40_000)])
def test_a_mask_has_the_bits_of_the_definition(seed: int, step: int) -> None:
    """That PyTorch computes the same bits as NumPy is tested in test_other_device.py."""
    for p in (1e-12, 0.1, 0.5, 0.999):
        state, layers = dropout_layers(3, p, 33)
        state.set_step(seed, step, (5, 16))
        for number, layer in enumerate(layers):
            found = layer.kept(torch.empty(1, 21, 33))
            assert np.array_equal(found.numpy(), reference(seed, step, number, 21, 33, p))
            assert found.shape == (21, 33)


def test_a_small_mask_on_a_cpu_is_in_float32() -> None:
    """A mask of bytes would be converted by each operation that uses it; one in float32 takes four times the memory."""
    state, (layer,) = dropout_layers(1, 0.5, 64)
    for tokens, dtype, found in (
        (512, torch.float32, torch.float32),
        (513, torch.float32, torch.int8),
        (8, torch.bfloat16, torch.int8),
    ):
        state.set_step(0, 1, (tokens,))
        kept = layer.kept(torch.empty(1, tokens, 64, dtype=dtype))
        assert kept.dtype == found and np.array_equal(kept.numpy(), reference(0, 1, 0, tokens, 64, 0.5))


def test_a_mask_does_not_depend_on_how_a_batch_is_split() -> None:
    """Packed in one pass, packed in several passes, padded, and with one dimension less."""
    (state, layers), x, lengths = dropout_layers(6, 0.25, 8), torch.ones(1, 9, 8), (4, 3, 2)
    layer = layers[5]
    state.set_step(3, 4, lengths)
    unsplit = layer.kept(x)
    assert torch.equal(layer.kept(x[0]), unsplit)
    padded = layer.kept(torch.ones(3, 4, 8)).view(3, 4, 8)
    assert torch.equal(torch.cat([rows[:length] for rows, length in zip(padded, lengths, strict=True)]), unsplit)
    state.set_pass(1, 2)
    padded = layer.kept(torch.ones(2, 3, 8)).view(2, 3, 8)
    assert torch.equal(torch.cat([rows[:length] for rows, length in zip(padded, lengths[1:], strict=True)]), unsplit[4:])
    parts = []
    for first, length in enumerate(lengths):
        state.set_pass(first, 1)
        parts.append(layer.kept(x[:, :length]))
    assert torch.equal(torch.cat(parts), unsplit)
    assert not torch.equal(layer.kept(x[:, :2]), layers[4].kept(x[:, :2]))
    for seed, step in ((3, 5), (4, 4)):
        state.set_step(seed, step, lengths)
        assert not torch.equal(layer.kept(x), unsplit)


def test_a_pass_outside_of_a_training_has_other_masks_for_each_row() -> None:
    _, [layer] = dropout_layers(1, 0.5, 8)
    kept = layer.kept(torch.ones(2, 64, 8))
    assert not torch.equal(kept[:64], kept[64:])


def test_masks_can_be_computed_on_a_device_without_data() -> None:
    """The device ``meta`` raises where the host reads a value, so no mask makes the host wait for a GPU."""
    state, layers = dropout_layers(2, 0.1, 16, "meta")
    state.set_step(0, 1, (3, 4))
    state.set_pass(0, 2)
    for shape in ((1, 7, 16), (2, 4, 16)):
        kept = layers[1].kept(torch.empty(shape, device="meta"))
        assert kept.device.type == "meta" and kept.shape == (shape[0] * shape[1], 16)


def flaws(mask: Mask) -> dict[str, float]:
    """Return statistics of a mask that chance does not explain, by name. Each is expected to be 1, or at most 1.

    Masks are standardized to mean 0 and variance 1, so that a sum of n independent entries, divided by sqrt(n), has variance 1.
    """
    standard: Mask = lambda *place: (mask(*place) - (1 - DROPPED)) / (DROPPED * (1 - DROPPED)) ** 0.5  # noqa: E731
    one = standard(0, 1, 0)
    found = {"rate": abs(one.sum() / one.size**0.5) / 4}
    for name, rows in (("tokens", one), ("features", one.T)):
        sums = rows.sum(axis=1) / rows.shape[1] ** 0.5
        found[f"kept by {name}"] = float((sums**2).mean())
        pairs = (rows @ rows.T)[np.triu_indices(len(rows), 1)] / rows.shape[1] ** 0.5
        found[f"correlations of {name}"] = float((pairs**2).mean())
    # The largest singular value of a random matrix (Marchenko and Pastur): any common pattern of rows or columns exceeds it.
    found["pattern"] = float(np.linalg.norm(one, 2) / (TOKENS**0.5 + FEATURES**0.5))
    neighbours = {
        "layers": [(0, 1, layer) for layer in range(1, 8)],
        "steps": [(0, step, 0) for step in (2, 3, 4, 1_001, 1_002)],
        "seeds": [(seed, 1, 0) for seed in (1, 2, 3, 1_001, 2**31)],
        "seeds and steps": [(1, 0, 0), (1, 2, 0), (2, 1, 1)],
    }
    for name, places in neighbours.items():
        found[f"correlations of {name}"] = max(abs(float((one * standard(*place)).sum())) / one.size**0.5 for place in places) / 4
    limits = {"kept by tokens": 1.25, "kept by features": 1.4}
    return {name: value for name, value in found.items() if value > limits.get(name, 1.02)}


def test_masks_are_random_in_every_direction() -> None:
    assert flaws(mask_of) == {}


def test_hashes_that_are_too_simple_are_detected() -> None:
    """Negative controls: sums instead of products, and masks that ignore the layer, the seed, or all but seed + step."""

    def of_words(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return ((rows[:, None] + columns) % 2**32 < (1 - DROPPED) * 2**32).astype(np.int8)

    def added(seed: int, step: int, layer: int) -> np.ndarray:
        draw = np.random.default_rng((seed, step, layer))
        return of_words(draw.integers(2**32, size=TOKENS), draw.integers(2**32, size=FEATURES))

    assert {"correlations of tokens", "correlations of features", "pattern"} <= set(flaws(added))
    assert set(flaws(lambda seed, step, layer: mask_of(seed, step, 0))) == {"correlations of layers"}
    assert set(flaws(lambda seed, step, layer: mask_of(0, step, layer))) == {"correlations of seeds"}
    assert set(flaws(lambda seed, step, layer: mask_of(0, seed + step, layer))) == {"correlations of seeds and steps"}


@pytest.mark.parametrize(("equal_word", "steps"), [(0, (2_983, 68_855)), (1, (61_752, 69_764))])
def test_both_words_of_the_seed_count(equal_word: int, steps: tuple[int, int]) -> None:
    """One word of two steps is equal by chance, as happens among 70,000 steps. The masks of the steps are still unrelated."""
    words = [np.random.SeedSequence((0, step)).generate_state(2).tolist() for step in steps]
    assert [one == other for one, other in zip(*words, strict=True)] == [equal_word == 0, equal_word == 1]
    masks = [(mask_of(0, step, 0) - (1 - DROPPED)) / (DROPPED * (1 - DROPPED)) ** 0.5 for step in steps]
    assert abs(float((masks[0] * masks[1]).sum())) < 4 * masks[0].size ** 0.5
