"""The folder of a durable training, to be looked at: what is on record, and who trains there.

The rule: nothing in it is changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tinker_async as ta
from tinker_async.durable.ledger import is_in_use


@dataclass(frozen=True)
class Folder:
    """The folder of a durable training."""

    path: Path
    account: ta.Account
    in_use: bool
    """Whether a program trains in it at this moment."""

    @property
    def run_id(self) -> str | None:
        """The newest run that is on record; None before the first checkpoint."""
        account = self.account
        known = [(one.generation, one.began_at, one.run_id) for one in account.entries]
        known += [
            (one.generation, one.at, one.to_run)
            for one in account.recoveries
            if one.outcome == "completed" and one.to_run is not None
        ]
        return max(known)[2] if known else None


def folder_of(text: str) -> Folder | None:
    """Return what is on record in a folder; None if the text is a run's id.

    Raises:
        InvalidInputError: There is no such folder.
        LedgerError: There is no ledger in it that can be read.
    """
    path = Path(text)
    if path.is_dir():
        return Folder(path, ta.Ledger.read(path), is_in_use(path))
    if "://" not in text and ("/" in text or os.sep in text):
        raise ta.InvalidInputError(
            f"RUN: there is no folder {text}",
            field="RUN",
            hint="give a training run's id, or the folder of a durable training",
        )
    return None
