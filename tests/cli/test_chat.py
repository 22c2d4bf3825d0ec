"""`chat`: what was said counts, a stopped or failed question does not, and every end is clean."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
from typing import TYPE_CHECKING, Any

import pytest
from cli.terminal import interrupt
from cli.test_sample import TEMPLATE, chat_model, wait_for
from tokenizers import Tokenizer

from tinker_async.cli.templates import chat_format, files_in
from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from pathlib import Path

    from cli.conftest import Cli

OPTIONS = ("--max-tokens", "4", "--seed", "7")


def talk(cli: Cli, text: str, *options: str, exit_code: int = 0) -> list[dict[str, Any]]:
    """Say lines, and return the answers."""
    result = cli.ask("chat", *OPTIONS, "--json", *options, input=text)
    assert exit_code == result.exit_code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_line_is_answered_with_what_was_said_before(cli: Cli, service: FakeService) -> None:
    """The second prompt has the first question and its answer in it; the session ends in order."""
    first, second = talk(cli, "hello\nand you\n")

    assert ("assistant", 4) == (first["role"], first["tokens"])
    script = f"User: hello\nAssistant: {first['content']}\nUser: and you\nAssistant:"
    assert len("User: hello\nAssistant:") == first["prompt_tokens"]
    assert len(script.encode()) == second["prompt_tokens"]
    assert ["success"] == [one.ended for one in service.state.sessions.values()]


def test_people_get_the_answers_alone(cli: Cli) -> None:
    """A line in, an answer out; what is no answer is on stderr."""
    [answer] = talk(cli, "hello\n")
    result = cli.ask("chat", *OPTIONS, input="hello\n")
    assert (0, answer["content"] + "\n") == (result.exit_code, result.stdout)


def test_commands_begin_with_a_slash(cli: Cli) -> None:
    """/reset forgets, /exit ends, anything else is helped with; none is a question."""
    answers = talk(cli, "hello\n/reset\n\n/nonsense\nhello\n/exit\nnever asked\n")
    assert 2 == len(answers)
    assert answers[0] == answers[1]


def test_a_failed_question_is_taken_back_and_the_talk_goes_on(
    cli: Cli, service: FakeService
) -> None:
    """Without a terminal the exit code tells of it."""
    service.faults.on("asample", faults.Status(status=400, detail="not this"), occurrence=1)
    [answer] = talk(cli, "bad\nhello\n", exit_code=2)
    assert len("User: hello\nAssistant:") == answer["prompt_tokens"]


def test_the_system_prompt_stays(cli: Cli) -> None:
    """Also after a reset."""
    first, second = talk(cli, "a\n/reset\na\n", "--system", "be brief")
    assert len("System: be brief\nUser: a\nAssistant:") == first["prompt_tokens"]
    assert first == second


def test_a_model_with_a_template_is_spoken_to_by_it(cli: Cli, tmp_path: Path) -> None:
    """And --plain does without."""
    folder = chat_model(tmp_path / "model", template=TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|im_start|>user: hello<|im_end|><|im_start|>assistant:"
    [answer] = talk(cli, "hello\n", "--tokenizer", str(folder))
    assert len(tokenizer.encode(text).ids) == answer["prompt_tokens"]
    [plain] = talk(cli, "hello\n", "--tokenizer", str(folder), "--plain")
    assert len("User: hello\nAssistant:") == plain["prompt_tokens"]


# Formats


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "named"])
def test_templates_are_found_where_models_have_them(place: str, tmp_path: Path) -> None:
    """In a file of their own, or in the tokenizer's configuration, alone or among several."""
    folder = chat_model(tmp_path / "model", template=None)
    template = "{{ bos_token }}" + TEMPLATE
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}}
    if place == "chat_template.jinja":
        (folder / place).write_text(template, encoding="utf-8")
    elif place == "named":
        config["chat_template"] = [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": template},
        ]
    else:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    form = chat_format(tokenizer, files_in(folder))

    assert "template" == form.name
    said = [{"role": "user", "content": "hi"}]
    assert "<s><|im_start|>user: hi<|im_end|><|im_start|>assistant:" == form.write(said)
    assert [tokenizer.token_to_id("<|im_end|>")] == form.stop


def test_without_a_template_special_tokens_tell_of_chatml(tmp_path: Path) -> None:
    """Which ends a turn with a token, not with a text."""
    tokenizer = Tokenizer.from_file(
        str(chat_model(tmp_path / "model", template=None) / "tokenizer.json")
    )
    form = chat_format(tokenizer, {"tokenizer_config.json": "no json"})
    assert "ChatML" == form.name
    said = [{"role": "user", "content": "hi"}]
    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" == form.write(said)
    assert [tokenizer.token_to_id("<|im_end|>")] == form.stop


# On a terminal


class Terminal:
    """A chat at a real terminal."""

    def __init__(self, cli: Cli) -> None:
        self.ours, theirs = pty.openpty()
        self.child = cli.process(
            *("chat", *OPTIONS, "--backend", cli.backend),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = b""

    def read_until(self, mark: bytes) -> None:
        while mark not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], 60)
            assert ready, self.seen
            self.seen += os.read(self.ours, 1 << 16)
        self.seen = self.seen.partition(mark)[2]

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def end(self) -> tuple[int, bytes]:
        while True:
            try:
                part = os.read(self.ours, 1 << 16)
            except OSError:  # Linux's end of a terminal that nobody holds
                break
            self.seen += part
        os.close(self.ours)
        return self.child.wait(60), self.seen


@pytest.fixture
def terminal(cli: Cli, service: FakeService) -> Terminal:
    cli.env["TERM"] = "dumb"
    assert service.ledger.entries == []
    return Terminal(cli)


def test_ctrl_d_ends_a_talk_cleanly(terminal: Terminal, service: FakeService) -> None:
    """After an answer; the code is 0 and the session was a success."""
    terminal.read_until(b"> ")
    terminal.type(b"hello\n")
    terminal.read_until(b"> ")
    terminal.type(b"\x04")
    code, seen = terminal.end()
    assert 0 == code, seen
    assert b"Traceback" not in seen
    assert ["success"] == [one.ended for one in service.state.sessions.values()]


def test_ctrl_c_at_the_prompt_ends_cleanly(terminal: Terminal, service: FakeService) -> None:
    """With the code of an interruption; the session is still ended in order."""
    terminal.read_until(b"> ")
    interrupt(terminal.child)
    code, seen = terminal.end()
    assert 130 == code, seen
    assert b"Traceback" not in seen
    assert ["success"] == [one.ended for one in service.state.sessions.values()]


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(
    terminal: Terminal, service: FakeService
) -> None:
    """The server is told that nobody waits; the question is taken back."""
    terminal.read_until(b"> ")
    service.pause()
    terminal.type(b"hello\n")
    wait_for(lambda: service.ledger.samples)
    os.kill(terminal.child.pid, signal.SIGINT)
    terminal.read_until(b"(stopped)")
    service.state.pause = None
    terminal.read_until(b"> ")
    terminal.type(b"/exit\n")
    code, seen = terminal.end()
    assert 0 == code, seen
    assert b"Traceback" not in seen
