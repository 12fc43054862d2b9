"""Between lm_eval's instances and our requests."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance

from lm_harmony.benchmarks.examples import Request


def request_of(instance: Instance) -> Request:
    kind, args = instance.request_type, instance.args
    row = -1 if instance.doc_id is None else int(instance.doc_id)
    if kind == "loglikelihood_rolling":
        return Request(kind=kind, context="", continuation=args[0], row=row)
    if kind == "generate_until":
        return Request(kind=kind, context=args[0], generation=args[1], row=row)
    return Request(kind="loglikelihood", context=args[0], continuation=args[1], row=row)


def arguments_of(request: Request) -> tuple[Any, ...]:
    if request.kind == "loglikelihood_rolling":
        return (request.continuation,)
    return request.context, dict(request.generation) if request.kind == "generate_until" else request.continuation
