"""What a run computes: tokens, FLOPs, pairs of attention, and the operators that a GPU is asked for.

Each operator costs the host one or more kernel launches. The counts per layer were taken with PyTorch's dispatcher on the
engine's own passes of a llama in bfloat16 (2026-11-28; a test takes them again). Views launch no kernel and are not counted.
Other architectures differ: per layer, gpt_neox takes 0.6 times as many operators in training and gemma3 1.6 times.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINING_LAYER = 104
"""Operators of one layer in a forward and backward pass, without its adapters and its attention calls."""
TRAINING_ADAPTED = 21
"""Operators that an adapter adds to one linear layer, forward and backward."""
TRAINING_ALL_WEIGHTS = 22
"""Operators of one layer for the gradients of its own weights, where all weights are trained."""
TRAINING_CALL = 2
"""Operators of one attention call in one layer: forward and backward. Sequences of one length, side by side, share a call."""
TRAINING_PASS = 31
"""Operators of a forward and backward pass outside its layers: input, embedding, output layer, loss."""
TRAINING_STEP = 12
"""Operators of an optimizer step: norm and clipping of the gradient, AdamW."""

SCORING_LAYER = 38
"""Operators of one layer in a forward pass of scoring, without its attention calls."""
SCORING_CALL = 1
"""Operators of one attention call in one layer: each tree of questions is a call, and chains of one length share one."""
SCORING_REPEAT = 2
"""Operators that repeat keys and values for one attention call with a mask in one layer, where heads are grouped."""
SCORING_MASK = 10
"""Operators that make the mask of one tree, once for all layers."""
SCORING_PASS = 33
"""Operators of a forward pass of scoring outside its layers."""

DECODING_LAYER = 43
"""Operators of one layer when each row of a batch writes one token; as many when contexts are computed."""
DECODING_PASS = 39
"""Operators outside the layers of such a pass."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size, counted from its configuration."""

    parameters: int
    """All weights; one that serves as input and output layer counts once."""
    computing: int
    """Weights that multiply every token: all but the input embedding and the output layer."""
    output: int
    """Weights of the output layer, which multiply only what is predicted."""
    trained: int
    """Weights that the recipe trains."""
    layers: int
    """Transformer layers (blocks)."""
    adapted: int
    """Linear layers that carry an adapter, in the whole model; 0 where all weights are trained."""
    query_width: int
    """Attention heads times head size: width of the queries of one token in one layer."""
    key_width: int
    """Key-value heads times head size: width of the keys of one token in one layer."""

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key head."""
        return self.key_width < self.query_width


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """What training computes, over all epochs."""

    tokens: int = 0
    """Tokens fed."""
    labels: int = 0
    """Tokens predicted."""
    steps: int = 0
    """Optimizer steps."""
    passes: int = 0
    """Forward and backward passes."""
    calls: int = 0
    """Attention calls of one layer: one for each run of sequences of one length, side by side in a pass."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer: S(S+1)/2 in a sequence of S tokens."""


@dataclass(frozen=True, kw_only=True)
class DecodingWork:
    """What writing answers computes, if every answer is as long as it may be: answers may end sooner."""

    contexts: int = 0
    """Tokens of contexts that are computed, padding included."""
    tokens: int = 0
    """Tokens written."""
    passes: int = 0
    """Passes over the contexts of a batch; each writes the first token of its rows."""
    steps: int = 0
    """Decoding steps: passes in which each row of a batch writes one more token."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer."""
    cached: int = 0
    """Cached positions that attention reads in one layer, all rows and steps together."""


@dataclass(frozen=True, kw_only=True)
class ScoringWork:
    """What scoring some examples takes."""

    tokens: int
    """Tokens of contexts and continuations, each request counted by itself: what a record calls scoring tokens."""
    computed: int = 0
    """Tokens of log-likelihood requests that are computed when shared beginnings are computed once."""
    predicted: int = 0
    """Tokens of log-likelihood requests that are predicted."""
    passes: int = 0
    """Forward passes of log-likelihood requests."""
    calls: int = 0
    """Attention calls of one layer in these passes."""
    masks: int = 0
    """Attention calls of which take a mask: trees with branches, and trees behind a shared prefix."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer; under a mask also those that it hides."""
    written: DecodingWork = DecodingWork()
    """Answers to write."""


def training_flops(size: ModelSize, fed: TrainingWork) -> float:
    """Return the multiplications and additions of training: 2 forward and 2 backward a frozen weight, 2 more a trained one.

    Source: 6 x parameters x tokens (Kaplan et al. 2020, arXiv 2001.08361), less the gradients that nobody needs.
    """
    each = 4 * size.computing + 6 * size.trained if size.adapted else 6 * size.computing
    return float(each * fed.tokens + 4 * size.output * fed.labels)


def loglikelihood_flops(size: ModelSize, asked: ScoringWork) -> float:
    """Return the multiplications and additions of scoring log-likelihood requests: 2 a weight and token."""
    return float(2 * size.computing * asked.computed + 2 * size.output * asked.predicted)


def generation_flops(size: ModelSize, written: DecodingWork) -> float:
    """Return the multiplications and additions of writing answers: 2 a weight and token."""
    return float(2 * size.computing * (written.contexts + written.tokens) + 2 * size.output * written.tokens)


def scoring_flops(size: ModelSize, asked: ScoringWork) -> float:
    """Return the multiplications and additions of all that is asked."""
    return loglikelihood_flops(size, asked) + generation_flops(size, asked.written)


def attention_flops(size: ModelSize, pairs: int, *, training: bool = False) -> float:
    """Return the multiplications and additions of attention: two products forward, five more backward (flash attention).

    Sliding windows are not subtracted.

    Args:
        size: the model.
        pairs: pairs of a query and a key in one layer.
        training: with the backward pass.
    """
    return float((7 if training else 2) * 2 * size.query_width * size.layers * pairs)


def training_operators(size: ModelSize, fed: TrainingWork) -> int:
    """Return the operators of all optimizer steps of a training."""
    layers = size.layers * (TRAINING_LAYER + (0 if size.adapted else TRAINING_ALL_WEIGHTS))
    one_pass = TRAINING_PASS + layers + size.adapted * TRAINING_ADAPTED
    return fed.passes * one_pass + fed.calls * size.layers * TRAINING_CALL + fed.steps * TRAINING_STEP


def scoring_operators(size: ModelSize, asked: ScoringWork) -> int:
    """Return the operators of scoring once what is asked, without answers that are written."""
    one_pass = SCORING_PASS + size.layers * SCORING_LAYER
    repeats = size.layers * SCORING_REPEAT if size.grouped else 0
    return asked.passes * one_pass + asked.calls * size.layers * SCORING_CALL + asked.masks * (SCORING_MASK + repeats)


def decoding_operators(size: ModelSize, written: DecodingWork) -> int:
    """Return the operators of writing answers: of the passes over contexts and of the decoding steps."""
    return (written.passes + written.steps) * (DECODING_PASS + size.layers * DECODING_LAYER)
