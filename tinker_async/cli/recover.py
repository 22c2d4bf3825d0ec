"""`tinker-async recover`: a run that is lost goes on from one of its checkpoints, in a new run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tinker_async.cli.asking import dry_run_option
from tinker_async.cli.checkpoint.save import check_name
from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.output import Output, output_options
from tinker_async.errors import ConflictError, LedgerError, TinkerError

if TYPE_CHECKING:
    from tinker_async.cli.live import Live
    from tinker_async.cli.recover_folder import Folder
    from tinker_async.cli.recover_load import Recovered
    from tinker_async.cli.recover_look import Look, Option, Wish


@click.command()
@click.argument("run")
@click.option(
    "--strategy",
    type=click.Choice(["latest", "best", "specific"]),
    help="What is tried first; the others follow, newest first. Default: latest, or with "
    "--checkpoint specific. best needs a folder, where metrics are recorded.",
)
@click.option("--checkpoint", metavar="PATH", help="The checkpoint that is tried first.")
@click.option("--metric", default="loss", show_default=True, help="What best goes by.")
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Whether a smaller or a larger value is better.",
)
@click.option("--weights-only", is_flag=True, help="With a fresh optimizer.")
@click.option(
    "--name",
    help="Of the checkpoint that is saved. Default: recovered-NAME, after the one it comes from.",
)
@click.option("--anyway", is_flag=True, help="Also if the run is healthy.")
@dry_run_option
@output_options
@connection_options
def recover(
    *,
    run: str,
    strategy: str | None,
    checkpoint: str | None,
    metric: str,
    mode: str,
    weights_only: bool,
    name: str | None,
    anyway: bool,
    dry_run: bool,
    out: Output,
    connection: Connection,
) -> None:
    """Go on with a run that is corrupted: from its newest checkpoint that can be loaded.

    RUN is the id of a training run, or the folder of a durable training. Its training
    checkpoints are checked, one is loaded into a new run, and that run is saved: the path that is
    printed is where your program goes on. In a folder the new checkpoint is put on record, and
    the program goes on from it when it is started again.

    Nothing is deleted. A healthy run and a folder in which a program trains are only looked at;
    for a healthy one --anyway changes that.
    """
    # Not at the top: `--help` shall not load the client.
    import tinker_async as ta  # noqa: PLC0415
    from tinker_async.cli.live import Live  # noqa: PLC0415
    from tinker_async.cli.recover_folder import folder_of  # noqa: PLC0415
    from tinker_async.cli.recover_look import Wish  # noqa: PLC0415
    from tinker_async.cli.recover_tell import Report  # noqa: PLC0415

    if name is not None:
        check_name(name)
    _check_strategy(strategy, checkpoint)
    policy = ta.RecoveryPolicy(
        strategy=strategy or ("specific" if checkpoint else "latest"),  # type: ignore[arg-type]  # click has checked it
        specific_path=checkpoint,
        restore_optimizer=not weights_only,
    )
    wish = Wish(policy, metric, mode)  # type: ignore[arg-type]  # as above
    folder = folder_of(run)
    with Live() as live:
        look = _look(connection, run, folder, wish, live)
    report = Report(look, out, with_optimizer=not weights_only)
    report.found()
    refusal = _refusal(look, anyway=anyway)
    if dry_run:
        if refusal is not None:
            out.note(f"{refusal.message}: without --dry-run nothing would be done")
        if look.fitting:
            report.end("would recover")
            return
        refusal = None
    try:
        if refusal is not None:
            raise refusal
        with Live() as live:
            found = _go_on(connection, look, wish, name, live)
    except TinkerError as error:
        report.end("failed" if refusal is None else "refused", error=error)
        raise
    report.end("recovered", result=found)


def _check_strategy(strategy: str | None, checkpoint: str | None) -> None:
    if strategy is None or (strategy == "specific") == (checkpoint is not None):
        return
    if checkpoint is None:
        raise click.UsageError("--strategy specific needs --checkpoint PATH, which is tried first")
    raise click.UsageError(
        f"--checkpoint and --strategy {strategy} each name what is tried first: give one of the two"
    )


def _look(connection: Connection, run: str, folder: Folder | None, wish: Wish, live: Live) -> Look:
    from tinker_async.cli.recover_look import look_at  # noqa: PLC0415  # as above

    begun = False

    def checked(option: Option, total: int) -> None:
        nonlocal begun
        if not begun:
            live.stage("check", total)
        begun = True
        live.step(_beside(option))

    return connection.ask(lambda rest: look_at(rest, run, folder, wish, on_checked=checked))


def _refusal(look: Look, *, anyway: bool) -> TinkerError | None:
    """Return why nothing is done, whatever there is to go on from."""
    if look.folder is not None and look.folder.in_use:
        return LedgerError(
            f"a program trains in {look.folder.path}",
            path=str(look.folder.path),
            reason="in_use",
            hint="it recovers by itself, if its policy says so; to do it from here, end it first",
        )
    if look.state == "healthy" and not anyway:
        by_itself = "; the program goes on by itself if it is started again"
        return ConflictError(
            f"run {look.run_id} is healthy",
            status=409,
            hint="--anyway recovers it all the same" + (by_itself if look.folder else ""),
        )
    return None


def _go_on(
    connection: Connection, look: Look, wish: Wish, name: str | None, live: Live
) -> Recovered:
    from tinker_async.cli.recover_load import go_on, opened  # noqa: PLC0415  # as above

    async def work() -> Recovered:
        async with opened(look) as disk, connection.session(display_name="recover") as session:
            return await go_on(
                session,
                look,
                wish,
                name=name,
                disk=disk,
                on_tried=lambda option: live.step(_beside(option)),
            )

    if not look.fitting:
        raise look.nothing_fits()
    live.stage("load", len(look.fitting))
    return connection.run(work)


def _beside(option: Option) -> str:
    """What a progress bar says of a checkpoint."""
    name = option.path.rpartition("/")[2]
    return name if option.why_not is None else f"{name}: {option.why_not}"
