"""Losses that a client uploads: made once by number, named in `forward_backward`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.desk import open_desk
from server.engine_double import QuickEngine

from tinker_async.local.engine.jobs import ForwardBackward

GRAPH = {
    "format": 1,
    "nodes": [
        {"op": "placeholder", "name": "p", "target": "logprobs"},
        {"op": "call_method", "name": "x", "target": "sum", "args": [{"ref": "p"}]},
        {
            "op": "output",
            "name": "output",
            "target": "output",
            "args": [{"tuple": [{"ref": "x"}, {"dict": {}}]}],
        },
    ],
}


def upload(session_id: str, number: int = 0, **more: Any) -> dict[str, Any]:
    body = {"session_id": session_id, "custom_loss_seq_id": number, "name": "f"}
    return {**body, "inputs": [{"name": "logprobs", "rank": 1}], "graph": GRAPH, **more}


def use(model_id: str, seq_id: int, config: dict[str, Any]) -> dict[str, Any]:
    target = {"data": [2, 3], "dtype": "int64"}
    chunk = {"type": "encoded_text", "tokens": [1, 2]}
    datum = {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": {"target_tokens": target}}
    given = {"data": [datum], "loss_fn": "custom", "loss_fn_config": config}
    return {"model_id": model_id, "seq_id": seq_id, "forward_backward_input": given}


async def test_a_loss_is_made_once_and_used_by_its_id(tmp_path: Path) -> None:
    """A repetition gets the same promise; another loss under the number is a 409."""
    engine = QuickEngine()
    async with open_desk(tmp_path, engine) as desk:
        session_id = await desk.session()
        model_id = await desk.model(session_id)
        promise = await desk.ok("/create_custom_loss", upload(session_id))
        assert promise == await desk.ok("/create_custom_loss", upload(session_id))
        made = await desk.result(promise)
        assert "create_custom_loss" == made["type"]
        other = await desk.post("/create_custom_loss", upload(session_id, name="g"))
        assert 409 == other.status

        body = use(model_id, 1, {"loss_id": made["loss_id"]})
        assert "metrics" in await desk.result(await desk.ok("/forward_backward", body))
        job = engine.submitted[-1]
        assert isinstance(job, ForwardBackward)
        assert job.custom is not None
        assert ["placeholder", "call_method", "output"] == [
            node.op for node in job.custom.graph.nodes
        ]


async def test_a_graph_that_may_not_run_is_the_users_fault(tmp_path: Path) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        session_id = await desk.session()
        nodes = [dict(node) for node in GRAPH["nodes"]]  # type: ignore[attr-defined]  # a list
        nodes[1] |= {"op": "call_function", "target": "os.system"}
        wrong = upload(session_id, graph={"format": 1, "nodes": nodes})
        failed = await desk.result(await desk.ok("/create_custom_loss", wrong))
        assert "user" == failed["category"]
        assert "os.system" in failed["error"]


async def test_a_loss_of_another_session_is_unknown(tmp_path: Path) -> None:
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        theirs = await desk.ok("/create_custom_loss", upload(await desk.session()))
        loss_id = (await desk.result(theirs))["loss_id"]
        wrong: tuple[dict[str, Any], ...] = (
            {"loss_id": loss_id},
            {"loss_id": "never"},
            {},
            {"loss_id": 1.0},
        )
        for seq_id, config in enumerate(wrong, start=1):
            promise = await desk.ok("/forward_backward", use(model_id, seq_id, config))
            failed = await desk.result(promise)
            assert "user" == failed["category"]
            assert "loss_fn_config" in failed["error"]


async def test_a_step_of_another_optimizer_fails_in_its_turn(tmp_path: Path) -> None:
    """Its number is used up: what comes next does not wait for it."""
    async with open_desk(tmp_path, QuickEngine()) as desk:
        model_id = await desk.model(await desk.session())
        dimuon = {"type": "dimuon", "learning_rate": 0.1}
        body = {"model_id": model_id, "seq_id": 1, "optimizer_params": dimuon}
        failed = await desk.result(await desk.ok("/optim_step", body))
        assert ("user", True) == (failed["category"], "dimuon" in failed["error"])
        assert {"metrics": {"lr": 0.5}} == await desk.result(await desk.step(model_id, 2))
