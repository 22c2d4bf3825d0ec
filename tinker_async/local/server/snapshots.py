"""Which adapters are in the engine's memory for sampling.

Every snapshot has a folder, so that it can leave memory and come back. One that
samples are running on is pinned and never leaves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from tinker_async.local.engine.jobs import DropSnapshot, LoadSnapshot
from tinker_async.local.server.port import EnginePort


class _Snapshot:
    __slots__ = ("ephemeral", "folder", "loading", "pins", "resident")

    def __init__(self, folder: Path, *, ephemeral: bool, resident: bool) -> None:
        self.folder = folder
        self.ephemeral = ephemeral
        self.resident = resident
        self.pins = 0
        self.loading: anyio.Event | None = None


class SnapshotGoneError(Exception):
    """The snapshot was dropped: its sampler was one of too many."""


class SnapshotPool:
    """The snapshots by id, least recently used first."""

    def __init__(
        self,
        port: EnginePort,
        *,
        resident_limit: int,
        ephemeral_limit: int,
        remove: Callable[[Path], Awaitable[None]],
    ) -> None:
        self._port = port
        self._resident_limit = resident_limit
        self._ephemeral_limit = ephemeral_limit
        self._remove = remove
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()

    def __contains__(self, snapshot_id: str) -> bool:
        return snapshot_id in self._snapshots

    def register(self, snapshot_id: str, folder: Path) -> None:
        """Make a checkpoint folder known as a snapshot; it is loaded when first used."""
        if snapshot_id not in self._snapshots:
            self._snapshots[snapshot_id] = _Snapshot(folder, ephemeral=False, resident=False)

    async def adopt(self, snapshot_id: str, folder: Path) -> None:
        """Take over a snapshot that is in memory and in its folder, for one sampler only."""
        self._snapshots[snapshot_id] = _Snapshot(folder, ephemeral=True, resident=True)
        self._make_room()
        ephemeral = [key for key, snapshot in self._snapshots.items() if snapshot.ephemeral]
        for key in ephemeral[: -self._ephemeral_limit]:
            await self.forget(key)

    async def forget(self, snapshot_id: str) -> None:
        """Drop a snapshot; a folder made for it alone goes too. Unknown ids are fine.

        Samples that run on it finish; those that still wait in the engine may fail.
        """
        snapshot = self._snapshots.pop(snapshot_id, None)
        if snapshot is None:
            return
        if snapshot.resident:
            self._drop(snapshot_id)
        if snapshot.ephemeral:
            await self._remove(snapshot.folder)

    def pin_now(self, snapshot_id: str) -> bool:
        """Pin a snapshot if it is in memory; say whether it was."""
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None or not snapshot.resident:
            return False
        snapshot.pins += 1
        self._snapshots.move_to_end(snapshot_id)
        return True

    async def pin(self, snapshot_id: str) -> None:
        """Load a snapshot if need be and pin it.

        Raises:
            SnapshotGoneError: It is not known any more.
            Exception: What the engine said about its folder.
        """
        while not self.pin_now(snapshot_id):
            snapshot = self._snapshots.get(snapshot_id)
            if snapshot is None:
                raise SnapshotGoneError(snapshot_id)
            if snapshot.loading is not None:
                await snapshot.loading.wait()
            else:
                await self._load(snapshot_id, snapshot)

    async def _load(self, snapshot_id: str, snapshot: _Snapshot) -> None:
        snapshot.loading = anyio.Event()
        try:
            await self._port.run(LoadSnapshot(snapshot_id, snapshot.folder))
            snapshot.resident = True
            if self._snapshots.get(snapshot_id) is not snapshot:
                self._drop(snapshot_id)
                return
            snapshot.pins += 1  # while room is made
            self._make_room()
            snapshot.pins -= 1
        finally:
            snapshot.loading.set()
            snapshot.loading = None

    def unpin(self, snapshot_id: str) -> None:
        """Give back a pin."""
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is not None:  # else it was forgotten meanwhile
            snapshot.pins -= 1
            self._make_room()

    def _make_room(self) -> None:
        resident = [item for item in self._snapshots.items() if item[1].resident]
        excess = len(resident) - self._resident_limit
        for snapshot_id, snapshot in resident:
            if excess <= 0:
                return
            if not snapshot.pins:
                snapshot.resident = False
                self._drop(snapshot_id)
                excess -= 1

    def _drop(self, snapshot_id: str) -> None:
        self._port.submit(DropSnapshot(snapshot_id), _ignore)

    def statistics(self) -> dict[str, int]:
        """Return how many snapshots are known and how many are in memory."""
        resident = sum(snapshot.resident for snapshot in self._snapshots.values())
        return {"snapshots": len(self._snapshots), "resident": resident}


def _ignore(_result: object) -> None:
    return
