"""Between lm_eval's instances and our requests."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance

from lm_harmony.benchmarks.examples import Request


def request_of(instance: Instance, document: str = "") -> Request:
    """Return an instance of lm_eval as a request; ``document`` names its document in messages ("test row 5")."""
    kind, args = instance.request_type, instance.args
    document = document or f"document {instance.doc_id} of {instance.task_name}"
    if kind == "loglikelihood_rolling":
        return Request(kind=kind, context="", continuation=args[0], document=document)
    if kind == "generate_until":
        return Request(kind=kind, context=args[0], generation=args[1], document=document)
    return Request(kind="loglikelihood", context=args[0], continuation=args[1], document=document)


def arguments_of(request: Request) -> tuple[Any, ...]:
    if request.kind == "loglikelihood_rolling":
        return (request.continuation,)
    return request.context, dict(request.generation) if request.kind == "generate_until" else request.continuation
