"""Cached folders are complete or absent, whoever else builds and however a build ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tinker_async.errors import ConfigError
from tinker_async.local.cache import cached_folder, check_free_space

if TYPE_CHECKING:
    from pathlib import Path

# Says when it builds, then waits for a line: the test decides what happens meanwhile.
BUILDER = """
import pathlib, sys
from tinker_async.local.cache import cached_folder

def build(folder):
    (folder / "by").write_text("child")
    print("building", flush=True)
    sys.stdin.readline()

cached_folder(pathlib.Path(sys.argv[1]), build, progress=lambda *_: None)
print("done", flush=True)
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "building\n"
    return child


def _fill(folder: Path) -> None:
    (folder / "by").write_text("parent")


def _silent(_stage: str, _done: int, _total: int | None) -> None:
    return


def test_a_second_process_waits_and_uses_what_the_first_built(tmp_path: Path) -> None:
    """The one that comes later says that it waits, and does not build."""
    folder = tmp_path / "model"
    stages: list[str] = []

    with _start(folder) as child:

        def progress(stage: str, _done: int, _total: int | None) -> None:
            stages.append(stage)
            assert not folder.exists()  # half a folder is never visible
            assert child.stdin is not None
            child.stdin.write("\n")  # now that we wait, let the other one finish
            child.stdin.flush()

        assert folder == cached_folder(folder, _fill, progress=progress)
    assert stages == ["waiting for another process"]
    assert (folder / "by").read_text() == "child"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_nothing_that_is_used(tmp_path: Path, number: int) -> None:
    """After Ctrl-C nothing is left; after a kill the rest is removed by the next builder."""
    folder = tmp_path / "model"
    with _start(folder) as child:
        os.kill(child.pid, number)
        assert child.wait(30) != 0
    assert not folder.exists()
    if number == signal.SIGINT:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.lock"]
    else:
        (tmp_path / "model.partial" / "old").touch()
    cached_folder(folder, _fill, progress=_silent)
    assert [path.name for path in folder.iterdir()] == ["by"]
    assert (folder / "by").read_text() == "parent"
    assert not (tmp_path / "model.partial").exists()


def test_a_failed_build_leaves_nothing_and_its_error_is_not_changed(tmp_path: Path) -> None:
    """What `build` raises is what the caller gets."""

    def build(folder: Path) -> None:
        _fill(folder)
        raise LookupError("the reason")

    with pytest.raises(LookupError, match="the reason"):
        cached_folder(tmp_path / "model", build, progress=_silent)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]


def test_a_complete_folder_is_not_built_again(tmp_path: Path) -> None:
    """The second call returns at once, without lock or build."""
    folder = tmp_path / "model"
    cached_folder(folder, _fill, progress=_silent)
    (tmp_path / "model.lock").unlink()
    cached_folder(folder, lambda _: pytest.fail("built again"), progress=_silent)
    assert not (tmp_path / "model.lock").exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    """A file where the cache should be is a ConfigError that names the variable to set."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write the model cache") as caught:
        cached_folder(tmp_path / "file" / "model", _fill, progress=_silent)
    assert "TINKER_ASYNC_CACHE" in str(caught.value)


def test_too_little_disk_space_is_told_in_numbers(tmp_path: Path) -> None:
    """Folder, need and have are all in the message."""
    check_free_space(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"need 1000000000\.0 GB, have \d+\.\d GB") as caught:
        check_free_space(tmp_path, 10**18)
    assert str(tmp_path) in str(caught.value)
