"""Small random models of every causal architecture of transformers, and what the default recipe does with each.

``python tests/architectures.py`` prints the table of docs/architectures.md.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tiny import MAX_LENGTH, VOCABULARY, tiny_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.lora_targets import peft_default
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import HarmonyError
from lm_harmony.models.loading import build_language_model
from lm_harmony.recipe import Recipe

SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "attention_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "state_size"), 8),
    "linear_head_dim": 8,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar", "mamba_d_state"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "time_step_rank"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "mamba_d_head", "sliding_window", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), MAX_LENGTH),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "mamba_n_heads", "rotary_dim"), 4),
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0}
MOST_PARAMETERS = 3_000_000
"""Architectures whose vision or audio part cannot be made small this way are left out."""
ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the default recipe did with an architecture."""

    architecture: str
    """Its model_type."""
    targets: str
    """Names of the adapted modules."""
    source: str
    """PEFT, derived, refused, or "fails" if transformers' own forward pass fails at these sizes."""
    packed: bool = False
    """Whether the probe chose packed rows."""
    refusal: str = ""
    """The line that refuses it."""


def small_module(architecture: str) -> PreTrainedModel | None:
    """Return a small model of an architecture, or None if transformers cannot build one from changed sizes alone."""
    try:
        config = CONFIG_MAPPING[architecture]()
        text = config.get_text_config()
        for part in {id(one): one for one in (text, config)}.values():
            _shrink(part)
        with torch.device("meta"):
            hollow = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        if sum(weight.numel() for weight in hollow.parameters()) > MOST_PARAMETERS:
            return None
        torch.manual_seed(0)
        module: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            batches = [torch.arange(2, 2 + rows * width).view(rows, width) for rows, width in ((1, 10), (3, 14))]
            finite = all(bool(module(input_ids=ids, use_cache=False).logits.isfinite().all()) for ids in batches)
    except Exception:  # noqa: BLE001  # each architecture has its own way to refuse sizes
        return None
    return module if finite else None


def _shrink(config: Any) -> None:
    """Set every size that the configuration has to a small one."""
    for name, size in SMALL.items():
        if getattr(config, name, None) is not None or (name == "head_dim" and hasattr(config, name)):
            setattr(config, name, size)
    for name, token in SPECIAL.items():
        setattr(config, name, token)
    for name in ("is_decoder", "causal"):  # encoders are refused unless they are decoders, whose tokens do not see later ones
        if getattr(config, name, None) is False:
            setattr(config, name, True)
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention has no grouped heads
        config.num_key_value_heads = config.num_attention_heads
    kinds = getattr(config, "layer_types", None)
    if kinds and not isinstance(getattr(type(config), "layer_types", None), property):
        config.layer_types = (list(dict.fromkeys(kinds)) * 2)[: max(2, len(set(kinds)))]
        config.num_hidden_layers = len(config.layer_types)


def tried(architecture: str, module: PreTrainedModel) -> Tried:
    """Train two steps, score, write and save under the default recipe; return what was adapted, or the refusal."""
    model = build_language_model(f"tiny-{architecture}", module, tiny_tokenizer())
    recipe = replace(Recipe(), epochs=1, batch_size=2, max_new_tokens=4)
    texts = [TokenSequence(ids=tuple(range(2 + row, 12 + 2 * row)), first_label=1, row=row) for row in range(4)]
    kinds = ("loglikelihood", "generate_until")
    requests = [Request(kind=kind, context="the quick", continuation=" fox", generation={"until": ["."]}) for kind in kinds]
    try:
        backend = choose_backend(model)
        with trainable(model, recipe, seed=0) as trainee, tempfile.TemporaryDirectory() as folder:
            epochs = list(fine_tune(trainee, texts, recipe, seed=0, micro_batch=2, backend=backend))
            assert len(epochs[0].steps) == 2
            Scorer(model=model, backend=backend, max_new_tokens=4).reply(requests)
            trainee.save(Path(folder))
            names = trainee.module.peft_config["default"].target_modules  # type: ignore[union-attr, index]
    except HarmonyError as error:
        return Tried(architecture=architecture, targets="", source="refused", refusal=str(error).split("\n")[0])
    except (RuntimeError, IndexError) as error:
        modelled = any("/transformers/models/" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
        if not modelled:
            raise
        return Tried(architecture=architecture, targets="", source="fails", refusal=f"{type(error).__name__}: {error}")
    source = "PEFT" if peft_default(module) else "derived"
    return Tried(architecture=architecture, targets=", ".join(sorted(names)), source=source, packed=backend.packed)


def table() -> str:
    """Return a row of Markdown for each architecture that can be built small."""
    rows = ["| architecture | adapted by default | chosen by | rows |", "|---|---|---|---|"]
    for architecture in ARCHITECTURES:
        module = small_module(architecture)
        found = tried(architecture, module) if module is not None else None
        if found is None or found.source == "fails":
            continue
        what = found.targets or "refused"
        rows.append(f"| {architecture} | {what} | {found.source} | {'packed' if found.packed else 'padded'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    sys.stdout.write(table() + "\n")
