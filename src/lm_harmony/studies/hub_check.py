"""Whether a branch on the hub has moved since a run read it: asked once, quickly, and only where there is network. No torch."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

from lm_harmony.models.model_files import files_read
from lm_harmony.runs.sources import Source

log = logging.getLogger(__name__)

REQUEST_SECONDS = 3.0
"""Longest wait for one answer of the hub."""
ALL_SECONDS = 15.0
"""Longest wait for all answers; what has not been answered by then is taken as unchanged."""
_AT_ONCE = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class HubCheck:
    """Asks the hub about repositories, each once."""

    endpoint: str | None = None
    """Address of the hub; None: the one of the environment."""
    _answers: dict[Source, str | None] = field(default_factory=dict)
    _unreachable: bool = False

    def moved(self, sources: Iterable[Source]) -> Mapping[Source, str]:
        """Return the hub repositories of which another commit with other files would be read today, and how to say it.

        Without network, and where the hub does not answer in time, nothing is taken to have moved.
        """
        asked = {source for source in sources if _can_move(source)}
        unknown = list(asked - self._answers.keys())
        workers = [threading.Thread(target=self._ask, args=(unknown,), daemon=True) for _ in unknown[:_AT_ONCE]]
        until = time.monotonic() + ALL_SECONDS
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
        self._unreachable |= any(worker.is_alive() for worker in workers)  # one wait is enough
        return {source: said for source in asked if (said := self._answers.get(source)) is not None}

    def _ask(self, unknown: list[Source]) -> None:
        while not self._unreachable:
            try:
                source = unknown.pop()
            except IndexError:
                return
            try:
                self._answers[source] = self._difference(source)
            except (HfHubHTTPError, HFValidationError) as error:  # gated, or gone
                self._answers[source] = None
                log.debug("%s cannot be asked about: %s", source.name, error)
            except Exception as error:  # noqa: BLE001 - no network is no error, and each HTTP library says it in classes of its own
                self._unreachable = True
                log.debug("the hub cannot be reached: %s", error)

    def _difference(self, source: Source) -> str | None:
        now = self._info(source, str(source.revision))
        if now.sha == source.commit:
            return None
        said = f"{source.name} {source.revision} moved from commit {str(source.commit)[:12]} to {str(now.sha)[:12]} since"
        try:
            before = self._info(source, str(source.commit))
        except RevisionNotFoundError:
            return said
        return None if _files(before, source) == _files(now, source) else said

    def _info(self, source: Source, revision: str) -> Any:
        api = HfApi(endpoint=self.endpoint)
        ask = api.model_info if source.kind == "model" else api.dataset_info
        return ask(source.name, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True)


def _can_move(source: Source) -> bool:
    """Tell whether a source is a branch or a tag whose commit is known."""
    return source.path is None and source.commit is not None and not _COMMIT.fullmatch(str(source.revision))


def _files(info: Any, source: Source) -> dict[str, str]:
    """Return the content ids of a repository's files that a run reads; those of a data set are all but its hidden ones."""
    files = {one.rfilename: str(one.blob_id) for one in info.siblings or ()}
    if source.kind == "model":
        return {name: files[name] for name in files_read(files)}
    return {name: content for name, content in files.items() if not name.startswith(".")}
