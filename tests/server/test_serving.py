"""The real process with the real engine: started, used over HTTP, stopped, killed, restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server.processes import KEY, START_S, STOP_S, RunningServer, command, environment, start_server

TOKENS = [10, 20, 30, 40]


def tensor(dtype: str, data: list[float]) -> dict[str, Any]:
    return {"dtype": dtype, "data": data, "shape": [len(data)]}


def forward_backward(model_id: str, seq_id: int) -> dict[str, Any]:
    datum = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": TOKENS[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": tensor("int64", list(TOKENS[1:])),
            "weights": tensor("float32", [1.0, 1.0, 1.0]),
        },
    }
    given = {"data": [datum], "loss_fn": "cross_entropy"}
    return {"model_id": model_id, "seq_id": seq_id, "forward_backward_input": given}


def optim_step(model_id: str, seq_id: int, rate: float = 1e-2) -> dict[str, Any]:
    return {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": rate}}


def test_the_ready_line_tells_where_and_what(server: RunningServer) -> None:
    """The key is the one of the environment; health needs none."""
    assert (server.api_key, server.models) == (KEY, ["tiny-llama"])
    status, _, body = server.send("GET", "/healthz", x_api_key="")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert server.send("GET", "/get_server_capabilities", x_api_key="tml-no")[0] == 401


def test_training_lowers_the_loss_and_numbers_may_come_out_of_order(
    server: RunningServer,
) -> None:
    """Each step's pair is posted backwards; a repetition changes nothing."""
    model_id = server.model()
    promises = []
    for step in range(5):
        seq_id = 2 * step + 1
        optim = optim_step(model_id, seq_id + 1)
        later = server.post("/optim_step", optim)
        promises.append(server.post("/forward_backward", forward_backward(model_id, seq_id)))
        assert later == server.post("/optim_step", optim)
        assert "metrics" in server.result(later)
    losses = [server.result(promise)["metrics"]["loss:sum"] for promise in promises]
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < 0.8 * losses[0]


def test_many_held_polls_do_not_keep_others_waiting(server: RunningServer) -> None:
    """Fifty connections hold a poll for a request that is not due; the rest goes on."""
    model_id = server.model()
    held = server.post("/optim_step", optim_step(model_id, 2))
    wanted = {"request_id": held["request_id"]}
    with ThreadPoolExecutor(50) as threads:
        polls = [threads.submit(server.post, "/retrieve_future", wanted) for _ in range(50)]
        assert json.loads(server.send("GET", "/healthz")[2]) == {"status": "ok"}
        assert not any(poll.done() for poll in polls)
        server.post("/forward_backward", forward_backward(model_id, 1))
        answers = [poll.result(60) for poll in polls]
    assert [answers[0]] * 50 == answers
    assert "metrics" in answers[0]


def test_wrong_input_fails_its_promise_and_nothing_else(server: RunningServer) -> None:
    """The engine names what is wrong; the model goes on with the next number."""
    model_id = server.model()
    body = forward_backward(model_id, 1)
    body["forward_backward_input"]["loss_fn"] = "nope"
    failed = server.result(server.post("/forward_backward", body))
    assert failed["category"] == "user"
    assert "nope" in failed["error"]
    good = server.result(server.post("/forward_backward", forward_backward(model_id, 2)))
    assert good["metrics"]["loss:sum"] > 0


def test_the_tokenizer_of_the_model_is_served(server: RunningServer) -> None:
    """As the file that it was loaded from."""
    status, headers, body = server.send("GET", "/tokenizers/tiny-llama")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert "model" in json.loads(body)


def corrupted_runs(server: RunningServer) -> list[str]:
    """What `tinker-async run list --corrupted` lists."""
    line = [sys.executable, "-m", "tinker_async.cli", "run", "list", "--corrupted", "--json"]
    told = subprocess.run(
        line,
        env={**environment(), "TINKER_BASE_URL": server.url},
        capture_output=True,
        timeout=START_S,
        check=True,
    )
    return [run["training_run_id"] for run in json.loads(told.stdout)]


def test_a_restart_goes_on_from_the_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """The process is killed after the save; with the optimizer the next losses are the same.

    The run that was in it is listed as corrupted.
    """

    def next_losses(server: RunningServer, model_id: str, first: int) -> list[float]:
        losses = []
        for seq_id in range(first, first + 6, 2):
            promise = server.post("/forward_backward", forward_backward(model_id, seq_id))
            server.post("/optim_step", optim_step(model_id, seq_id + 1))
            losses.append(server.result(promise)["metrics"]["loss:sum"])
        return losses

    data_dir = tmp_path / "data"
    with start_server(data_dir) as server:
        model_id = server.model()
        next_losses(server, model_id, 1)
        save = {"model_id": model_id, "path": "here", "seq_id": 7}
        path = server.result(server.post("/save_weights", save))["path"]
        expected = next_losses(server, model_id, 8)
        server.process.kill()
        server.process.wait(STOP_S)

    with start_server(data_dir) as server:
        assert server.send("POST", "/optim_step", optim_step(model_id, 99))[0] == 410
        listed = json.loads(server.send("GET", "/checkpoints")[2])["checkpoints"]
        assert [path] == [checkpoint["tinker_path"] for checkpoint in listed]
        assert [model_id] == corrupted_runs(server)
        new = {"tags": [], "user_metadata": {}, "sdk_version": "0"}
        session_id = server.post("/create_session", new)["session_id"]
        load = {"session_id": session_id, "model_seq_id": 0, "path": path, "optimizer": True}
        loaded = server.result(server.post("/load_weights", load))
        assert expected == next_losses(server, loaded["model_id"], 1)

        held = server.post("/optim_step", optim_step(loaded["model_id"], 50))
        poll = server.begin("/retrieve_future", {"request_id": held["request_id"]})
        server.send("GET", "/healthz")  # whoever is answered now came after the poll
        server.process.send_signal(signal.SIGTERM)
        assert poll.getresponse().status == 503
        poll.close()
        assert server.process.wait(STOP_S) == 0


def test_sigint_ends_it_too_and_nothing_but_the_ready_line_was_printed(tmp_path: Path) -> None:
    """Without --json it is one line for people; the made key goes to standard error."""
    env = {name: value for name, value in os.environ.items() if name != "TINKER_API_KEY"}
    with subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=STOP_S)
    assert line.startswith(b"ready http://127.0.0.1:")
    assert (process.returncode, out) == (0, b"")
    assert b"API key: tml-" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--data-dir", "/dev/null/x"], "the data directory /dev/null/x cannot be used"),
        (["--limit", "no_such=1"], "there is no limit 'no_such'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_a_hint(tmp_path: Path, more: list[str], says: str) -> None:
    """With exit status 2 and nothing on standard output."""
    process = subprocess.run(
        [*command(tmp_path), *more],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=START_S,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert f"error: {says}" in process.stderr
    assert "hint: " in process.stderr
    assert "Traceback" not in process.stderr


def test_one_data_directory_has_one_server(server: RunningServer) -> None:
    """The second one is told so instead of mixing its files with the first one's."""
    second = subprocess.run(
        command(server.data_dir),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=START_S,
        check=False,
    )
    assert second.returncode == 2
    assert "another server uses the data directory" in second.stderr


def test_help_loads_neither_torch_nor_the_server() -> None:
    """The command line answers at once."""
    code = (
        "import sys; from tinker_async.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'starlette', 'hypercorn', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "--data-dir" in process.stdout
