"""`tinker-async model`: the base models of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Column, Output, output_options
from tinker_async.errors import NotFoundError

if TYPE_CHECKING:
    import tinker_async as ta

COLUMNS = (
    Column("Model", lambda model: model.model_name),
    Column("Context", lambda model: model.max_context_length, right=True),
    Column("Trainable", lambda model: model.trainable),
    Column("Sampleable", lambda model: model.sampleable),
)


@click.group()
def model() -> None:
    """List the models of the server."""


@model.command(name="list")
@click.argument("part", required=False)
@output_options
@connection_options
def list_models(*, part: str | None, out: Output, connection: Connection) -> None:
    """List the models that can be trained or sampled from.

    With PART, only those with it in their name, in upper or lower case.
    """
    found = [one for one in _models(connection) if (part or "").lower() in _name(one).lower()]
    out.table(found, COLUMNS, empty="no models" + (f" with {part!r} in their name" if part else ""))


@model.command()
@click.argument("name")
@output_options
@connection_options
def info(*, name: str, out: Output, connection: Connection) -> None:
    """Show one model."""
    models = _models(connection)
    for one in models:
        if one.model_name == name:
            out.record(one, COLUMNS)
            return
    near = [_name(one) for one in models if name.lower() in _name(one).lower()]
    raise NotFoundError(
        f"the server has no model {name!r}",
        status=404,
        hint=f"is it {' or '.join(near[:5])}?" if near else "`model list` shows all",
    )


def _models(connection: Connection) -> list[ta.SupportedModel]:
    async def work(rest: ta.RestClient) -> list[ta.SupportedModel]:
        return (await rest.get_server_capabilities()).supported_models

    return sorted(connection.ask(work), key=_name)


def _name(model: ta.SupportedModel) -> str:
    return model.model_name or ""
