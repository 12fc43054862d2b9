"""The work of a run: tokens, FLOPs, query-key pairs of attention, and PyTorch operators.

Each operator costs the host one or more kernel launches. The operators of a layer were counted with PyTorch's dispatcher on the
engine's own passes of a llama in bfloat16 (2026-11-28). A test counts them again. Views launch no kernel and are not counted.
Other architectures differ: per layer, gpt_neox needs 0.6 times as many operators in training and gemma3 1.6 times.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_harmony.engine.model_size import ModelSize

TRAINING_LAYER = 104
"""Operators of one layer in a forward and backward pass, without its adapters and its attention calls."""
TRAINING_ADAPTED = 13
"""Operators that an adapter adds to one linear layer, forward and backward, of which two compute the dropout mask on a GPU."""
TRAINING_ALL_WEIGHTS = 22
"""Operators of one layer for the gradients of its own weights, where all weights are trained."""
TRAINING_CALL = 2
"""Operators of one attention call in one layer, forward and backward. Sequences of similar length share a call."""
TRAINING_PASS = 31
"""Operators of a forward and backward pass outside its layers: input, embedding, output layer, loss."""
TRAINING_STEP = 12
"""Operators of an optimizer step: norm and clipping of the gradient, AdamW."""

SCORING_LAYER = 42
"""Operators of one layer in a forward pass of scoring, without its attention calls."""
SCORING_CALL = 1
"""Operators of one attention call in one layer. Prefix trees of similar length share a call."""
SCORING_REPEAT = 2
"""Operators that repeat keys and values for one attention call with a mask in one layer, where heads are grouped."""
SCORING_MASK = 10
"""Operators that build the mask of one attention call, once for all layers."""
SCORING_PASS = 33
"""Operators of a forward pass of scoring outside its layers."""

DECODING_LAYER = 40
"""Operators of one layer when one token is generated in each row of a batch; four more when contexts are computed."""
DECODING_PASS = 30
"""Operators outside the layers of such a pass."""


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """The work of training, over all epochs."""

    tokens: int = 0
    """Number of input tokens."""
    labels: int = 0
    """Number of tokens that are predicted."""
    steps: int = 0
    """Number of optimizer steps."""
    passes: int = 0
    """Number of forward and backward passes."""
    calls: int = 0
    """Attention calls of one layer: one for each group of sequences of similar length in a pass, at most three."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer: S(S+1)/2 in a sequence padded to S tokens."""


@dataclass(frozen=True, kw_only=True)
class DecodingWork:
    """The work of generating answers, if every answer has the largest allowed length. Answers may end sooner."""

    contexts: int = 0
    """Number of context tokens that are computed if shared beginnings are computed once."""
    tokens: int = 0
    """Number of generated tokens."""
    passes: int = 0
    """Passes over contexts. Each one generates the first token of its rows."""
    steps: int = 0
    """Decoding steps: passes that generate one more token in each row of a batch."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer."""
    cached: int = 0
    """Cached positions that attention reads in one layer, all rows and steps together."""


@dataclass(frozen=True, kw_only=True)
class ScoringWork:
    """The work of scoring examples once."""

    tokens: int
    """Tokens of contexts and continuations, each request counted by itself (``scoring_tokens`` of a record)."""
    computed: int = 0
    """Tokens of log-likelihood requests that are computed if shared prefixes are computed once."""
    predicted: int = 0
    """Predicted tokens of log-likelihood requests."""
    passes: int = 0
    """Forward passes of log-likelihood requests."""
    calls: int = 0
    """Attention calls of one layer in these passes."""
    masks: int = 0
    """Attention calls that need a mask: groups of trees with branches, and groups after a shared prefix."""
    pairs: int = 0
    """Pairs of a query and a key that attention multiplies in one layer, masked ones included."""
    decoding: DecodingWork = DecodingWork()
    """The work of generating the answers of generation requests."""


def training_flops(size: ModelSize, work: TrainingWork) -> float:
    """Return the FLOPs of training: 2 forward and 2 backward for each frozen weight and token, 2 more for each trained weight.

    The logits of a trained output layer are computed twice, so each of its weights has 8 for each label (``engine.lm_head``).
    Source: 6 x parameters x tokens (Kaplan et al. 2020, arXiv 2001.08361), without the gradients that are not needed.
    """
    each = 4 * size.computing + 6 * size.trained if size.adapted else 6 * size.computing
    return float(each * work.tokens + (4 if size.adapted else 8) * size.output * work.labels)


def loglikelihood_flops(size: ModelSize, work: ScoringWork) -> float:
    """Return the FLOPs of scoring log-likelihood requests: 2 for each weight and token."""
    return float(2 * size.computing * work.computed + 2 * size.output * work.predicted)


def generation_flops(size: ModelSize, work: DecodingWork) -> float:
    """Return the FLOPs of generating answers: 2 for each weight and token."""
    return float(2 * size.computing * (work.contexts + work.tokens) + 2 * size.output * work.tokens)


def scoring_flops(size: ModelSize, work: ScoringWork) -> float:
    """Return the FLOPs of scoring once, with log-likelihood and generation requests."""
    return loglikelihood_flops(size, work) + generation_flops(size, work.decoding)


def attention_flops(size: ModelSize, pairs: int, *, training: bool = False) -> float:
    """Return the FLOPs of attention: two matrix products forward and five backward (flash attention).

    Sliding windows are ignored, so this is an upper bound for models that use them.

    Args:
        size: the model.
        pairs: pairs of a query and a key in one layer.
        training: with the backward pass.
    """
    return float((7 if training else 2) * 2 * size.query_width * size.layers * pairs)


def training_operators(size: ModelSize, work: TrainingWork, joint: int = 1) -> float:
    """Return the operators of all optimizer steps of a training.

    Args:
        size: the model.
        work: the work of the run.
        joint: number of runs that share each pass, if their batches take equally many passes. Each run has its own optimizer.
    """
    layers = size.layers * (TRAINING_LAYER + (0 if size.adapted else TRAINING_ALL_WEIGHTS))
    one_pass = TRAINING_PASS + layers + size.adapted * TRAINING_ADAPTED
    passes = work.passes * one_pass + work.calls * size.layers * TRAINING_CALL
    return passes / joint + work.steps * TRAINING_STEP


def scoring_operators(size: ModelSize, work: ScoringWork) -> int:
    """Return the operators of scoring log-likelihood requests once."""
    one_pass = SCORING_PASS + size.layers * SCORING_LAYER
    repeats = size.layers * SCORING_REPEAT if size.grouped else 0
    return work.passes * one_pass + work.calls * size.layers * SCORING_CALL + work.masks * (SCORING_MASK + repeats)


def decoding_operators(size: ModelSize, work: DecodingWork) -> int:
    """Return the operators of generating answers: of the passes over contexts and of the decoding steps."""
    return (work.passes + work.steps) * (DECODING_PASS + size.layers * DECODING_LAYER)
