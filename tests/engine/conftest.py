"""Tiny models for the engine's tests, and torch kept to one passive thread."""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read once, when torch is imported

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tinker_async.local.models import build_tiny

if TYPE_CHECKING:
    from tinker_async.local.engine.base import BaseModel

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["tiny-llama", "tiny-qwen3"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, then one with a tiny Qwen3; both have a tied head."""
    folder = tmp_path_factory.mktemp(request.param)
    build_tiny(request.param, folder)
    return folder


@pytest.fixture
def base(model_folder: Path) -> BaseModel:
    """A fresh base model without adapters."""
    from tinker_async.local.engine.base import BaseModel

    return BaseModel.load(model_folder, name="test/tiny")
