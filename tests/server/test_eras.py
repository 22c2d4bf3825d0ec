"""What old official clients leave out, and requests that they never send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server.desk import Desk, open_desk, step_body
from server.engine_double import QuickEngine

from tinker_async.local.engine.jobs import ForwardBackward, Sample
from tinker_async.local.server.eras import sends_in_order
from tinker_async.local.server.limits import Limits

SESSION = {"tags": [], "user_metadata": {}, "sdk_version": "0"}
DATUM = {
    "model_input": {"chunks": [{"tokens": [1, 2, 3]}]},
    "loss_fn_inputs": {"target_tokens": {"data": [2, 3, 4], "dtype": "int64"}},
}


def genuine(version: str) -> dict[str, str]:
    return {"user-agent": "AsyncTinker/Python 0", "x-stainless-package-version": version}


@pytest.mark.parametrize(
    ("in_order", "headers"),
    [
        (True, genuine("0.4.1")),
        (True, genuine("0.16.1")),
        (False, genuine("0.24.1")),
        (False, genuine("0.38.0")),
        (False, genuine("1.0.0")),
        (False, genuine("")),
        (False, genuine("0.x")),
        (False, {"user-agent": "other/1", "x-stainless-package-version": "0.4.1"}),
        (False, {}),
    ],
)
def test_only_old_genuine_clients_send_one_by_one(in_order: bool, headers: dict[str, str]) -> None:
    assert in_order == sends_in_order(headers)


async def model_of(desk: Desk, version: str) -> str:
    headers = {name.replace("-", "_"): value for name, value in genuine(version).items()}
    opened = await desk.ok("/create_session", SESSION, **headers)
    return await desk.model(opened["session_id"])


async def test_a_number_that_an_old_client_skipped_is_not_waited_for(tmp_path: Path) -> None:
    """It refused a loss by itself; the number is gone, and comes back as a 410."""
    async with open_desk(tmp_path, QuickEngine(), Limits(hold_s=0.05)) as desk:
        old = await model_of(desk, "0.16.1")
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(old, 1))
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(old, 3))
        assert 410 == (await desk.post("/optim_step", step_body(old, 2))).status
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(old, 4))

        new = await model_of(desk, "0.38.0")
        assert "try_again" == (await desk.result(await desk.step(new, 2)))["type"]


async def test_a_chunk_without_its_type_is_told_by_its_fields(tmp_path: Path) -> None:
    """In all three places; one with no telling field is refused as what it is."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        for number, (path, name) in enumerate(
            (("/forward_backward", "forward_backward_input"), ("/forward", "forward_input")), 1
        ):
            body = {"model_id": model_id, "seq_id": number}
            given: dict[str, Any] = {"data": [DATUM], "loss_fn": "cross_entropy"}
            await desk.result(await desk.ok(path, body | {name: given}))
            job = engine.submitted[-1]
            assert isinstance(job, ForwardBackward)
            assert [1, 2, 3] == job.data[0].model_input.to_ints()

        opened = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "tiny"}
        sampler_id = (await desk.ok("/create_sampling_session", opened))["sampling_session_id"]
        body = {"sampling_session_id": sampler_id, "seq_id": 0, "sampling_params": {}}
        await desk.result(await desk.ok("/asample", body | {"prompt": prompt(tokens=[4, 5])}))
        job = engine.submitted[-1]
        assert isinstance(job, Sample)
        assert [4, 5] == job.prompt.tolist()

        image = prompt(data="YWI=", format="png", height=1, width=1, tokens=1)
        for seq_id, (status, wrong) in enumerate(
            [(400, image), (422, prompt(nothing=1)), (422, {"chunks": [7]}), (422, {"chunks": 7})],
            start=1,
        ):
            reply = await desk.post("/asample", body | {"prompt": wrong, "seq_id": seq_id})
            assert status == reply.status, reply


def prompt(**chunk: Any) -> dict[str, Any]:
    return {"chunks": [chunk]}
