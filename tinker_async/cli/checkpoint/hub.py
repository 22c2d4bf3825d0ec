"""The Hugging Face Hub, through `huggingface_hub`: an extra, imported when it is needed.

The rule: a repository that holds another checkpoint is not written over unasked, and whatever the
library raises leaves as an error of ours, with its exit code.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tinker_async.cli.checkpoint.adapter_files import CARD
from tinker_async.cli.exits import one_line
from tinker_async.errors import (
    ConflictError,
    ConnectError,
    CredentialError,
    InvalidInputError,
    MissingExtraError,
    TinkerError,
    status_error,
)

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_SHOWN = 300


class Upload(NamedTuple):
    """What goes where."""

    repo: str
    files: Mapping[str, Path | bytes]
    tinker_path: str
    message: str
    revision: str | None = None
    private: bool = True
    create_pr: bool = False


class Hub:
    """A connection to the hub, logged in. All calls block."""

    def __init__(self) -> None:
        try:
            import huggingface_hub  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingExtraError(
                "uploading needs huggingface_hub", hint="pip install 'tinker-async[hf]'"
            ) from error
        self._library = huggingface_hub
        self._api: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        with _errors("who am I"):
            self.user: str = self._api.whoami()["name"]

    def full_name(self, repo: str) -> str:
        """Return a repository's name with its owner: ourselves if it has none."""
        return repo if "/" in repo else f"{self.user}/{repo}"

    def check(self, repo: str, revision: str | None, tinker_path: str) -> None:
        """Refuse a repository that holds another checkpoint.

        Raises:
            ConflictError: Its card names another one.
        """
        found = re.findall(r"tinker://[^\s`]+", self._card(repo, revision) or "")
        if found and tinker_path not in found:
            raise ConflictError(
                f"{repo} holds another checkpoint: {found[0]}",
                status=409,
                hint="take another repository, or replace it with --force",
            )

    def _card(self, repo: str, revision: str | None) -> str | None:
        absent = self._library.errors
        with tempfile.TemporaryDirectory() as folder, _errors(f"the card of {repo}"):
            try:
                file = self._api.hf_hub_download(repo, CARD, revision=revision, local_dir=folder)
            except (
                absent.EntryNotFoundError,
                absent.RepositoryNotFoundError,
                absent.RevisionNotFoundError,
            ):
                return None
            return Path(file).read_text(encoding="utf-8", errors="replace")

    def upload(self, upload: Upload) -> str:
        """Make the repository if need be, and upload as one commit; return its address."""
        library, api = self._library, self._api
        with _errors(upload.repo):
            api.create_repo(upload.repo, private=upload.private, exist_ok=True)
            if upload.revision is not None and not upload.create_pr:
                api.create_branch(upload.repo, branch=upload.revision, exist_ok=True)
            commit = api.create_commit(
                upload.repo,
                [
                    library.CommitOperationAdd(name, content)
                    for name, content in upload.files.items()
                ],
                commit_message=upload.message,
                revision=upload.revision,
                create_pr=upload.create_pr,
            )
        return str(commit.pr_url or commit.commit_url)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except TinkerError:
        raise
    except Exception as error:
        # The library's errors are those of three HTTP libraries, by its version, and its own.
        raise _ours(error, what) from error


def _ours(error: Exception, what: str) -> TinkerError:
    status = getattr(_with_response(error), "status_code", None)
    text = one_line(str(error))[:_SHOWN]
    if isinstance(status, int):
        raised = status_error(status, endpoint=f"the hub ({what})", detail=text)
        raised.hint = _LOG_IN if status in (401, 403) else raised.hint
        return raised
    if type(error).__name__ == "LocalTokenNotFoundError":
        return CredentialError("nobody is logged in to the hub", hint=_LOG_IN)
    if isinstance(error, ValueError):
        return InvalidInputError(f"the hub ({what}) refuses it: {text}", field="repo")
    return ConnectError(f"the hub ({what}) could not be reached: {text}")


def _with_response(error: BaseException | None) -> object:
    """The response that an error, or one that it came from, is about."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response
        error = error.__cause__
    return None
