"""Whether a branch on the hub has moved since a run read it. Each repository is asked once, with a short timeout."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from lm_harmony.hub_connection import REQUEST_SECONDS, is_connection_error
from lm_harmony.models.model_folder import files_read
from lm_harmony.runs.sources import Source

log = logging.getLogger(__name__)

ALL_SECONDS = 15.0
"""Timeout of all requests together, in seconds. A repository without an answer by then counts as unchanged."""
_AT_ONCE = 8
_CARD = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class HubRevisions:
    """The present commits of hub repositories. Each repository is asked about once."""

    endpoint: str | None = None
    """Address of the hub; None: the address in the environment variable HF_ENDPOINT, or huggingface.co."""
    _answers: dict[Source, str | None] = field(default_factory=dict)
    _unreachable: bool = False

    def moved(self, sources: Iterable[Source]) -> Mapping[Source, str]:
        """Return the hub repositories of which a run would read other files today, with a sentence that says so.

        A repository counts as unchanged if there is no network, or if the hub does not answer in time.
        """
        asked = {source for source in sources if _can_move(source)}
        unknown = list(asked - self._answers.keys())
        workers = [threading.Thread(target=self._ask, args=(unknown,), daemon=True) for _ in unknown[:_AT_ONCE]]
        until = time.monotonic() + ALL_SECONDS
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
        self._unreachable |= any(worker.is_alive() for worker in workers)  # do not wait a second time
        return {source: said for source in asked if (said := self._answers.get(source)) is not None}

    def _ask(self, unknown: list[Source]) -> None:
        while not self._unreachable:
            try:
                source = unknown.pop()
            except IndexError:
                return
            try:
                self._answers[source] = self._difference(source)
            except (HfHubHTTPError, HFValidationError) as error:  # the repository is gated or removed
                self._answers[source] = None
                log.debug("%s: the hub refuses the request: %s", source.name, error)
            except Exception as error:  # noqa: BLE001 - a run must not fail because there is no network or the hub is slow
                self._answers[source] = None
                self._unreachable |= is_connection_error(error)
                log.debug("%s: no answer from the hub: %s", source.name, error)

    def _difference(self, source: Source) -> str | None:
        now = self._info(source, str(source.revision))
        if now.sha == source.commit:
            return None
        said = f"{source.name} {source.revision} moved from commit {str(source.commit)[:12]} to {str(now.sha)[:12]} since"
        try:
            before = self._info(source, str(source.commit))
        except RevisionNotFoundError:
            return said
        files = [_files(info, source) for info in (before, now)]
        if source.kind == "rows" and _without_card(files[0]) == _without_card(files[1]):
            # Of a data set's card, only the header has an effect on the rows.
            return None if files[0] == files[1] or self._card(before, source) == self._card(now, source) else said
        return None if files[0] == files[1] else said

    def _card(self, info: Any, source: Source) -> Any:
        """Return the part of a data set's card that names its files and columns; None if it has no card."""
        if _CARD not in _files(info, source):
            return None
        url = hf_hub_url(source.name, _CARD, repo_type="dataset", revision=info.sha, endpoint=self.endpoint)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=REQUEST_SECONDS)
        hf_raise_for_status(answer)
        try:
            data = RepoCard(answer.text, ignore_metadata_errors=True).data
        except (ValueError, yaml.YAMLError):
            return answer.text
        return data.get("configs"), data.get("dataset_info")

    def _info(self, source: Source, revision: str) -> Any:
        api = HfApi(endpoint=self.endpoint)
        ask = api.model_info if source.kind == "model" else api.dataset_info
        return ask(source.name, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True)


def _can_move(source: Source) -> bool:
    """Return whether a source is a branch or tag whose commit was recorded."""
    return source.path is None and source.commit is not None and not _COMMIT.fullmatch(str(source.revision))


def _files(info: Any, source: Source) -> dict[str, str]:
    """Return the content ids of the files that a run reads. Of a data set these are all files that are not hidden."""
    files = {one.rfilename: str(one.blob_id) for one in info.siblings or ()}
    if source.kind == "model":
        # An index, which is not read here, may name weights in subfolders.
        below = [name for name in files if "/" in name and name.endswith(".safetensors")]
        named = below if any(name.endswith(".safetensors.index.json") for name in files) else []
        return {name: files[name] for name in {*files_read(files), *named}}
    return {name: content for name, content in files.items() if not name.startswith(".")}


def _without_card(files: Mapping[str, str]) -> dict[str, str]:
    return {name: content for name, content in files.items() if name != _CARD}
