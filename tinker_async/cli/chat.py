"""`tinker-async chat`: a conversation with a model, kept for as long as it lasts.

The rule: the terminal belongs to the main thread and the session to the event loop in its
portal's thread, so that a line can be edited, and Ctrl-C stops an answer without a mess.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from tinker_async.cli.connection import Connection, connection_options
from tinker_async.cli.drawing import Drawing, drawing_options
from tinker_async.cli.exits import INTERRUPTED, exit_code, report
from tinker_async.cli.output import Output, output_options
from tinker_async.errors import SessionClosedError, TinkerError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tinker_async.cli.chat_talk import Conversation

_HELP = "/reset begins anew, /exit (or Ctrl-D) ends; Ctrl-C stops an answer"


@click.command()
@drawing_options
@click.option("--system", metavar="TEXT", help="What the model is told first.")
@click.option("--plain", is_flag=True, help="Write the talk as a script, without a chat template.")
@output_options
@connection_options
def chat(
    *, drawing: Drawing, system: str | None, plain: bool, out: Output, connection: Connection
) -> None:
    """Talk with a model: a line is a question, and what was said before counts.

    Written by the model's chat template if it has one, in ChatML if it knows its tokens, plainly
    otherwise. Without a terminal the lines of standard input are the questions; with --json each
    answer is an object in a line.
    """
    # Not at the top: `--help` shall not load the client.
    from tinker_async.cli.chat_talk import conversing  # noqa: PLC0415

    talking = _Talking(out)
    with (
        connection.portal() as portal,
        portal.wrap_async_context_manager(
            conversing(connection, drawing, system=system, plain=plain)
        ) as conversation,
    ):
        talking.welcome(conversation)
        try:
            while (line := talking.ask()) is not None:
                if line.startswith("/"):
                    if not talking.command(line, conversation):
                        break
                elif line:
                    talking.answer(portal.start_task_soon(conversation.ask, line), conversation)
        except KeyboardInterrupt:
            talking.interrupted = True
    talking.end()


class _Talking:
    """The terminal's side of a conversation."""

    def __init__(self, out: Output) -> None:
        self.interrupted = False
        self._failure: TinkerError | None = None
        self._out = out
        self._asks = sys.stdin.isatty()

    def welcome(self, conversation: Conversation) -> None:
        """Say with whom."""
        if self._asks:
            with contextlib.suppress(ImportError):  # not on every platform
                import readline  # noqa: F401, PLC0415  # lines can be edited, and had again
            self._out.note(f"{conversation.model} ({conversation.form.name}); {_HELP}")

    def ask(self) -> str | None:
        """Return the next line; None when there is none."""
        try:
            if self._asks and self._out.terminal and not self._out.as_json:
                return input("> ").strip()
            if self._asks:
                click.echo("> ", nl=False, err=True)
            line = sys.stdin.readline()
        except EOFError:
            return None
        return line.strip() if line else None

    def command(self, line: str, conversation: Conversation) -> bool:
        """Do what a line with a slash says; False ends the conversation."""
        if line in ("/exit", "/quit"):
            return False
        if line == "/reset":
            conversation.reset()
        else:
            self._out.note(_HELP)
        return True

    def answer(self, coming: Future[dict[str, Any]], conversation: Conversation) -> None:
        """Print an answer when it has come; Ctrl-C stops it.

        Raises:
            SessionClosedError: There will be no more answers.
        """
        try:
            found = coming.result()
        except KeyboardInterrupt:
            coming.cancel()
            self._out.note("\n(stopped)")
            if not self._asks:
                raise
        except SessionClosedError:
            raise
        except TinkerError as error:
            self._failure = self._failure or error
            report(error)
        else:
            if conversation.left_out:
                self._out.note(f"(without the first {conversation.left_out} questions: no room)")
            if self._out.as_json:
                self._out.line(found)
            self._out.text(found["content"])
            sys.stdout.flush()

    def end(self) -> None:
        """End with the code for how it went; a person has seen what failed."""
        if self._asks:
            self._out.note("")
        if self.interrupted:
            sys.exit(INTERRUPTED)
        if self._failure is not None and not self._asks:
            sys.exit(exit_code(self._failure))
