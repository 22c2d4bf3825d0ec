"""Every error pickles with its facts, and says whether repeating it helps."""

from __future__ import annotations

import pickle

import pytest

from tinker_async import errors
from tinker_async.errors import TinkerError, status_error

EXAMPLES: dict[str, TinkerError] = {
    "InvalidInputError": errors.InvalidInputError("m", field="f", hint="h"),
    "ResponseError": errors.ResponseError("m", endpoint="/e"),
    "RequestFailedError": errors.RequestFailedError("m", category="user", request_id="r"),
    "UnsupportedByServerError": errors.UnsupportedByServerError("m", feature="cancel"),
    "PromiseLostError": errors.PromiseLostError("m", request_id="r"),
    "ModelPoisonedError": errors.ModelPoisonedError(
        "m",
        model_id="s:train:0",
        lost_operation="optim_step",
        lost_seq_id=3,
        lost_error="ProtocolError",
        lost_message="broken",
    ),
    "EngineStartError": errors.EngineStartError("m", detail="d"),
    "DiskError": errors.DiskError("m", path="p", reason="full"),
    "UnsafeDownloadError": errors.UnsafeDownloadError("m", member="../m"),
    "LedgerError": errors.LedgerError("m", path="p", reason="in_use"),
    "SupersededError": errors.SupersededError("m", generation=1, current=2),
    "RecoveryExhaustedError": errors.RecoveryExhaustedError(
        "m", run_id="r", attempts=3, history=("a", "b")
    ),
}


def all_errors() -> list[type[TinkerError]]:
    found = [errors.TinkerError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return sorted({cls for cls in found if cls.__module__ == errors.__name__}, key=str)


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls: type[TinkerError]) -> None:
    """Class, text, hint, facts and verdicts come back."""
    if issubclass(cls, errors.APIStatusError):
        error: TinkerError = cls("m", status=418, endpoint="/e", detail="d", retry_after_s=2.0)
    else:
        error = EXAMPLES.get(cls.__name__) or cls("m", hint="h")
    error.delivery_in_doubt = error.should_retry = True

    copy = pickle.loads(pickle.dumps(error))

    assert cls is type(copy)
    assert str(error) == str(copy)
    assert vars(error) == vars(copy)


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_an_error_of_the_right_family(status: int) -> None:
    """5xx can be repeated; the facts are attributes."""
    error = status_error(status, endpoint="/e", detail="no")

    assert (status, "/e", "no") == (error.status, error.endpoint, error.detail)
    assert isinstance(error, errors.InternalServerError) == (status >= 500)
    assert error.retryable == (status >= 500 or status in (408, 425, 429))
