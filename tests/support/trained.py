"""A scripted server that trains: it keeps promises and notes the order of requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from support.scripted import Answer, Call, ScriptedServer

from tinker_async import Session, TrainingClient

OK: dict[str, Any] = {"metrics": {"lr": 0.5}}


class Steps:
    """Answers `optim_step` with promises and `retrieve_future` with results, or as told."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.seq_ids: list[int] = []
        """Of the accepted steps, in order."""
        self.results: dict[str, Callable[[Call], Any]] = {}
        """By request id, what a poll is answered; the rest is well."""
        self._models: list[str] = []
        server.on("create_model", self.create)
        server.on("optim_step", self.accept)
        server.on("retrieve_future", self.retrieve)

    def create(self, _: Call) -> Any:
        promise = self.server.promise()
        self._models.append(promise["request_id"])
        return promise

    def accept(self, call: Call) -> Any:
        self.seq_ids.append(call.json["seq_id"])
        return self.server.promise()

    def retrieve(self, call: Call) -> Any:
        request_id = call.json["request_id"]
        if request_id in self.results:
            return self.results[request_id](call)
        if request_id in self._models:
            return {"model_id": f"s1:train:{self._models.index(request_id)}"}
        return OK

    def polls(self, request_id: str) -> int:
        """How often a result was asked for."""
        seen = self.server.seen("retrieve_future")
        return sum(call.json["request_id"] == request_id for call in seen)


async def trainer_of(session: Session) -> TrainingClient:
    """The first training client of a session; its promise is r1."""
    return await session.create_lora_training_client("m", rank=4)


def failure(status: int, detail: str = "no", **headers: str) -> Answer:
    """An answer with an error."""
    return status, headers, msgspec.json.encode({"detail": detail})


async def never(_: Call) -> Any:
    """Hold a request for ever."""
    await anyio.sleep_forever()


async def broken(_: Call) -> Any:
    """End the connection without an answer."""
    raise anyio.EndOfStream
