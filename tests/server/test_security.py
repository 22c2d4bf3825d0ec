"""What must not get in or out: paths, pickles, bodies without end."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import zstandard
from server.desk import open_desk
from server.engine_double import QuickEngine
from starlette.requests import Request

import tinker_async
from tinker_async.local.engine import jobs
from tinker_async.local.server import http
from tinker_async.local.server.credentials import Credentials
from tinker_async.local.server.folders import Folders
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.store import now
from tinker_async.local.serving import ServeOptions

NASTY = [
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "x\0y",
    "x\n",
    ".hidden",
    "~",
    "x~2",
    "c:x",
    "ü",
    "x" * 256,
    "%2e%2e",
    " ",
]


def everything_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "sqlite3" not in path.name}


async def test_no_name_leads_out_of_the_data_directory(tmp_path: Path) -> None:
    """Neither when saving nor when loading, listing or deleting; nothing is written."""
    data_dir = tmp_path / "data"
    engine = QuickEngine()
    async with open_desk(data_dir, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        before = everything_in(tmp_path)
        for name in NASTY:
            for path in ("/save_weights", "/save_weights_for_sampler"):
                reply = await desk.post(path, {"model_id": model_id, "path": name, "seq_id": 1})
                assert (400, "path") == (reply.status, reply.json["field"])
            for wanted in (
                f"tinker://{model_id}/weights/{name}",
                f"tinker://{name}/weights/x",
                name,
            ):
                load = {"session_id": session_id, "model_seq_id": 1, "path": wanted}
                assert (await desk.post("/load_weights", load)).status in (400, 404)
                info = {"tinker_path": wanted}
                assert (await desk.post("/weights_info", info)).status in (400, 404)
                body: dict[str, Any] = {"session_id": session_id, "sampling_session_seq_id": 1}
                body["model_path"] = wanted
                assert (await desk.post("/create_sampling_session", body)).status in (400, 404)
            one = f"/training_runs/{model_id}/checkpoints/weights/{name}"
            assert (await desk.send("DELETE", one)).status in (404, 405)
            assert (await desk.get(f"/tokenizers/{name}")).status == 404
        assert before == everything_in(tmp_path)
        assert ["CreateModel"] == engine.kinds()


async def test_a_link_in_the_data_directory_is_not_followed(tmp_path: Path) -> None:
    """Neither to load from it nor to delete behind it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    engine = QuickEngine()
    async with open_desk(tmp_path / "data", engine) as desk:
        session_id = await desk.session()
        save = {"model_id": await desk.model(session_id), "path": "x", "seq_id": 1}
        path = (await desk.result(await desk.ok("/save_weights", save)))["path"]
        row = desk.service.store.checkpoints[path]
        folder = tmp_path / "data" / row.folder
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.symlink_to(outside)

        load = {"session_id": session_id, "model_seq_id": 1, "path": path}
        assert (await desk.post("/load_weights", load)).status == 410
        body = {"session_id": session_id, "sampling_session_seq_id": 1, "model_path": path}
        assert (await desk.post("/create_sampling_session", body)).status == 410
        one = f"/training_runs/{row.run_id}/checkpoints/weights/x"
        assert (await desk.send("DELETE", one)).status == 204
        await desk.service.folders.remove("../outside")
        assert [outside / "precious"] == list(outside.iterdir())
        assert not any(isinstance(job, jobs.LoadModel) for job in engine.submitted)


async def test_a_row_that_points_outside_is_not_followed(tmp_path: Path) -> None:
    """Whoever wrote it."""
    folders = Folders(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    for folder in ("../outside", str(tmp_path / "outside"), "aside/../../outside", "nothing"):
        with pytest.raises(Refusal) as caught:
            folders.inside(folder)
        assert caught.value.status == 410
        await folders.remove(folder)
    await folders.remove("")
    assert (tmp_path / "outside").is_dir()
    assert (tmp_path / "data" / "aside").is_dir()


def endless(part: bytes, counted: list[int]) -> Any:
    """A chunked body that never ends."""

    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        counted[0] += len(part)
        return {"type": "http.request", "body": part, "more_body": True}

    return receive


async def test_a_body_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit and a bit, with 413; without the key just as well, with 401."""
    monkeypatch.setattr(http, "_READ_ON_BYTES", 10_000)
    counted = [0]
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    with anyio.fail_after(5):
        with pytest.raises(Refusal) as caught:
            await http.read_body(Request(scope, endless(b"x" * 1000, counted)), limit_bytes=5_000)
        assert (413, True) == (caught.value.status, 15_000 < counted[0] < 20_000)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(*_: Any) -> None:
            raise AssertionError

        counted[0] = 0
        gate = http.KeyGate(app, credentials=Credentials(now))
        await gate(scope, endless(b"x" * 1000, counted), send)
        assert (401, True) == (sent[0]["status"], 10_000 < counted[0] < 15_000)


@pytest.mark.parametrize("kept", [3, 10, -4, -1])
def test_a_frame_that_is_cut_short_is_refused(kept: int) -> None:
    """Its reader would take the end of the bytes for the end of the frame."""
    whole = zstandard.compress(os.urandom(1000))
    assert 1000 == len(http._unzstd(whole, 5000))
    with pytest.raises(Refusal) as caught:
        http._unzstd(whole[:kept], 5000)
    assert caught.value.status == 400


def test_json_that_is_nested_without_end_is_a_bad_request() -> None:
    """Not a fault of the server, and no crash."""
    for text in (b'{"tags": [], "user_metadata": ' + b'{"a":' * 200_000, b"[" * 1_000_000):
        with pytest.raises(Refusal) as caught:
            http.parse(http.Body(text), dict[str, Any])
        assert caught.value.status in (400, 422)


def test_it_listens_on_this_machine_only_unless_told() -> None:
    """And makes a key, if none is given."""
    assert ("127.0.0.1", None) == (ServeOptions().host, ServeOptions().api_key)


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec", "compile"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & UNSAFE_CALLS
            yield from names if node.module.split(".")[0] in UNSAFE_MODULES else ()
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in UNSAFE_CALLS:
                yield ast.unparse(node.func)
            if ast.unparse(node.func).endswith("Model.from_pretrained"):
                yield "from_pretrained without safetensors" * (not _is_safe(node))
            if any(k.arg in ("allow_pickle", "weights_only") for k in node.keywords):
                yield "pickle by option"


def _is_safe(call: ast.Call) -> bool:
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    return (given.get("use_safetensors"), given.get("trust_remote_code")) == ("True", "False")


def test_nothing_of_the_engine_can_unpickle() -> None:
    """Files are safetensors and JSON; models bring no code of their own."""
    folder = Path(tinker_async.__file__).parent / "local"
    found = {
        f"{path.relative_to(folder)}: {what}"
        for path in folder.rglob("*.py")
        for what in unsafe(ast.parse(path.read_text(encoding="utf-8")))
        if what
    }
    assert set() == found
    assert ["torch.load"] == list(unsafe(ast.parse("torch.load(x)")))
    bad = "t.AutoModel.from_pretrained(x)"
    assert ["from_pretrained without safetensors"] == list(unsafe(ast.parse(bad)))
