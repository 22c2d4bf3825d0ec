"""Custom losses: made once by number, then named in `forward_backward`."""

from __future__ import annotations

from typing import Any

import anyio

from tinker_async.errors import InvalidInputError
from tinker_async.loss_graphs import GraphLoss
from tinker_async.testing.answers import Answer, Refusal, json_answer
from tinker_async.testing.faults import OperationFails
from tinker_async.testing.routing import Call, Route
from tinker_async.testing.state import SessionRecord, State
from tinker_async.testing.toy_losses import ToyLoss, toy_loss
from tinker_async.wire.messages import (
    CreateCustomLossRequest,
    CreateCustomLossResponse,
    FailedResponse,
    UntypedAPIFuture,
)


def create_custom_loss(state: State, call: Call) -> Answer:
    """Make a custom loss. A repetition gets the promise of the first time."""
    wanted = call.parse(CreateCustomLossRequest)
    session = state.session(wanted.session_id)
    number = wanted.custom_loss_seq_id
    known = session.losses.get(number)
    if known is None:
        promise = state.promises.make("json", session.id)
        promise.settle(_made(session, wanted, call), due_s=anyio.current_time())
        known = session.losses[number] = (call.digest, promise)
    if known[0] != call.digest:
        raise Refusal(409, f"custom_loss_seq_id {number} was used for another loss")
    call.entry.request_id = known[1].request_id
    return json_answer(UntypedAPIFuture(request_id=known[1].request_id))


def _made(session: SessionRecord, wanted: CreateCustomLossRequest, call: Call) -> Any:
    if isinstance(call.fault, OperationFails):
        return FailedResponse(error=call.fault.error, category=call.fault.category)
    try:
        loss = GraphLoss(wanted.inputs, wanted.graph)
    except InvalidInputError as error:
        return FailedResponse(error=str(error), category="user")
    loss_id = f"{session.id}:loss:{wanted.custom_loss_seq_id}"
    session.graphs[loss_id] = loss
    return CreateCustomLossResponse(loss_id=loss_id)


def loss_of(session: SessionRecord, name: str, config: dict[str, Any]) -> ToyLoss | GraphLoss:
    """Return a loss by name, or by its id if it is a custom one.

    Raises:
        InvalidInputError: There is no such loss, or no such setting.
    """
    if name != "custom":
        return toy_loss(name, config)
    loss = session.graphs.get(str(config.get("loss_id")))
    if loss is None:
        raise InvalidInputError(
            f"loss_fn_config['loss_id']: this session has no loss {config.get('loss_id')!r}",
            field="loss_fn_config['loss_id']",
        )
    return loss.fresh()


ROUTES = (Route("create_custom_loss", "POST", "create_custom_loss", create_custom_loss),)
