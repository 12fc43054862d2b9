"""A simulated device "far", for machines without a GPU. Its tensors compute on the CPU and cannot be mixed with CPU tensors.

``python -m far llama`` prints as JSON the results of the engine for a tiny model on the CPU ("here") and on "far" ("there"), and
for llama also of one whose blocks are on both devices ("split").
It must run in a new process. PyTorch allows one such device for each process, and reports an accelerator from then on.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from accelerate import dispatch_model
from joint import Run, train_jointly
from tiny import tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine import attention_kernels as attention
from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.continuous_batching import _Batch
from lm_harmony.engine.dropout import DropoutState
from lm_harmony.engine.forward import prefix_tree_logprobs
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import READ_EVERY, TrainState
from lm_harmony.engine.training import _backward, fine_tune
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.caches import checksum

MOVES = {"_to_copy", "copy_"}
"""Operators that copy from one device to the other."""
WAITS = {"_local_scalar_dense", "_unique2", "nonzero"}
"""Operators whose result the host needs. It waits until the device has finished all queued work."""
seen: Counter[str] = Counter()
"""Number of copies in each direction ("to far", "from far"), and number of calls of each of ``WAITS`` on "far"."""


class Far(torch.Tensor):
    """A tensor on the device "far"."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        strides, offset = near.stride(), near.storage_offset()
        made: Far = torch.Tensor._make_wrapper_subclass(
            cls, near.size(), strides=strides, storage_offset=offset, dtype=near.dtype, device="far:0"
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return compute(func, args, dict(kwargs or {}))


def is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == "far"


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operator of the far device on the CPU."""
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Far)]
    cpu_shapes = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, Far) and tensor.dim() > 0]
    if cpu_shapes and name not in MOVES:
        raise RuntimeError(f"{func} mixes tensors of the CPU, {cpu_shapes}, with {len(far)} of the far device")
    if far and name in WAITS:
        seen[name] += 1
    ends = [isinstance(tensor, Far) for tensor in tensors]  # of copy_: (to, from)
    if name == "_to_copy" and device is not None:
        ends.insert(0, is_far(device))
    if name in MOVES and len(set(ends)) == 2:
        seen["to far" if ends[0] else "from far"] += 1
    inputs, options = tree_map(lambda leaf: leaf.near if isinstance(leaf, Far) else leaf, (args, kwargs))
    if device is not None:
        options["device"] = torch.device("cpu")
    found = func(*inputs, **options)
    comes_back = name == "_local_scalar_dense" or (device is not None and not is_far(device))
    if comes_back or (name == "copy_" and not isinstance(args[0], Far)):
        return found
    changed = {id(tensor.near): tensor for tensor in far}  # an operator in place returns the same tensor object

    def to_far(leaf: Any) -> Any:
        return leaf if not isinstance(leaf, torch.Tensor) else changed[id(leaf)] if id(leaf) in changed else Far(leaf)

    return tree_map(to_far, found)


class Dispatch(TorchDispatchMode):
    """Creates tensors on the far device if its name is passed as ``device``."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        touches = any(isinstance(leaf, Far) for leaf in tree_leaves((args, options)))
        return compute(func, args, options) if touches or is_far(options.get("device")) else func(*args, **options)


class Calls(TorchFunctionMode):
    """Implements three functions that create, move or replace tensors without the dispatcher."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.tensor and is_far(options.get("device")):
            device = options.pop("device")
            return torch.tensor(*args, **options).to(device)
        if func is torch.Tensor.tolist and isinstance(args[0], Far):
            return args[0].cpu().tolist()
        if func == torch.Tensor.data.__set__ and isinstance(args[0], Far):  # type: ignore[attr-defined]
            args[0].near = args[1].near  # PyTorch replaces the storage, but not the attributes of the Python object
        return func(*args, **options)


class Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """Functions that PyTorch requires of every accelerator."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


SEQUENCES = [TokenSequence(ids=tuple(range(5, 5 + size)), first_label=1, row=size) for size in (9, 14, 6, 11, 7)]
RECIPE = Recipe(lora=Lora(lora_dropout=0.1), epochs=2, batch_size=2, learning_rate=1e-2)


def masks(device: torch.device) -> list[list[list[int]]]:
    """Return dropout masks of a packed row and of a padded batch, in three layers of two steps."""
    state, found = DropoutState(device), []
    layers = [state.add_layer(0.3, 33) for _ in range(3)]
    for step in (1, 2):
        state.set_step(7, step, (4, 3, 2))
        for layer in layers:
            found += [layer.kept(torch.empty(shape, device=device)).tolist() for shape in ((1, 9, 33), (3, 4, 33))]
    return found


def answers(model: LanguageModel) -> dict[str, Any]:
    """Train, score and generate with ``model`` on every backend."""
    backend = choose_backend(model)
    found: dict[str, Any] = {"packed": backend.packed, "writes": backend.continuous_batching, "masks": masks(model.device)}
    scoring = [
        Request(kind="loglikelihood", context=context, continuation=f" {answer}")
        for context in ("the cat", "a dog is here")
        for answer in ("one", "two three")
    ]
    generation = [
        Request(kind="generate_until", context=context, continuation="", generation={"until": ["."], "max_gen_toks": 5})
        for context in ("the cat", "a dog is here", "x")
    ]
    for name, backend in (("packed", PACKED), ("padded", PADDED)):
        scorer = Scorer(model=model, backend=backend, batch_size=2, max_new_tokens=5, seed=0)
        found[f"{name} scores"] = [nats for nats, _ in scorer.reply(scoring)]
        found[f"{name} texts"] = scorer.reply(generation)
        with trainable(model, RECIPE, seed=0) as trainee:
            epochs = fine_tune(trainee, SEQUENCES, RECIPE, seed=0, micro_batch=2, backend=backend)
            found[f"{name} losses"] = [epoch.loss for epoch in epochs]
    if not model.device_map:  # joint training of a split model is refused
        found["joint losses"] = joint_losses(model)
    return found | {"checksum": checksum(model.module)}


def joint_losses(model: LanguageModel) -> list[float]:
    """Return the losses of three runs that are trained jointly."""
    runs = [Run(sequences=SEQUENCES, recipe=RECIPE, seed=seed, micro_batch=2) for seed in (0, 1, 2)]
    return [epoch.loss for epochs, _ in train_jointly(model, runs, 2).values() for epoch in epochs]


def split_answers() -> dict[str, Any]:
    """Return the answers of a llama whose first block is on the CPU, and whose second block and output layer are on "far"."""
    model = tiny_model("llama")
    near, far = ("embed_tokens", "rotary_emb", "layers.0"), ("model.layers.1", "model.norm", "lm_head")
    places = {f"model.{name}": "cpu" for name in near} | dict.fromkeys(far, "far:0")
    dispatch_model(model.module, places, main_device="cpu")
    with torch.autograd.set_multithreading_enabled(False):  # the simulated device has no queue that another thread could wait for
        return {"devices": sorted(set(model.device_map.values())), **answers(model)}


LONG = [TokenSequence(ids=tuple(range(5, 5 + size)), first_label=1, row=size) for size in (25, 40, 31, 22) * READ_EVERY]
"""Sequences longer than the sliding windows of the tiny models. They last for more steps than READ_EVERY."""


def waits_of(model: LanguageModel, backend: Backend, disturbed: Callable[[Trainee], object]) -> list[dict[str, int]]:
    """Return for each training step the counts of operators that make the host wait, and of copies between the devices.

    Args:
        model: a model on the far device.
        backend: backend of the training.
        disturbed: function that changes the trainee before the training.
    """
    found = []
    with trainable(model, RECIPE, seed=0) as trainee:
        disturbed(trainee)
        trainee.module.train()
        state = TrainState(trainee, LONG, RECIPE, seed=0)
        state.begin_epoch()
        for _ in range(READ_EVERY + 1):
            seen.clear()
            with backend.active(model.module):
                losses, _ = _backward(state, 2, backend)
            state.advance(losses)
            found.append(dict(seen))
    return found


def reading_gradients(trainee: Trainee) -> None:
    """Make the host read every gradient (negative control)."""
    for weight in trainee.trained_parameters().values():
        weight.register_hook(lambda gradient: gradient.abs().max().item() * gradient)


def generation_waits(model: LanguageModel, steps: int) -> list[dict[str, int]]:
    """Return the same counts for the contexts of three answers, then for each read of their tokens after so many steps."""
    body = getattr(model.module, model.module.base_model_prefix)
    batch, found = _Batch(model.module, slots=3, longest=49, max_new_tokens=9, is_finished=lambda _: False), []
    with torch.no_grad(), packed_attention(model.module):
        while not found or batch.rows:
            seen.clear()
            if found:
                for inputs in batch.steps(steps):
                    batch.advance(body(**inputs).last_hidden_state)
                batch.read_steps()
            else:
                for inputs in batch.enter([0, 1, 2], [range(5, 45), range(7, 28), range(9, 36)], tokens=512):
                    batch.first_tokens(body(**inputs).last_hidden_state)
                batch.read_first_tokens()
            found.append(dict(seen))
    return found


def grouped_heads(model: LanguageModel) -> dict[str, list[bool]]:
    """Return for each attention call, with a mask and without, whether it passes ``enable_gqa=True`` to PyTorch."""
    grouped: dict[str, list[bool]] = {"masked": [], "causal": []}
    kernel = attention.scaled_dot_product_attention

    def recording(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        grouped["causal" if options["attn_mask"] is None else "masked"].append(options["enable_gqa"])
        return kernel(*tensors, **options)

    attention.scaled_dot_product_attention = recording
    prefix_tree_logprobs(model.module, [TokenSequence(ids=(5, 6, 7, last, last), first_label=3) for last in (8, 9, 10)])
    attention.scaled_dot_product_attention = kernel
    return grouped


def refused(function: Callable[[], object]) -> bool:
    try:
        function()
    except RuntimeError as error:
        return "mixes tensors" in str(error)
    return False


if __name__ == "__main__":
    # This must come first, because autograd counts the devices when it computes its first gradient.
    backend_registration._setup_privateuseone_for_python_backend("far", backend_module=Module())
    near, far = tiny_model(sys.argv[1]), tiny_model(sys.argv[1])
    here = answers(near)
    with ExitStack() as stack:
        for mode in (Dispatch(), Calls()):
            stack.enter_context(mode)
        torch.nn.Module.to(far.module, "far")
        there = answers(far)
        waits = {
            "packed": waits_of(far, PACKED, lambda trainee: None),
            "padded": waits_of(far, PADDED, lambda trainee: None),
            "disturbed": waits_of(far, PACKED, reading_gradients),
            "generation": generation_waits(far, steps=4),
            "generation, one step a read": generation_waits(far, steps=1),
        }
        heads = {"far": grouped_heads(far)}
        half = torch.nn.Module.to(tiny_model(sys.argv[1]).module, torch.bfloat16)
        heads["far, half precision"] = grouped_heads(replace(far, module=torch.nn.Module.to(half, "far")))
        mixed = refused(lambda: far.module.get_output_embeddings()(torch.zeros(1, far.module.config.hidden_size)))
        split = split_answers() if sys.argv[1] == "llama" else {}
    heads["here"] = grouped_heads(near)
    found = {"here": here, "there": there, "split": split, "device": far.device.type, "mixed is refused": mixed}
    print(json.dumps({**found, "waits": waits, "grouped": heads}))
