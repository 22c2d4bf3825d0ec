"""What needs an extra says so, with the command that installs it, before any request."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import anyio
import pytest
from support.scripted import ScriptedServer

from tinker_async import Datum, MissingExtraError, ModelInput, Session


async def test_a_custom_loss_needs_torch(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    data = [Datum(ModelInput.from_ints([1]), {"target_tokens": [2]})]

    def loss(*_: Any) -> Any:
        raise AssertionError("never called")

    with anyio.fail_after(5):
        async with session:
            trainer = await session.create_lora_training_client("m")
            with pytest.raises(MissingExtraError, match=r"pip install 'tinker-async\[torch\]'"):
                trainer.forward_backward_custom(data, loss)
    assert [] == server.seen("forward_backward")


async def test_a_tokenizer_needs_its_library(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    server.on("get_info", lambda _: {"model_id": "m", "model_data": {"model_name": "x"}})
    with anyio.fail_after(5):
        async with session:
            trainer = await session.create_lora_training_client("m")
            with pytest.raises(MissingExtraError, match="tokenizers"):
                await trainer.get_tokenizer()
