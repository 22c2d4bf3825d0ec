"""`tinker-async checkpoint push-hf`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.asking import dry_run_option
from tinker_async.cli.checkpoint.adapter_files import (
    CARD,
    CONFIG,
    Described,
    Patterns,
    card,
    check_adapter,
    patched,
)
from tinker_async.cli.checkpoint.fetching import Wanted, fetch
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import amount
from tinker_async.errors import InvalidInputError

if TYPE_CHECKING:
    import tinker_async as ta

FIELDS = (
    Column("Repository", lambda done: done["repo"]),
    Column("Uploaded", lambda done: done["url"]),
    Column("Files", lambda done: [one["name"] for one in done["files"]]),
    Column("Size", lambda done: amount(sum(one["size_bytes"] for one in done["files"]))),
)


@click.command(name="push-hf")
@click.argument("path")
@click.option(
    "--repo",
    "-r",
    metavar="[OWNER/]NAME",
    help="The repository, which is made if need be. Default: named after model and run.",
)
@click.option("--public", is_flag=True, help="Make it a public one. Default: private.")
@click.option("--revision", metavar="BRANCH", help="The branch, which is made if need be.")
@click.option("--commit-message", "message", help="Default: the checkpoint's path.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("--allow-pattern", "allow", multiple=True, help="Only files with such names: *.json.")
@click.option("--ignore-pattern", "ignore", multiple=True, help="No files with such names.")
@click.option("--no-model-card", is_flag=True, help="Do not write a README.md.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Upload this folder of `checkpoint download`, in place of downloading.",
)
@click.option("--force", is_flag=True, help="Also to a repository that holds another checkpoint.")
@dry_run_option
@output_options
@connection_options
def push_hf(
    *,
    path: str,
    repo: str | None,
    public: bool,
    revision: str | None,
    message: str | None,
    create_pr: bool,
    allow: tuple[str, ...],
    ignore: tuple[str, ...],
    no_model_card: bool,
    folder: Path | None,
    force: bool,
    dry_run: bool,
    out: Output,
    connection: Connection,
) -> None:
    """Upload a checkpoint to the Hugging Face Hub, as an adapter that peft reads.

    It is downloaded, checked, given a model card and uploaded as one commit; only files that
    belong to an adapter are. It needs the extra `hf`, and to be logged in: `hf auth login`.

    With --dry-run the hub is not asked; the checkpoint is downloaded to see its files.
    """
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    ta.parse_path(path)
    patterns = Patterns(allow, ignore)
    adapter = connection.ask(lambda rest: _describe(rest, path))
    name = repo or _default_name(adapter)
    if dry_run:
        with _downloaded(connection, adapter, folder, out) as files_of:
            files = _files(files_of, adapter, name, patterns, no_model_card=no_model_card)
            _tell(out, {"repo": name, "url": None, "files": _sizes(files)}, dry_run=True)
        return
    from tinker_async.cli.checkpoint.hub import Hub, Upload  # noqa: PLC0415  # an extra

    hub = Hub()  # before the download: whoever is not logged in shall not wait for it
    name = hub.full_name(name)
    if not force:
        hub.check(name, revision, path)
    with _downloaded(connection, adapter, folder, out) as files_of:
        files = _files(files_of, adapter, name, patterns, no_model_card=no_model_card)
        url = hub.upload(
            Upload(
                repo=name,
                files=files,
                tinker_path=path,
                message=message or f"Upload {path}",
                revision=revision,
                private=not public,
                create_pr=create_pr,
            )
        )
        _tell(out, {"repo": name, "url": url, "files": _sizes(files)}, dry_run=False)


async def _describe(rest: ta.RestClient, path: str) -> Described:
    found = await rest.get_weights_info_by_tinker_path(path)
    parts = {"attention": found.train_attn, "MLP": found.train_mlp, "unembed": found.train_unembed}
    trained = ", ".join(name for name, trained in parts.items() if trained)
    return Described(path, found.base_model, found.lora_rank, trained or None)


def _default_name(adapter: Described) -> str:
    run = adapter.path.removeprefix("tinker://").partition("/")[0]
    name = f"tinker-{adapter.base_model.rpartition('/')[2]}-{run}"
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]", "-", name))[:96].strip("-_.")


@contextmanager
def _downloaded(
    connection: Connection, adapter: Described, folder: Path | None, out: Output
) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    from tinker_async.cli.checkpoint.bars import Bars  # noqa: PLC0415  # loads rich

    with tempfile.TemporaryDirectory(prefix="tinker-async-") as parent:
        wanted = Wanted(adapter.path, Path(parent) / "checkpoint")

        async def work() -> None:
            with Bars() as bars:
                await fetch(connection, wanted, note=out.note, progress=bars)

        connection.run(work)
        yield wanted.target


def _files(
    folder: Path, adapter: Described, repo: str, patterns: Patterns, *, no_model_card: bool
) -> dict[str, Path | bytes]:
    config = check_adapter(folder)
    found: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    named = patched(config, adapter.base_model)
    if named is not None:
        found[CONFIG] = named
    if not no_model_card and CARD not in found:
        found[CARD] = card(adapter, repo).encode()
    chosen = patterns.choose(found)
    if not chosen:
        raise InvalidInputError("no file is left to upload", field="ignore")
    return {name: found[name] for name in chosen}


def _sizes(files: dict[str, Path | bytes]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "size_bytes": len(content) if isinstance(content, bytes) else content.stat().st_size,
        }
        for name, content in files.items()
    ]


def _tell(out: Output, done: dict[str, Any], *, dry_run: bool) -> None:
    if out.as_json:
        out.document({**done, "dry_run": dry_run})
    elif dry_run:
        out.text(f"would be uploaded to {done['repo']}")
        for one in done["files"]:
            size_bytes = amount(one["size_bytes"])
            out.text(f"{one['name']}\t{size_bytes.words if size_bytes else ''}")
    else:
        out.record(done, FIELDS)
