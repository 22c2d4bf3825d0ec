"""In which form a server takes training data: protobuf or JSON, sparse tensors or dense ones.

The rule: the newest form is sent until the server refuses it, and what it takes instead is
remembered for the session. A request that was refused goes again under its own number.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Endpoint
from tinker_async.api.features import Feature, FeatureBook, says_no_endpoint, unsupported
from tinker_async.data.datum import Datum
from tinker_async.data.tensors import TensorData
from tinker_async.errors import APIStatusError, TinkerError
from tinker_async.transport import Buffer, Response
from tinker_async.wire import json as wire_json
from tinker_async.wire import training as wire_training
from tinker_async.wire.messages import (
    ForwardBackwardInput,
    ForwardBackwardRequest,
    ForwardRequest,
)

_UNREADABLE = re.compile(
    r"json_invalid|json decode|model_attributes_type|protobuf|content.type"
    r"|valid (json|object|dictionary)",
    re.IGNORECASE,
)
"""What a 422 says that is about the body as such, not about what is in it."""
_CRASHED = "Internal Server Error"
"""All that a server says that has not even tried to read the body (as SkyRL 0.3 of protobuf)."""


class Batch(msgspec.Struct, frozen=True, eq=False):
    """What one request of `forward_backward` says, whatever its form."""

    model_id: str
    data: Sequence[Datum]
    loss_fn: str
    loss_fn_config: Mapping[str, float | str] | None
    forward_only: bool

    @property
    def is_sparse(self) -> bool:
        """Whether any tensor is."""
        return any(
            tensor.is_sparse for datum in self.data for tensor in datum.loss_fn_inputs.values()
        )

    def dense(self) -> Batch:
        """Return the same with dense tensors only."""
        return msgspec.structs.replace(self, data=[_dense(datum) for datum in self.data])

    def protobuf_body(self, seq_id: int) -> Sequence[Buffer]:
        """Return the protobuf form."""
        return wire_training.encode_forward_backward(
            model_id=self.model_id,
            seq_id=seq_id,
            data=self.data,
            loss_fn=self.loss_fn,
            loss_fn_config=self.loss_fn_config,
            forward_only=self.forward_only,
        )

    def json_endpoint(self) -> Endpoint:
        """Where the JSON form goes."""
        return endpoints.FORWARD_JSON if self.forward_only else endpoints.FORWARD_BACKWARD_JSON

    def json_body(self, seq_id: int) -> tuple[bytes]:
        """Return the JSON form, as clients of the 0.4 era send it.

        Raises:
            UnsupportedByServerError: It has no place for where the tokens came from.
        """
        check_fits_json(self.data)
        given = ForwardBackwardInput(
            data=list(self.data),
            loss_fn=self.loss_fn,
            loss_fn_config=dict(self.loss_fn_config or {}) or None,
        )
        body: msgspec.Struct = (
            ForwardRequest(model_id=self.model_id, seq_id=seq_id, forward_input=given)
            if self.forward_only
            else ForwardBackwardRequest(
                model_id=self.model_id, seq_id=seq_id, forward_backward_input=given
            )
        )
        return (wire_json.encode(body),)


class Attempt(Protocol):
    """Sends a batch in one form; an error that `unless` tells is not repeated."""

    def __call__(
        self,
        *,
        json: bool,
        dense: bool,
        unless: Callable[[TinkerError], bool] | None = None,
        attempts_before: int = 0,
    ) -> Awaitable[Response]:
        """Send it, under the number that all forms share."""
        ...


async def sent_in_some_form(features: FeatureBook, batch: Batch, attempt: Attempt) -> Response:
    """Send a batch in the newest form that the server takes.

    Raises:
        TinkerError: It takes it in none, for what is wrong with the request itself.
    """
    proven = features.known(Feature.PROTOBUF_TRAINING)
    json = proven is False
    sparse = features.known(Feature.SPARSE_TENSORS)
    dense = json or sparse is False
    if json or (proven and sparse is not None):
        return await attempt(json=json, dense=dense)
    negotiation = _Negotiation(features, attempt, proven=proven is not None)
    try:
        response = await attempt(json=False, dense=dense, unless=negotiation.gives_up_on)
    except APIStatusError as error:
        if error.status == 422 and sparse is None and batch.is_sparse:
            found = await negotiation.densely(error)
            if found is not None:
                return found
        if not negotiation.is_about_form(error):
            raise
        return await negotiation.as_json(error, dense=dense)
    if proven is None:
        features.learn(Feature.PROTOBUF_TRAINING, True)
        if sparse is None and batch.is_sparse:
            features.learn(Feature.SPARSE_TENSORS, True)
    return response


class _Negotiation:
    """The attempts that follow the first refusal."""

    def __init__(self, features: FeatureBook, attempt: Attempt, *, proven: bool) -> None:
        self._features = features
        self._attempt = attempt
        self._proven = proven

    def is_about_form(self, error: APIStatusError) -> bool:
        """Whether a server may say this of protobuf as such."""
        if self._proven:
            return False
        if error.status == 500:
            return error.detail == _CRASHED
        if error.status == 422:
            return _UNREADABLE.search(error.detail) is not None
        return error.status == 415 or says_no_endpoint(error)

    def gives_up_on(self, error: TinkerError) -> bool:
        """As `is_about_form`, for any error."""
        return isinstance(error, APIStatusError) and self.is_about_form(error)

    async def densely(self, refusal: APIStatusError) -> Response | None:
        """Send dense tensors; None if they are refused as well."""
        try:
            response = await self._attempt(json=False, dense=True, unless=self.gives_up_on)
        except APIStatusError as error:
            if error.status == 422:
                return None
            raise
        self._features.learn(Feature.PROTOBUF_TRAINING, True)
        self._features.learn(Feature.SPARSE_TENSORS, False, detail=refusal.message)
        return response

    async def as_json(self, refusal: APIStatusError, *, dense: bool) -> Response:
        """Send JSON; if that is no better, what is wrong is not the form."""
        try:
            response = await self._attempt(json=True, dense=True, unless=_is_a_refusal)
        except APIStatusError as error:
            if refusal.status != 500:
                raise (error if refusal.status == 415 else refusal) from error
            return await self._crashed_twice(error, dense=dense)
        features = self._features
        features.learn(Feature.PROTOBUF_TRAINING, False, detail=refusal.message)
        features.learn(Feature.JSON_TRAINING, True)
        features.learn(Feature.SPARSE_TENSORS, False, detail="they have no place in this JSON")
        return response

    async def _crashed_twice(self, refusal: APIStatusError, *, dense: bool) -> Response:
        """Find out whether protobuf met a passing failure, or JSON says what is wrong."""
        says_why = refusal.status in (400, 422)
        unless = self.gives_up_on if says_why else None
        try:
            response = await self._attempt(
                json=False, dense=dense, unless=unless, attempts_before=1
            )
        except APIStatusError as error:
            if says_why and error.status == 500:
                raise refusal from error
            raise
        self._features.learn(Feature.PROTOBUF_TRAINING, True)
        return response


def check_fits_json(data: Sequence[Datum]) -> None:
    """Check that data can be sent as JSON.

    Raises:
        UnsupportedByServerError: JSON has no place for where tokens came from.
    """
    if any(datum.model_input_spans is not None for datum in data):
        raise unsupported(Feature.PROVENANCE, "it takes training data as JSON only")


def _is_a_refusal(error: TinkerError) -> bool:
    """Of a first attempt in JSON: it is not worth more than one."""
    return isinstance(error, APIStatusError) and error.status not in (402, 408, 425, 429)


def _dense(datum: Datum) -> Datum:
    if not any(tensor.is_sparse for tensor in datum.loss_fn_inputs.values()):
        return datum
    inputs = {
        key: TensorData(
            data=tensor.to_numpy().reshape(-1), dtype=tensor.dtype, shape=tensor.dense_shape
        )
        if tensor.is_sparse
        else tensor
        for key, tensor in datum.loss_fn_inputs.items()
    }
    return Datum(datum.model_input, inputs, datum.model_input_spans, datum.loss_fn_input_spans)
