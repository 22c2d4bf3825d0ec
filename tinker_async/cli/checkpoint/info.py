"""`tinker-async checkpoint info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.checkpoint.choosing import look_up, missing
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.cli.quantities import age, amount
from tinker_async.errors import APIStatusError

if TYPE_CHECKING:
    import tinker_async as ta

_UNKNOWN = {400, 403, 404, 405, 501}
"""What servers answer that do not describe weights, or not these."""


def _about(part: str, field: str) -> Any:
    return lambda both: getattr(both[part], field) if both[part] is not None else None


FIELDS = (
    Column("Checkpoint", _about("checkpoint", "tinker_path")),
    Column("Kind", _about("checkpoint", "checkpoint_type")),
    Column("Size", lambda both: amount(both["checkpoint"].size_bytes)),
    Column("Saved", lambda both: age(both["checkpoint"].time)),
    Column("Expires", lambda both: age(both["checkpoint"].expires_at) or "never"),
    Column("Public", _about("checkpoint", "public")),
    Column("Metadata", lambda both: both["checkpoint"].user_metadata or None),
    Column("Base model", _about("weights", "base_model")),
    Column("LoRA rank", _about("weights", "lora_rank")),
    Column("Attention trained", _about("weights", "train_attn")),
    Column("MLP trained", _about("weights", "train_mlp")),
    Column("Unembedding trained", _about("weights", "train_unembed")),
)


@click.command()
@click.argument("path")
@output_options
@connection_options
def info(*, path: str, out: Output, connection: Connection) -> None:
    """Show one checkpoint, and what it was trained on and how."""
    import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load it

    ta.parse_path(path)

    async def work(rest: ta.RestClient) -> dict[str, Any]:
        [chosen] = await look_up(rest, [path])
        if chosen.found is None:
            raise missing(path)
        return {"checkpoint": chosen.found, "weights": await weights_of(rest, path)}

    out.record(connection.ask(work), FIELDS)


async def weights_of(rest: ta.RestClient, path: str) -> ta.WeightsInfoResponse | None:
    """Return what a checkpoint was trained on; None where the server does not say."""
    try:
        return await rest.get_weights_info_by_tinker_path(path)
    except APIStatusError as error:
        if error.status not in _UNKNOWN:
            raise
        return None
