"""The switches that clients are told: `client/config` and `client/dynamic_config`.

The rule: whatever is switched on here, this server can do.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tinker_async.errors import ConfigError
from tinker_async.wire.messages import ClientConfigResponse, DynamicConfigResponse


class _ClientConfig(ClientConfigResponse, frozen=True):
    """With switches that only older clients know."""

    proto_write_fwdbwd: bool = False
    """0.24: send `forward_backward` as protobuf"""
    fwd_via_fwdbwd: bool = False
    """0.24: and `forward` as well"""
    create_model_via_load_weights: bool = False
    """0.24 and 0.25: resume with one request"""


class Flags(msgspec.Struct, frozen=True):
    """What the two endpoints answer. Make it with `read_flags`."""

    client: ClientConfigResponse = _ClientConfig(parallel_fwdbwd_chunks=True)
    """Compression would only burn the CPU that trains."""
    dynamic: DynamicConfigResponse = DynamicConfigResponse(sample_cancel_enabled=True)


def read_flags(given: Mapping[str, str]) -> Flags:
    """Return the switches with some of them set: names as in the protocol, values as text.

    Raises:
        ConfigError: No such switch, or not a value for it.
    """
    flags = Flags()
    sides = {"client": msgspec.structs.asdict(flags.client)}
    sides["dynamic"] = msgspec.structs.asdict(flags.dynamic)
    for name, value in given.items():
        side = next((side for side in sides.values() if name in side), None)
        if side is None:
            raise ConfigError(
                f"there is no switch {name!r}",
                hint=f"there are {', '.join(sorted([*sides['client'], *sides['dynamic']]))}",
            )
        side[name] = value
    try:
        return Flags(
            client=msgspec.convert(sides["client"], _ClientConfig, strict=False),
            dynamic=msgspec.convert(sides["dynamic"], DynamicConfigResponse, strict=False),
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"a switch has a wrong value: {error}") from error
