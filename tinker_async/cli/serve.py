"""`tinker-async serve`: the embedded engine for any client of the protocol."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--model",
    default="smollm2-135m",
    show_default=True,
    help="tiny-llama, tiny-qwen3, smollm2-135m, or NAME=FOLDER for a Hugging Face folder.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where checkpoints are kept. Default: a folder of the model in the user's data folder.",
)
@click.option(
    "--api-key",
    envvar="TINKER_API_KEY",
    show_envvar=True,
    help="The key that clients must send. Default: one is made and printed on stderr.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON, with the key.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Type of the base model's weights.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch. Default: its own.")
@click.option(
    "--switch",
    "switches",
    metavar="NAME=VALUE",
    multiple=True,
    help="What clients are told in their configuration, such as sample_use_retrieve_futures=true.",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=VALUE",
    multiple=True,
    help="How much is taken or how long is waited, such as samples_waiting=100 or gap_s=60.",
)
@click.option("--temporary", is_flag=True, hidden=True, help="Keep checkpoints until the end only.")
@click.option("--exit-on-stdin-eof", is_flag=True, hidden=True, help="End when the parent does.")
def serve(
    *,
    model: str,
    host: str,
    port: int,
    data_dir: Path | None,
    api_key: str | None,
    as_json: bool,
    dtype: str,
    threads: int | None,
    temporary: bool,
    exit_on_stdin_eof: bool,
    switches: tuple[str, ...],
    limits: tuple[str, ...],
) -> None:
    """Serve the embedded engine until SIGINT or SIGTERM.

    Prints one line on stdout when requests are accepted: "ready URL".
    """
    # Not at the top: `--help` shall not load the server.
    from tinker_async.local.serving import ServeOptions, run_server  # noqa: PLC0415

    run_server(
        ServeOptions(
            model=model,
            host=host,
            port=port,
            data_dir=data_dir,
            temporary=temporary,
            api_key=api_key or None,
            as_json=as_json,
            dtype=dtype,
            threads=threads,
            exit_on_stdin_eof=exit_on_stdin_eof,
            switches=dict(_pair(text, "--switch") for text in switches),
            limits=dict(_pair(text, "--limit") for text in limits),
        )
    )


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value
