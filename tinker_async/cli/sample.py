"""`tinker-async sample`: draw from a model or a checkpoint, for one prompt or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.drawing import Drawing, drawing_options
from tinker_async.cli.exits import exit_code, one_line
from tinker_async.cli.output import Output, output_options

if TYPE_CHECKING:
    import tinker_async as ta
    from tinker_async.cli.prompts import Prompt
    from tinker_async.cli.sample_run import Job


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--prompts",
    "file",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help='A prompt in each line; with the ending .jsonl or .json: "text", {"prompt": "text"} or '
    '{"tokens": [1, 2]} with other fields, which come back. - is standard input.',
)
@click.option("--jsonl", is_flag=True, help="The lines of --prompts are JSON, whatever its name.")
@click.option("-n", "--num-samples", type=click.IntRange(min=1), default=1, show_default=True)
@drawing_options
@click.option("--stop", multiple=True, help="A text that ends a sample. May be given again.")
@click.option("--chat", is_flag=True, help="Ask prompts as questions, in the model's chat format.")
@click.option("--system", metavar="TEXT", help="What a chat model is told first; implies --chat.")
@click.option("--ids", is_flag=True, help="Print token ids, not text: needs no tokenizer.")
@click.option("--in-flight", type=click.IntRange(min=1), default=64, show_default=True)
@output_options
@connection_options
def sample(
    *,
    prompt: str | None,
    file: IO[str] | None,
    jsonl: bool,
    in_flight: int,
    drawing: Drawing,
    out: Output,
    connection: Connection,
    **options: Any,
) -> None:
    """Sample what continues PROMPT (- is standard input), or each prompt of a file.

    Results are printed as they come: texts, or with --json an object in each line. A prompt that
    fails is told on stderr, and the others go on.
    """
    # Not at the top: `--help` shall not load the client.
    from tinker_async.cli.sample_run import Job, draw  # noqa: PLC0415

    prompts, single = _prompts(prompt, file, as_json=jsonl)
    job = Job(prompts=prompts, drawing=drawing, in_flight=in_flight, **options)
    printer = _Printer(job, out, single=single and job.num_samples == 1)
    connection.run(lambda: draw(connection, job, printer.done, printer.failed))
    if printer.first_failure is not None:
        sys.exit(exit_code(printer.first_failure))


def _prompts(
    prompt: str | None, file: IO[str] | None, *, as_json: bool
) -> tuple[Iterator[Prompt], bool]:
    """Return the prompts, and whether it is a single one."""
    from tinker_async.cli.prompts import Prompt, prompts_of  # noqa: PLC0415  # as above

    if (prompt is None) == (file is None):
        raise click.UsageError("give a PROMPT, or a file of them: --prompts FILE")
    if file is not None:
        as_json = as_json or str(file.name).endswith((".jsonl", ".json"))
        if file.seekable():  # a wrong line is told before anything is drawn
            for _ in prompts_of(file, as_json=as_json):
                pass
            file.seek(0)
        return prompts_of(file, as_json=as_json), False
    if prompt == "-":
        prompt = sys.stdin.read()
    return iter([Prompt(0, prompt)]), True


class _Printer:
    """Prints each result when it has come."""

    def __init__(self, job: Job, out: Output, *, single: bool) -> None:
        self.first_failure: ta.TinkerError | None = None
        self._job = job
        self._out = out
        self._single = single

    def done(self, prompt: Prompt, samples: list[dict[str, Any]]) -> None:
        """Print the samples of a prompt."""
        for number, one in enumerate(samples):
            if self._out.as_json:
                self._out.line({**prompt.extra, "prompt": prompt.index, "sample": number, **one})
                continue
            if not self._single:
                self._out.text(f"[{prompt.index}.{number} {one['stop_reason']}]")
            self._out.text(one["text"] if "text" in one else " ".join(map(str, one["tokens"])))
            sys.stdout.flush()

    def failed(self, prompt: Prompt, error: ta.TinkerError) -> None:
        """Say what became of a prompt."""
        self.first_failure = self.first_failure or error
        if self._out.as_json:
            told = {"type": type(error).__name__, "message": error.message}
            self._out.line({**prompt.extra, "prompt": prompt.index, "error": told})
        which = "" if self._single else f"prompt {prompt.index}: "
        self._out.note(f"error: {which}{one_line(error.message)}")
        if error.hint:
            self._out.note(f"hint: {one_line(error.hint)}")
