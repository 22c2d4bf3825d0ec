"""Makes the fake server behave as another kind of server: what a `Likeness` says, carried out.

The rule: requests are refused or reworded before their handler sees them, and answers after it,
so that no handler knows of any other kind.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tinker_async.testing.answers import JSON, PROTOBUF, Answer, Refusal, refused
from tinker_async.testing.likeness import Likeness
from tinker_async.testing.routing import Call
from tinker_async.testing.state import Model, State
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import FailedResponse
from tinker_async.wire.table import DecodeError
from tinker_async.wire.training import decode_forward_backward

_TRAINING = ("forward", "forward_backward")
_SAMPLER_PATH = re.compile(r"^tinker://([^/]+)/([^/]+)$")
_NUMBERED = (*_TRAINING, "optim_step", "save_weights", "save_weights_for_sampler", "load_weights")


class Disguise:
    """One kind of server."""

    def __init__(self, likeness: Likeness) -> None:
        self.likeness = likeness

    def make_id(self, kind: str, usual: str, session: str, number: int) -> str:
        """Return an id of the kind's form; `usual` is the fake's own."""
        form = self.likeness.ids.get(kind)
        if form is None:
            return usual
        mark = hashlib.blake2b(f"{session}/{number}".encode(), digest_size=4).hexdigest()
        return form.format(session=session, n=number, hex=mark)

    # Before

    def receive(self, state: State, call: Call) -> Answer | None:
        """Refuse a request or reword it. Returns the answer when that ends it.

        Raises:
            Refusal: The kind does not take it.
        """
        kind, endpoint = self.likeness, call.entry.endpoint
        if endpoint in kind.absent:
            return refused(404, "Not Found")
        if kind.json_results:
            call.headers = {**call.headers, b"accept": JSON}
        if endpoint in _TRAINING:
            answer = self._wrong_form(call)
            if answer is not None:
                return answer
        body = _object(call)
        if body is not None:
            self._check_fields(endpoint, body)
            self._check_request(state, endpoint, body)
            self._reword_request(call, endpoint, body)
        if endpoint == "client/config" and kind.config is not None:
            return Answer(200, wire_json.encode(dict(kind.config)))
        if kind.strict_order and endpoint in _NUMBERED:
            return self._out_of_order(state, call)
        return None

    def _wrong_form(self, call: Call) -> Answer | None:
        kind = self.likeness
        protobuf = b"protobuf" in call.headers.get(b"content-type", b"")
        if kind.training != ("json" if protobuf else "protobuf"):
            if kind.dense_only and protobuf:
                self._check_dense(call)
            return None
        status, detail = kind.wrong_form
        if kind.crashes:
            return Answer(status, detail.encode(), b"text/plain; charset=utf-8", closes=True)
        return refused(status, detail)

    def _check_dense(self, call: Call) -> None:
        try:
            sent = decode_forward_backward(call.body)
        except DecodeError as error:
            raise Refusal(422, str(error)) from error
        tensors = (one for datum in sent.data for one in datum.loss_fn_inputs.values())
        if any(tensor.is_sparse for tensor in tensors):
            raise Refusal(422, "sparse tensors are not supported")

    def _check_fields(self, endpoint: str, body: dict[str, Any]) -> None:
        known = self.likeness.known_fields
        if known is None:
            return
        wrong = []
        nested = [(name, body[name]) for name in body if f"{endpoint}.{name}" in known]
        for place, found in [("", body), *nested]:
            fields = known.get(f"{endpoint}.{place}" if place else endpoint)
            loc = ["body", place] if place else ["body"]
            wrong += [
                {"type": "extra_forbidden", "loc": [*loc, name], "msg": _FORBIDDEN}
                for name in found
                if fields is not None and name not in fields
            ]
        if wrong:
            raise Refusal(422, wrong)

    def _check_request(self, state: State, endpoint: str, body: dict[str, Any]) -> None:
        kind = self.likeness
        if endpoint == "load_weights":
            model = state.models.get(body.get("model_id") or "")
            if model is None and kind.create_by_load is not None:
                raise Refusal(*kind.create_by_load)
            if model is not None and model.next_seq_id > 1 and kind.load_first_only:
                raise Refusal(400, "load_weights must be the first request of a model")
        if endpoint == "asample":
            params = body.get("sampling_params") or {}
            if kind.max_tokens is not None and params.get("max_tokens") is None:
                raise Refusal(*kind.max_tokens)
            if kind.bare_stop is not None and isinstance(params.get("stop"), str):
                raise Refusal(*kind.bare_stop)

    def _reword_request(self, call: Call, endpoint: str, body: dict[str, Any]) -> None:
        path = body.get("model_path")
        if self.likeness.sampler_paths_without_kind and isinstance(path, str):
            body["model_path"] = _SAMPLER_PATH.sub(r"tinker://\1/sampler_weights/\2", path)
            call.body = wire_json.encode(body)
        if endpoint == "retrieve_future":  # whoever is strict knows no metadata
            call.body = wire_json.encode({"request_id": body.get("request_id")})

    def _out_of_order(self, state: State, call: Call) -> Answer | None:
        """Let an operation fail that has not the next number: it is never carried out."""
        model = state.models.get(call.entry.model_id or "")
        if model is None or call.entry.seq_id in (None, model.next_seq_id):
            return None
        detail = f"Sequence conflict: expected {model.next_seq_id}, got {call.entry.seq_id}."
        promise = state.promises.make("json", model.session_id, model.id)
        promise.settle(FailedResponse(error=detail, category="unknown"), due_s=0.0)
        return self._promise(
            call.entry.endpoint, {"request_id": promise.request_id, "model_id": model.id}
        )

    # After

    def send(self, state: State, call: Call, answer: Answer) -> Answer:
        """Reword an answer."""
        endpoint = call.entry.endpoint
        if not 200 <= answer.status < 300:
            return answer
        if self.likeness.strict_order and endpoint in _NUMBERED:
            _forget_if_failed(state, call)
        if answer.content_type == PROTOBUF or not answer.body.startswith(b"{"):
            return answer
        body = wire_json.decode(answer.body, dict[str, Any])
        if endpoint == "retrieve_future":
            return self._result(body, call)
        if "request_id" in body:
            return self._promise(endpoint, body)
        if self.likeness.bare_checkpoint_ids:
            for one in body.get("checkpoints") or ():
                one["checkpoint_id"] = one["checkpoint_id"].rpartition("/")[2]
        status = self.likeness.statuses.get(endpoint, answer.status)
        return Answer(status, wire_json.encode(body), headers=answer.headers)

    def _promise(self, endpoint: str, body: dict[str, Any]) -> Answer:
        kind = self.likeness
        if not kind.sequence_ids:
            body.pop("sample_sequence_ids", None)
        if not kind.promise_model_id:
            body.pop("model_id", None)
        body |= kind.promise_extra
        given = {name: value for name, value in body.items() if value is not None}
        return Answer(kind.statuses.get(endpoint, 200), wire_json.encode(given))

    def _result(self, body: dict[str, Any], call: Call) -> Answer:
        kind = self.likeness
        if body.get("type") == "try_again" and kind.held_out == "408":
            return refused(408, "Timeout waiting for result")
        if "error" in body and "category" in body and kind.failures is not None:
            return refused(kind.failures[body["category"]], body["error"])
        if not kind.scores_first_token and body.get("prompt_logprobs"):
            del body["prompt_logprobs"][0]
        path = body.get("path")
        if kind.sampler_paths_without_kind and isinstance(path, str):
            body["path"] = path.replace("/sampler_weights/", "/")
        if call.delivers is not None and call.delivers.kind == "forward_backward":
            body["metrics"] = _metrics(kind, body["metrics"])
        return Answer(200, wire_json.encode(body))


_FORBIDDEN = "Extra inputs are not permitted"


def _metrics(kind: Likeness, usual: dict[str, float]) -> dict[str, float]:
    if kind.metrics == "as they are":
        return usual
    if kind.metrics == "none":
        return {}
    loss = usual["loss:sum"]
    return {"total": loss, "by:name:sum": loss, "policy_lr:last": 1e-4}


def _object(call: Call) -> dict[str, Any] | None:
    """Return a request's JSON object, if it has one."""
    if not call.body.startswith(b"{"):
        return None
    try:
        return wire_json.decode(call.body, dict[str, Any])
    except DecodeError:
        return None


def _forget_if_failed(state: State, call: Call) -> None:
    """Give the number of a failed operation to the next one, as the strictest servers do."""
    promise = state.promises.find(call.entry.request_id)
    model: Model | None = state.models.get(call.entry.model_id or "")
    if promise is None or model is None or call.entry.seq_id is None:
        return
    if isinstance(promise.outcome, FailedResponse) and call.entry.seq_id in model.known:
        del model.known[call.entry.seq_id]
        model.next_seq_id = call.entry.seq_id
