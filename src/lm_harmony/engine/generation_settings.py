"""How answers are written: lm_eval's generation arguments over the model's generation_config, and which of them act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm_eval's names of the longest answer in tokens, by priority (``lm_eval.models.utils.normalize_gen_kwargs``)."""

# fmt: off
_WITHOUT_EFFECT = frozenset([
    "max_length", "do_sample", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",  # sampling
    "early_stopping", "length_penalty", "diversity_penalty",  # beams
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "compile_config", "disable_compile", "remove_invalid_values", "low_memory", "transformers_version", "_from_model_config",
])
"""Fields of a GenerationConfig that change no token of greedy decoding (``eos_token_id`` ends an answer on every path)."""
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "renormalize_logits": False,
    "token_healing": False,
    "use_mtp": False,
}
"""The value of other fields that does nothing, as None does."""
_SAME_BESIDE_OTHERS = frozenset([
    "max_new_tokens", "min_new_tokens", "repetition_penalty", "suppress_tokens", "begin_suppress_tokens",
    "forced_eos_token_id", "exponential_decay_length_penalty", "renormalize_logits",
])
"""Fields that act on a row of a padded batch as on the row alone; the others read padding or the batch as its text."""
# fmt: on


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """lm_eval's generation arguments, read once."""

    stop: tuple[str, ...]
    """The answer ends before the first of these."""
    max_new_tokens: int
    """Longest answer in tokens."""
    options: tuple[tuple[str, Any], ...]
    """The rest, as ``transformers.generate`` takes it; greedy unless a temperature or do_sample asks for sampling."""

    @classmethod
    def read(cls, arguments: Mapping[str, Any], *, default_limit: int) -> GenerationSettings:
        """Read a task's ``generation_kwargs`` by lm_eval's rules."""
        rest = dict(arguments)
        until = rest.pop("until", None) or []
        limits = [rest.pop(name) for name in _LIMITS if name in rest]
        temperature = float(rest.pop("temperature", None) or 0.0)
        sampling = bool(rest.pop("do_sample", None) if rest.get("do_sample") is not None else temperature > 0)
        rest["do_sample"] = sampling
        if sampling and temperature > 0:
            rest["temperature"] = temperature
        return cls(
            stop=tuple([until] if isinstance(until, str) else until),
            max_new_tokens=int(next((limit for limit in limits if limit is not None), default_limit)),
            options=tuple(sorted(rest.items())),
        )

    def over(self, config: GenerationConfig) -> dict[str, Any]:
        """Return the settings that ``transformers.generate`` follows: these options over the model's generation_config."""
        return {**config.to_dict(), **dict(self.options)}

    def acting(self, config: GenerationConfig) -> dict[str, Any]:
        """Return the settings that make answers differ from plain greedy decoding; unknown ones count, empty: plain."""
        settings, given = self.over(config), dict(self.options)
        always = {name: given[name] for name in ("do_sample", "max_length") if given.get(name)}
        return always | {
            name: value
            for name, value in settings.items()
            if name not in _WITHOUT_EFFECT and value is not None and (name not in _NEUTRAL or value != _NEUTRAL[name])
        }

    def longest(self, config: GenerationConfig) -> int:
        """Return the longest answer in tokens: ``max_new_tokens`` of the generation_config goes before the task's limit."""
        return int(config.max_new_tokens or self.max_new_tokens)

    def alone(self, config: GenerationConfig) -> list[str]:
        """Return the acting settings under which a padded batch would write other answers than each text gets alone.

        Sampling is not among them: its draws depend on the batch in any case.
        """
        return sorted(self.acting(config).keys() - _SAME_BESIDE_OTHERS - {"do_sample"})
