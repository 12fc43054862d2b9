"""Attention kernels for packed rows, and the gathers into padded groups and back.

Shapes: G segments of a group, H query heads, K key heads, M queries, T keys, D head size, N tokens of a row, Q slots of all
groups of the row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

_CPU_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The kernel behind ``scaled_dot_product_attention`` on a CPU; returns (attention, log-sum-exp of the scores)."""
_CPU_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True)
class AttentionKernels:
    """Which kernels compute packed attention. By default, scaled_dot_product_attention computes padded groups."""

    varlen: bool = False
    """Rows of plain sequences go through PyTorch's flash attention for sequences of different lengths, without padding."""
    merged_prefix: bool = False
    """In scoring, attention to a shared prefix is a call of its own without a mask, merged by the log-sum-exp of the scores."""


DEFAULT_KERNELS = AttentionKernels()
"""Kernels that every device and type supports."""


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, scale: float | None, dropout: float
) -> torch.Tensor:
    """Return G x H x M x D, computed by PyTorch's fused kernels; without a mask, attention is causal."""
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type != "cpu" and (mask is not None or v.dtype.itemsize > 2):
        # On a GPU only the flash kernel supports grouped heads, and only without a mask and in half precision. Otherwise
        # PyTorch 2.11 to 2.13 would write the attention scores of all heads to memory.
        (k, v), grouped = _repeated(q, k, v), False
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def softcapped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, scale: float | None, softcap: float
) -> torch.Tensor:
    """Return attention with scores soft-capped to (-softcap, softcap), which no fused kernel supports (gemma2)."""
    k, v = _repeated(q, k, v)
    scores = torch.tanh(q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale) / softcap) * softcap
    if mask is None:
        mask = scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    weights = (scores + mask).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


def varlen_attention(
    q_NxHxD: torch.Tensor,
    k_NxKxD: torch.Tensor,
    v_NxKxD: torch.Tensor,
    bounds: torch.Tensor,
    *,
    longest: int,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Return N x H x D of plain sequences, each with causal attention; in half precision on CUDA only.

    Args:
        q_NxHxD: queries of a row.
        k_NxKxD: keys.
        v_NxKxD: values.
        bounds: row index of the first token of each sequence and, at the end, N; int32.
        longest: tokens of the longest sequence.
        window: sliding window in tokens, including the token itself; None for no window.
        scale: factor of the scores; None for the inverse square root of the head size.
    """
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if q_NxHxD.shape[1] != k_NxKxD.shape[1]:
        if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:  # since PyTorch 2.12
            options["enable_gqa"] = True
        else:
            k_NxKxD, v_NxKxD = _repeated(q_NxHxD, k_NxKxD, v_NxKxD)
    found: torch.Tensor = varlen.varlen_attn(q_NxHxD, k_NxKxD, v_NxKxD, bounds, bounds, longest, longest, **options)  # type: ignore[assignment]
    return found


def attention_with_sums(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, causal: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention G x H x M x D, and the log-sum-exp of the scores of each query, G x H x M, without gradients."""
    k, v = _repeated(q, k, v)
    if q.device.type == "cpu":
        return _CPU_KERNEL(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]
    if mask is not None:
        mask = mask.expand(-1, q.shape[1], -1, -1)
    found, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, causal, scale=scale)
    return found, sums[..., : q.shape[2]]  # the kernel fills the number of queries up to a multiple of 32


def merged_attention(one: torch.Tensor, one_sums: torch.Tensor, other: torch.Tensor, other_sums: torch.Tensor) -> torch.Tensor:
    """Return attention over two sets of keys from the attention over each of them.

    Args:
        one: attention over the first set of keys.
        one_sums: log-sum-exp of the scores of the first set, with the shape of ``one`` without its last dimension.
        other: attention over the second set of keys.
        other_sums: log-sum-exp of the scores of the second set.
    """
    share = torch.sigmoid(one_sums - other_sums)[..., None]
    return torch.lerp(other.float(), one.float(), share.float()).to(one.dtype)


def _repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values repeated for each query head; heads are dimension 1."""
    repeat = q.shape[1] // k.shape[1]
    return (k, v) if repeat == 1 else (k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1))


def as_groups(slots_QxHxD: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Return the slots of each group as G x H x M x D; ``shapes`` are G x M of the groups."""
    # split(), not slices: the backward pass of a slice fills a tensor as long as the row with zeros.
    parts = (slots_QxHxD,) if len(shapes) == 1 else slots_QxHxD.split([math.prod(shape) for shape in shapes])
    return [part.view(*shape, *part.shape[1:]).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


def as_slots(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return Q x H x D of the groups G x H x M x D."""
    slots = [group.transpose(1, 2).flatten(0, 1) for group in groups]
    return slots[0] if len(slots) == 1 else torch.cat(slots)


def chain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shapes: Sequence[tuple[int, int]],
    gathers: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float | None,
) -> torch.Tensor:
    """Return N x H x D of a row of single sequences on a CPU: the gathers and causal attention as one operation of autograd.

    The results are those of ``to_slots``, ``attention`` and ``from_slots``. On short texts the many nodes of autograd that this
    saves take longer than attention itself. A GPU is left to PyTorch, which chooses among several kernels there.

    Args:
        query: 1 x H x N x D, without autocast.
        key: 1 x K x N x D, in the type of the query.
        value: 1 x K x N x D, in the type of the query.
        shapes: G x M of each group.
        gathers: the row index of the token in each slot, Q, and the slot of each token, N; None if the slots are the row.
        scale: factor of the scores; None for the inverse square root of the head size.
    """
    found: torch.Tensor = _ChainAttention.apply(query, key, value, shapes, gathers, scale)  # type: ignore[no-untyped-call]
    return found


def to_slots(rows_NxHxD: torch.Tensor, slots_Q: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
    """Return the Q x H x D slots of padded groups; ``slots_Q`` is the row of each slot, ``back_N`` the slot of each row."""
    padded: torch.Tensor = _ToSlots.apply(rows_NxHxD, slots_Q, back_N)  # type: ignore[no-untyped-call]
    return padded


def from_slots(padded_QxHxD: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
    """Return the N x H x D rows without padding."""
    rows: torch.Tensor = _FromSlots.apply(padded_QxHxD, back_N)  # type: ignore[no-untyped-call]
    return rows


class _ChainAttention(torch.autograd.Function):
    """Causal attention inside padded groups. The gradient of padding is zero, so each token takes that of its own slot."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shapes: Sequence[tuple[int, int]],
        gathers: tuple[torch.Tensor, torch.Tensor] | None,
        scale: float | None,
    ) -> torch.Tensor:
        rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
        if gathers:
            rows = [row_NxHxD.index_select(0, gathers[0]) for row_NxHxD in rows]
        groups = list(zip(*(as_groups(row, shapes) for row in rows), strict=True))
        found = [_CPU_KERNEL(q, k, v, 0.0, True, scale=scale) for q, k, v in groups]
        ctx.save_for_backward(*chain.from_iterable((*inputs, *outputs) for inputs, outputs in zip(groups, found, strict=True)))
        ctx.shapes, ctx.gathers, ctx.scale = shapes, gathers, scale
        slots_QxHxD = as_slots([output for output, _ in found])
        return slots_QxHxD.index_select(0, gathers[1]) if gathers else slots_QxHxD

    @staticmethod
    def backward(ctx: Any, grad_NxHxD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, grad_QxHxD = ctx.saved_tensors, grad_NxHxD
        if ctx.gathers:
            slots_Q, back_N = ctx.gathers
            grad_QxHxD = grad_NxHxD.new_zeros(len(slots_Q), *grad_NxHxD.shape[1:]).index_copy_(0, back_N, grad_NxHxD)
        groups = [
            _CPU_KERNEL_BACKWARD(grad, *saved[5 * index : 5 * index + 5], 0.0, True, scale=ctx.scale)
            for index, grad in enumerate(as_groups(grad_QxHxD, ctx.shapes))
        ]
        rows = [as_slots(parts) for parts in zip(*groups, strict=True)]
        if ctx.gathers:
            rows = [row_QxHxD.index_select(0, back_N) for row_QxHxD in rows]
        return *(row_NxHxD.transpose(0, 1)[None] for row_NxHxD in rows), None, None, None


class _ToSlots(torch.autograd.Function):
    """Gather tokens into padded slots. The gradient of padding is zero, so each token takes that of its own slot."""

    @staticmethod
    def forward(ctx: Any, rows_NxHxD: torch.Tensor, slots_Q: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        return rows_NxHxD.index_select(0, slots_Q)

    @staticmethod
    def backward(ctx: Any, grad_QxHxD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return grad_QxHxD.index_select(0, back_N), None, None


class _FromSlots(torch.autograd.Function):
    """Gather tokens back from padded slots. A copy, unlike the sum of PyTorch's own backward pass, is deterministic on a GPU."""

    @staticmethod
    def forward(ctx: Any, padded_QxHxD: torch.Tensor, back_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        ctx.slots = len(padded_QxHxD)
        return padded_QxHxD.index_select(0, back_N)

    @staticmethod
    def backward(ctx: Any, grad_NxHxD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (back_N,) = ctx.saved_tensors
        padded_QxHxD = grad_NxHxD.new_zeros(ctx.slots, *grad_NxHxD.shape[1:])
        return padded_QxHxD.index_copy_(0, back_N, grad_NxHxD), None
