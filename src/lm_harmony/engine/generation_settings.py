"""Generation settings: lm_eval's arguments merged with the model's generation_config, and which of them change answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm_eval's names for the longest answer in tokens, in order of precedence (``lm_eval.models.utils.normalize_gen_kwargs``)."""

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
"""Fields of a GenerationConfig that change no token of greedy decoding (every backend ends answers at ``eos_token_id``)."""
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
"""Values of other fields that have no effect; None has none either."""
_SAME_BESIDE_OTHERS = frozenset([
    "max_new_tokens", "min_new_tokens", "repetition_penalty", "suppress_tokens", "begin_suppress_tokens",
    "forced_eos_token_id", "exponential_decay_length_penalty", "renormalize_logits",
])
"""Fields with the same effect on a row of a padded batch as on the row alone. The other fields would read the padding."""
# fmt: on


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """lm_eval's generation arguments of a request."""

    stop: tuple[str, ...]
    """Stop strings; the answer ends before the first one."""
    max_new_tokens: int
    """Longest answer in tokens."""
    options: tuple[tuple[str, Any], ...]
    """The other arguments of ``transformers.generate``; greedy decoding unless temperature or do_sample request sampling."""

    @classmethod
    def read(cls, arguments: Mapping[str, Any], *, default_limit: int) -> GenerationSettings:
        """Read a task's ``generation_kwargs`` by lm_eval's rules; ``default_limit`` is the longest answer if they set none."""
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

    def check(self, model: LanguageModel) -> None:
        """Check that ``model`` can follow these settings.

        Raises:
            BenchmarkError: the longest answer leaves no space for a question, or several answers to it are requested.
        """
        if self.max_new_tokens >= model.max_length:
            raise BenchmarkError(
                f"max_new_tokens = {self.max_new_tokens} leaves no space for a question: model {model.name} takes "
                f"{model.max_length} tokens in all. Lower --max_new_tokens."
            )
        answers = self.merged_with(model.module.generation_config).get("num_return_sequences")
        if answers not in (None, 1):
            raise BenchmarkError(
                f"num_return_sequences = {answers} (generation settings of the task or of model {model.name}) is not supported: "
                f"one answer to each question is scored. Set it to 1."
            )

    def merged_with(self, config: GenerationConfig) -> dict[str, Any]:
        """Return the settings that ``transformers.generate`` follows: these options override the model's generation_config."""
        return {**config.to_dict(), **dict(self.options)}

    def beyond_greedy(self, config: GenerationConfig) -> dict[str, Any]:
        """Return the settings that may change the answers of plain greedy decoding, unknown ones included."""
        settings, given = self.merged_with(config), dict(self.options)
        always = {name: given[name] for name in ("do_sample", "max_length") if given.get(name)}
        return always | {
            name: value
            for name, value in settings.items()
            if name not in _WITHOUT_EFFECT and value is not None and (name not in _NEUTRAL or value != _NEUTRAL[name])
        }

    def longest_answer(self, config: GenerationConfig) -> int:
        """Return the longest answer in tokens: ``max_new_tokens`` of the generation_config overrides the task's limit."""
        return int(config.max_new_tokens or self.max_new_tokens)

    def batch_dependent(self, config: GenerationConfig) -> list[str]:
        """Return the settings under which a padded batch would give other answers than each text gets alone.

        Sampling is not among them, because sampled answers depend on the batch in any case.
        """
        return sorted(self.beyond_greedy(config).keys() - _SAME_BESIDE_OTHERS - {"do_sample"})
