"""LM-Harmony's engine as a model of lm_eval, under the name ``lm_harmony``.

lm_eval has no plug-ins: it knows a model's name once the module that registers it was imported. So import this module first:

    import lm_harmony.lm_eval_model
    lm_eval.simple_evaluate(model="lm_harmony", model_args="pretrained=EleutherAI/pythia-70m", tasks=["arc_easy"])

or call lm_eval's command line through it, with lm_eval's own flags:

    python -m lm_harmony.lm_eval_model --model lm_harmony --model_args pretrained=EleutherAI/pythia-70m --tasks arc_easy
"""

from __future__ import annotations

from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import hash_string
from peft import PeftModel

from lm_harmony.benchmarks.harness.scoring import request_of
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.errors import UsageError, check_integer
from lm_harmony.models.device import resolve_device, resolve_precision
from lm_harmony.models.loading import load_model

AUTO_BATCH_SIZE = 8
"""Sequences in a padded batch where lm_eval is given ``batch_size=auto``; a batch that does not fit is halved anyway."""


@register_model("lm_harmony")
class HarmonyLM(LM):
    """A causal language model that LM-Harmony's engine scores, for ``lm_eval.evaluate`` and ``lm_eval.simple_evaluate``."""

    def __init__(
        self,
        pretrained: str,
        *,
        peft: str | None = None,
        revision: str = "main",
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int | str = AUTO_BATCH_SIZE,
        max_gen_toks: int = 256,
        trust_remote_code: bool = False,
        engine: str = "auto",
    ) -> None:
        """Load a model; the arguments are those of ``--model_args``.

        Args:
            pretrained: hub id, or a folder with config, safetensors and tokenizer.
            peft: folder or hub id of a PEFT adapter for that model.
            revision: branch, tag or commit on the hub.
            dtype: type of the weights, "float32", "bfloat16" or "auto".
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" (an accelerator if there is one).
            batch_size: most sequences in one padded batch, or "auto". Packed batches are filled to the memory that is free.
            max_gen_toks: longest written answer in tokens, where the task sets none.
            trust_remote_code: run the code that the repository brings.
            engine: "auto" packs sequences where a probe finds that exact; "plain" always uses padded batches.

        Raises:
            UsageError: an argument has a value that is not allowed.
            ModelError: the model cannot be loaded.
        """
        super().__init__()
        for name, value, allowed in (
            ("dtype", dtype, ("float32", "bfloat16", "auto")),
            ("engine", engine, ("auto", "plain")),
        ):
            if value not in allowed:
                raise UsageError(f"model_args: {name} must be one of {', '.join(allowed)}, got {value!r}.")
        precision = resolve_precision(dtype, resolve_device(device), adapter=True)
        model = load_model(
            str(pretrained),
            revision=str(revision),
            dtype=precision.weights,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        backend = choose_backend(model, engine)
        if peft is not None:
            PeftModel.from_pretrained(model.module, str(peft)).eval()
        self._device = model.device
        self.scorer = Scorer(model=model, batch_size=_batch_size(batch_size), max_new_tokens=max_gen_toks, backend=backend)

    @property
    def tokenizer_name(self) -> str:
        """A digest of the chat template, by which lm_eval's request cache distinguishes models."""
        return str(hash_string(self.apply_chat_template([{"role": "user", "content": "?"}])))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's chat template as text; None where it is not used.

        Raises:
            UsageError: a template is asked for by name.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str) and chat_template != "default":
            raise UsageError(f"apply_chat_template: only the default chat template is supported, got {chat_template!r}.")
        known: dict[str, str] | str | None = self.scorer.model.text.tokenizer.chat_template
        return known["default"] if isinstance(known, dict) else known

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages with the model's chat template.

        Raises:
            ModelError: the model has no chat template, or one that fails.
        """
        return self.scorer.model.text.render_chat(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding writes it) of each continuation after its context."""
        return self._replies(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood in nats of each whole text, in disjoint windows of the model's length."""
        return self._replies(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model writes after each context, cut before the first stop string."""
        return self._replies(requests)

    def _replies(self, requests: list[Instance]) -> list[Any]:
        return list(self.scorer.reply([request_of(instance) for instance in requests]))


def _batch_size(value: int | str) -> int:
    """Return the number of sequences that ``--batch_size`` asks for: a number, or "auto" (with lm_eval's "auto:4")."""
    if isinstance(value, str) and value.split(":")[0] == "auto":
        return AUTO_BATCH_SIZE
    number: Any = int(value) if isinstance(value, str) and value.isdigit() else value
    check_integer("batch_size", number, 1)
    return int(number)


if __name__ == "__main__":
    cli_evaluate()
