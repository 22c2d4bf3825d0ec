"""`checkpoint download`, `checkpoint push-hf` and `session trace`: files, here and on the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from cli.conftest import KEY, TIMEOUT_S, Cli
from cli.hub_double import TOKEN, HubDouble, serve_hub
from cli.seeding import Seeded, seed
from cli.terminal import Terminal
from server.processes import RunningServer, start_server

import tinker_async as ta
from tinker_async.cli.connection import Connection
from tinker_async.cli.exits import exit_code
from tinker_async.cli.traces import fetch_file
from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from cli.conftest import Serve

ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def seeded(url: str) -> Seeded:
    return seed(url, KEY)


class Engine:
    """The embedded engine, with something in it."""

    def __init__(self, server: RunningServer) -> None:
        self.url, self.key = server.url, server.api_key
        self.seeded = seed(server.url, server.api_key, server.models[0])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with start_server(tmp_path_factory.mktemp("engine") / "data") as server:
        yield Engine(server)


@pytest.fixture
def local(tmp_path: Path, backend: str, engine: Engine) -> Cli:
    """The command line with the embedded engine."""
    made = Cli(tmp_path, backend)
    made.use(engine.url, engine.key)
    return made


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    with serve_hub() as served:
        yield served


# Downloading


@pytest.mark.parametrize("which", ["external", "sampler", "training"])
def test_a_checkpoint_is_downloaded_into_a_folder_named_after_it(
    local: Cli, engine: Engine, tmp_path: Path, which: str
) -> None:
    """By its files, or by its archive; the folder's name is one that every system takes."""
    path = dict(zip(["training", "sampler", "external"], engine.seeded.paths[2:], strict=True))[
        which
    ]
    done = local.json("checkpoint", "download", path, "--output", str(tmp_path))

    folder = Path(done["path"])
    assert tmp_path == folder.parent
    assert path.removeprefix("tinker://").replace(":", "_").replace("/", "_") == folder.name
    assert {*ADAPTER} <= {*done["files"]}
    assert sorted(done["files"]) == sorted(one.name for one in folder.iterdir())
    assert done["size_bytes"] == sum(one.stat().st_size for one in folder.iterdir())
    assert ("external" if which == "external" else "archive") == done["route"]


def test_a_folder_that_is_there_is_replaced_only_if_told_so(
    cli: Cli, seeded: Seeded, tmp_path: Path
) -> None:
    """6 without --force, and the folder is as it was."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    words = ("checkpoint", "download", seeded.external, "--to", str(folder))

    refused = cli.ask(*words)
    assert 6 == refused.exit_code
    assert "--force" in refused.stderr
    assert "overwrite" not in refused.stderr
    assert ["notes.txt"] == [one.name for one in folder.iterdir()]
    assert 0 == cli.ask(*words, "--force").exit_code
    assert not (folder / "notes.txt").exists()


def test_progress_is_on_stderr_and_the_result_alone_on_stdout(
    cli: Cli, seeded: Seeded, tmp_path: Path
) -> None:
    """A few lines where there is no terminal."""
    folder = tmp_path / "mine"
    result = cli.ask("checkpoint", "download", seeded.training[0], "--to", str(folder))

    assert f"Folder\t{folder}" == result.stdout.splitlines()[0]
    assert "downloading" in result.stderr
    assert "checking" in result.stderr


def test_people_see_a_bar(cli: Cli, seeded: Seeded, tmp_path: Path) -> None:
    """On stderr; stdout has the result alone."""
    folder = tmp_path / "mine"
    terminal = Terminal(cli, "checkpoint", "download", seeded.external, "--to", str(folder))
    code, output = terminal.end()

    assert (0, f"Folder\t{folder}") == (code, output.splitlines()[0])
    assert "checking" in terminal.seen
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 20 in terminal.seen


def test_a_broken_download_goes_on_where_it_was(local: Cli, engine: Engine, tmp_path: Path) -> None:
    """The same command, and what was received is not asked for again."""
    folder, path = tmp_path / "mine", engine.seeded.external

    def broken(step: ta.DownloadProgress) -> None:
        if step.file == ADAPTER[1]:
            raise InterruptedError

    async def begin() -> None:
        async with ta.RestClient.connect(engine.url, engine.key) as rest:
            with pytest.raises(InterruptedError):
                await rest.download_checkpoint(path, folder, progress=broken, parallel=1)

    anyio.run(begin)
    assert not folder.exists()
    done = local.json("checkpoint", "download", path, "--to", str(folder))
    assert 0 < done["resumed_from_bytes"] <= done["size_bytes"]
    assert {*ADAPTER} <= {*done["files"]}


def test_a_server_without_archives_is_asked_for_an_export(
    cli: Cli, seeded: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """A training checkpoint: loaded, exported, downloaded; the export is deleted after."""
    service.faults.on("archive", faults.Status(404))
    done = cli.ask(
        "checkpoint", "download", seeded.training[0], "--to", str(tmp_path / "a"), "--json"
    )

    assert 0 == done.exit_code
    assert "exported" in done.stderr
    assert "external" == json.loads(done.stdout)["route"]
    assert seeded.paths == list(service.state.checkpoints)
    assert {"success"} == {one.ended for one in service.state.sessions.values()}


def test_an_export_that_did_not_arrive_is_named_and_gone_on_from(
    cli: Cli, seeded: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """It stays for a day."""
    folder = tmp_path / "a"
    to = ("--to", str(folder))
    words = ("checkpoint", "download", seeded.training[0], *to, "--route", "export")
    rule = service.faults.on("file", faults.Status(403), occurrence=range(2, 100))
    broken = cli.ask(*words, "--parallel", "1")
    [export] = {*service.state.checkpoints} - {*seeded.paths}
    assert 0 != broken.exit_code
    assert export in broken.stderr
    assert service.state.checkpoints[export].expires_at is not None

    rule.remove()
    assert str(folder) == cli.json("checkpoint", "download", export, *to)["path"]


@pytest.mark.parametrize("route", ["auto", "archive"])
def test_what_has_no_files_is_told_and_starts_no_session(
    cli: Cli, seeded: Seeded, service: FakeService, tmp_path: Path, route: str
) -> None:
    """A checkpoint that is not there, and one for sampling, which nothing can export."""
    service.faults.on("archive", faults.Status(404))
    gone = f"tinker://{seeded.run}/weights/none"
    for path in (gone, seeded.sampler):
        words = ("checkpoint", "download", path, "--to", str(tmp_path / "a"), "--route", route)
        assert 5 == cli.ask(*words).exit_code
    assert 1 == len(service.state.sessions)
    wrong = ("checkpoint", "download", seeded.sampler, "--route", "export")
    assert 2 == cli.ask(*wrong).exit_code


# The trace


def test_a_trace_is_saved_whole(local: Cli, engine: Engine, tmp_path: Path) -> None:
    """Named after its session; a file that is there is replaced only if told so."""
    file = tmp_path / "deep" / "trace.pftrace"
    words = ("session", "trace", engine.seeded.session_id, "--output", str(file))
    done = local.json(*words)

    assert (str(file), file.stat().st_size) == (done["path"], done["size_bytes"])
    assert json.loads(file.read_bytes())["traceEvents"]
    assert 2 == local.ask(*words).exit_code
    assert 0 == local.ask(*words, "--force").exit_code
    assert [file.name] == [one.name for one in file.parent.iterdir()]


def test_a_trace_that_cannot_be_written_or_fetched_has_its_code(
    local: Cli, engine: Engine, tmp_path: Path, service: FakeService, serve: Serve
) -> None:
    """10 for the disk, 7 for a host that is not there; nothing is left behind."""
    (tmp_path / "file").write_text("")
    words = ("session", "trace", engine.seeded.session_id, "--output")
    blocked = local.ask(*words, str(tmp_path / "file" / "x"))
    assert (10, "") == (blocked.exit_code, blocked.stdout)

    with serve(service) as url:
        session_id = seed(url, KEY).session_id
        service.state.sessions[session_id].trace_asked = 1  # it is built
        local.use(url)
        away = local.ask("session", "trace", session_id, "--output", str(tmp_path / "x"))
    assert 7 == away.exit_code
    assert "traces.invalid" in away.stderr
    assert "signature" not in away.stderr
    assert not [one for one in tmp_path.iterdir() if "partial" in one.name]


@pytest.mark.parametrize(
    ("fault", "code"), [(faults.Truncate(), 7), (faults.Status(403), 4), (faults.Reset(), 7)]
)
def test_of_a_file_that_did_not_come_whole_nothing_is_left(
    seeded: Seeded,
    service: FakeService,
    url: str,
    backend: str,
    tmp_path: Path,
    fault: faults.Fault,
    code: int,
) -> None:
    """The file of before stays as it was."""
    path = seeded.external.removeprefix("tinker://")
    service.faults.on("file", fault)
    target = tmp_path / "x.pftrace"
    target.write_text("before")
    connection = Connection(base_url=url, backend=backend)

    async def fetch() -> None:
        await fetch_file(f"{url}/api/v1/files/{path}/toy_weights.bin", target, connection)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ta.TinkerError) as error:
        patch.setenv("TINKER_API_KEY", KEY)
        connection.run(fetch)
    assert code == exit_code(error.value)
    assert "before" == target.read_text()
    assert [target] == list(tmp_path.iterdir())


# The hub

Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def push(tmp_path: Path, engine: Engine, hub: HubDouble) -> Push:
    """Push in a process of its own: the hub's library reads the environment when imported."""
    made = Cli(tmp_path, "asyncio")
    made.use(engine.url, engine.key)
    made.env |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        made.env |= env
        with made.process(
            "checkpoint", "push-hf", *words, "--timeout", "60", stderr=subprocess.PIPE
        ) as child:
            output, errors = child.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(words, child.returncode, output, errors)

    return run


def test_an_adapter_is_pushed_with_a_card(push: Push, hub: HubDouble, engine: Engine) -> None:
    """Checked, in one commit, in a private repository of ours; large files as such."""
    path = engine.seeded.external
    done = push(path, "--json")
    assert 0 == done.returncode, done.stderr

    found = json.loads(done.stdout)
    name = f"somebody/tinker-tiny-llama-{engine.seeded.run.replace(':', '-')}"
    assert name == found["repo"]
    assert f"{hub.url}/{name}/commit/{'a' * 40}" == found["url"]
    repository = hub.repositories[name]
    files = repository.branches["main"]
    assert ("private", [f"Upload {path}"]) == (repository.visibility, repository.messages)
    assert ["README.md", *ADAPTER] == sorted(files)
    assert {one["name"]: one["size_bytes"] for one in found["files"]} == {
        file: len(content) for file, content in files.items()
    }
    text = files["README.md"].decode()
    assert 'base_model: "tiny-llama"' in text
    assert path in text
    assert f'from_pretrained("{name}")' in text
    assert [files[ADAPTER[1]]] == list(hub.large.values())


def test_a_training_checkpoint_is_pushed_without_its_optimizer(
    push: Push, hub: HubDouble, engine: Engine, tmp_path: Path
) -> None:
    """To the branch, with the files and the words that were asked for, from a folder that is here."""
    downloaded = Cli(tmp_path, "asyncio")
    downloaded.use(engine.url, engine.key)
    path = engine.seeded.training[0]
    folder = str(tmp_path / "here")
    assert (
        "optimizer.safetensors"
        in downloaded.json("checkpoint", "download", path, "--to", folder)["files"]
    )

    words = ("--repo", "team/adapter", "--public", "--revision", "v1", "--folder", folder)
    done = push(path, *words, "--commit-message", "First", "--no-model-card")
    assert 0 == done.returncode, done.stderr
    repository = hub.repositories["team/adapter"]
    assert ADAPTER == sorted(repository.branches["v1"])
    assert {} == repository.branches["main"]
    assert ("public", ["First"]) == (repository.visibility, repository.messages)
    assert "Repository\tteam/adapter" in done.stdout


def test_a_pull_request_is_opened(push: Push, hub: HubDouble, engine: Engine) -> None:
    """Its address is the result."""
    done = push(engine.seeded.external, "--repo", "team/adapter", "--create-pr", "--json")

    assert f"{hub.url}/team/adapter/discussions/1" == json.loads(done.stdout)["url"]
    assert {} == hub.repositories["team/adapter"].branches["main"]


def test_a_repository_with_another_checkpoint_is_left_alone(
    push: Push, hub: HubDouble, engine: Engine
) -> None:
    """6 before anything is downloaded; --force replaces it, and the same checkpoint may come again."""
    hub.add("somebody/mine", README_md=b"from `tinker://other/weights/x`")
    words = (engine.seeded.external, "--repo", "mine")
    refused = push(*words)
    assert 6 == refused.returncode, refused.stderr
    assert "tinker://other/weights/x" in refused.stderr
    assert "--force" in refused.stderr
    assert "downloading" not in refused.stderr
    assert ["README.md"] == sorted(hub.repositories["somebody/mine"].branches["main"])

    assert 0 == push(*words, "--force").returncode
    assert 0 == push(*words).returncode
    assert 2 == len(hub.repositories["somebody/mine"].messages)


@pytest.mark.parametrize(
    ("env", "broken", "code", "said"),
    [
        ({"HF_TOKEN": ""}, {}, 3, "hf auth login"),
        ({"HF_TOKEN": "hf_wrong"}, {}, 3, "401"),
        ({}, {"/api/repos/create": 403}, 4, "403"),
        ({}, {"/api/models/": 404}, 5, "404"),
        ({}, {"/api/whoami-v2": 500}, 8, "500"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, 7, "could not be reached"),
    ],
)
def test_what_the_hub_refuses_has_its_exit_code(
    push: Push,
    hub: HubDouble,
    engine: Engine,
    env: dict[str, str],
    broken: dict[str, int],
    code: int,
    said: str,
) -> None:
    """One line and a hint, no traceback and no token."""
    hub.broken = broken
    done = push(engine.seeded.external, "--repo", "mine", **env)

    assert (code, "") == (done.returncode, done.stdout), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(token in done.stderr for token in (TOKEN, "hf_wrong"))


def test_a_dry_run_shows_the_files_and_does_not_ask_the_hub(
    local: Cli, engine: Engine, hub: HubDouble
) -> None:
    """Nor does it need its library."""
    local.env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    found = local.json(
        "checkpoint", "push-hf", engine.seeded.external, "--repo", "a/b", "--dry-run"
    )

    assert ("a/b", None, True) == (found["repo"], found["url"], found["dry_run"])
    assert ["README.md", *ADAPTER] == [one["name"] for one in found["files"]]
    assert [] == hub.requests
    only = ("--allow-pattern", "adapter*.json", "--dry-run")
    lines = local.ask("checkpoint", "push-hf", engine.seeded.external, *only).stdout.splitlines()
    assert ADAPTER[:1] == [line.split("\t")[0] for line in lines[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / ADAPTER[0]).unlink(), "it has no adapter_config.json"),
        (lambda folder: (folder / ADAPTER[1]).unlink(), "it has no adapter_model.safetensors"),
        (lambda folder: (folder / ADAPTER[0]).write_text("{"), "cannot be read"),
        (lambda folder: (folder / ADAPTER[0]).write_text('{"r": 4}'), "not one of peft"),
        (lambda folder: (folder / ADAPTER[1]).write_bytes(b"\x02" + b"\0" * 7 + b"{}"), "no LoRA"),
        (lambda folder: (folder / ADAPTER[1]).write_bytes(b"\xff" * 8), "no LoRA"),
        (lambda folder: (folder / "adapter_model.safetensors.age").touch(), "encrypted"),
    ],
)
def test_what_peft_does_not_read_is_not_pushed(
    local: Cli, engine: Engine, tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    """2, with what is missing."""
    folder = tmp_path / "here"
    path = engine.seeded.external
    local.json("checkpoint", "download", path, "--to", str(folder))
    words = ("checkpoint", "push-hf", path, "--folder", str(folder), "--dry-run")
    assert 0 == local.ask(*words).exit_code
    change(folder)

    refused = local.ask(*words)
    assert (2, "") == (refused.exit_code, refused.stdout)
    assert said in refused.stderr


def test_a_config_without_its_base_model_is_given_it(
    local: Cli, engine: Engine, tmp_path: Path
) -> None:
    """The folder stays as it is."""
    from tinker_async.cli.checkpoint.adapter_files import check_adapter, patched

    folder = tmp_path / "here"
    local.json("checkpoint", "download", engine.seeded.external, "--to", str(folder))
    config = check_adapter(folder)
    assert patched(config, "other") is None
    without = {**config, "base_model_name_or_path": None}

    changed = patched(without, 'a"b')
    assert changed is not None
    assert {**without, "base_model_name_or_path": 'a"b'} == json.loads(changed)


def test_without_its_library_the_push_says_how_to_get_it(
    tmp_path: Path, engine: Engine, hub: HubDouble
) -> None:
    """2 and the extra, before anything is downloaded."""
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from tinker_async.cli import main\n"
        "main(sys.argv[1:])"
    )
    made = Cli(tmp_path, "asyncio")
    made.use(engine.url, engine.key)
    env = {name: value for name, value in made.env.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", code, "checkpoint", "push-hf", engine.seeded.external],
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert "pip install 'tinker-async[hf]'" in done.stderr
    assert "downloading" not in done.stderr
