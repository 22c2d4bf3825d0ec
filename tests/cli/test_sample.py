"""`sample`: prompts from the command line and from files, results as they come, failures one by one."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer

from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from pathlib import Path

    from cli.conftest import Cli

OPTIONS = ("--max-tokens", "4", "--seed", "7")


def lines(cli: Cli, *arguments: str, exit_code: int = 0, **options: Any) -> list[dict[str, Any]]:
    """Run `sample --json`; each line is an object."""
    result = cli.ask("sample", *arguments, *OPTIONS, "--json", **options)
    assert exit_code == result.exit_code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# One prompt


def test_the_text_of_one_sample_is_all_that_is_printed(cli: Cli) -> None:
    """So that it can be given to the next program; the same seed gives the same text."""
    first = cli.ask("sample", "hello", *OPTIONS)
    [sample] = lines(cli, "hello")

    assert 0 == first.exit_code, first.output
    assert (sample["text"] + "\n").encode() == first.stdout_bytes
    assert ("length", 4) == (sample["stop_reason"], len(sample["tokens"]))
    assert all(value <= 0 for value in sample["logprobs"])
    assert "" == first.stderr


def test_several_samples_of_one_prompt_are_told_apart(cli: Cli) -> None:
    """By number, and they differ."""
    found = lines(cli, "hello", "-n", "3")
    assert [(0, 0), (0, 1), (0, 2)] == [(one["prompt"], one["sample"]) for one in found]
    assert len({tuple(one["tokens"]) for one in found}) > 1
    text = cli.ask("sample", "hello", "-n", "2", *OPTIONS).stdout
    assert text.startswith("[0.0 length]\n")
    assert "\n[0.1 length]\n" in text


def test_a_prompt_can_come_from_stdin(cli: Cli) -> None:
    """All of it, lines and all; token for token what the argument gives."""
    assert lines(cli, "a\nb") == lines(cli, "-", input="a\nb")


def test_a_checkpoint_is_sampled_from_by_its_path(cli: Cli, service: FakeService) -> None:
    """And what is no path is told before anything is drawn."""
    result = cli.ask("sample", "x", "--model-path", "nonsense")
    assert 2 == result.exit_code
    assert "tinker://" in result.stderr
    missing = "tinker://s-1:train:0/sampler_weights/none"
    assert 0 != cli.ask("sample", "x", "--model-path", missing).exit_code
    assert [] == service.ledger.samples


# Files


def test_each_line_of_a_text_file_is_a_prompt(cli: Cli, tmp_path: Path) -> None:
    """Empty lines are none; results say which they belong to."""
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n  two\r\nthree", encoding="utf-8")
    found = lines(cli, "--prompts", str(file))

    assert {0, 1, 2} == {one["prompt"] for one in found}
    [second] = lines(cli, "  two")
    assert second["tokens"] == next(one["tokens"] for one in found if one["prompt"] == 1)


@pytest.mark.parametrize("name", ["prompts.jsonl", "-"])
def test_json_lines_are_texts_tokens_and_fields_that_come_back(
    name: str, cli: Cli, tmp_path: Path
) -> None:
    """From a file, or from standard input."""
    prompts = '"hello"\n{"prompt": "hello", "id": "b"}\n{"tokens": [104, 105], "sample": "mine"}\n'
    file = tmp_path / "prompts.jsonl"
    file.write_text(prompts, encoding="utf-8")
    where = str(file) if name != "-" else "-"
    options = ["--jsonl"] if name == "-" else []
    found = lines(cli, "--prompts", where, *options, input=prompts)

    by_prompt = {one["prompt"]: one for one in found}
    assert by_prompt[0]["tokens"] == by_prompt[1]["tokens"]
    assert "b" == by_prompt[1]["id"]
    assert 0 == by_prompt[2]["sample"]  # ours wins
    [same] = lines(cli, "hi")
    assert same["tokens"] == by_prompt[2]["tokens"]


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"tokens": []}', '{"tokens": [-1]}', '{"prompt": 1}', "3"]
)
def test_a_wrong_line_is_told_by_its_number_before_anything_is_sent(
    line: str, cli: Cli, tmp_path: Path, service: FakeService
) -> None:
    """With the right form."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"good"\n\n{line}\n', encoding="utf-8")
    result = cli.ask("sample", "--prompts", str(file))

    assert 2 == result.exit_code
    assert "line 3" in result.stderr
    assert '{"prompt": "text"}' in result.stderr
    assert [] == service.ledger.entries


def test_one_that_fails_does_not_stop_the_others(
    cli: Cli, tmp_path: Path, service: FakeService
) -> None:
    """It is told on stderr and in its place; the exit code is that of its kind."""
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n", encoding="utf-8")
    service.faults.on("asample", faults.Status(status=400, detail="not this"), occurrence=2)
    result = cli.ask("sample", "--prompts", str(file), "--in-flight", "1", "--json", *OPTIONS)

    assert 2 == result.exit_code
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [0, 1, 2] == [one["prompt"] for one in found]
    assert "BadRequestError" == found[1]["error"]["type"]
    assert "error: prompt 1: " in result.stderr
    assert "not this" in result.stderr


def test_results_are_printed_as_they_come(cli: Cli, service: FakeService) -> None:
    """The first is there while the second prompt has not even been written: nothing is held back."""
    with cli.process(
        *("sample", "--prompts", "-", "--in-flight", "1", "--json", "--max-tokens", "2"),
        *("--backend", cli.backend),
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("one\ntwo\n")
        child.stdin.close()
        first, second = child.stdout.readline(), child.stdout.readline()
        assert [0, 1] == [json.loads(line)["prompt"] for line in (first, second)]
    assert 0 == child.returncode
    assert 2 == len(service.ledger.samples)


# Models and tokenizers


def test_of_several_models_one_must_be_named(cli: Cli, serve: Any) -> None:
    """Which there are is said; naming one is enough."""
    with serve(FakeService(base_models=["one", "two"], api_key=cli.env["TINKER_API_KEY"])) as url:
        cli.use(url)
        result = cli.ask("sample", "x")
        assert 2 == result.exit_code
        assert "one, two" in result.stderr
        assert lines(cli, "x", "--base-model", "two")


def test_both_kinds_of_weights_are_wrong_usage(cli: Cli, service: FakeService) -> None:
    """Like no prompt, and two."""
    for arguments in (
        ["x", "--base-model", "toy", "--model-path", "tinker://a/b/c"],
        [],
        ["x", "--prompts", "-"],
    ):
        assert 2 == cli.ask("sample", *arguments).exit_code
    assert [] == service.ledger.entries


def test_token_ids_need_no_tokenizer(cli: Cli, tmp_path: Path, service: FakeService) -> None:
    """Neither of the server nor of the hub."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"tokens": [104, 105]}\n', encoding="utf-8")
    result = cli.ask("sample", "--prompts", str(file), "--ids", *OPTIONS)

    assert 0 == result.exit_code, result.output
    assert 4 == len(result.stdout.splitlines()[1].split())
    assert not [one for one in service.ledger.entries if one.endpoint == "tokenizer"]
    refused = cli.ask("sample", "text", "--ids")
    assert 2 == refused.exit_code
    assert "--ids" in refused.stderr


def test_a_tokenizer_can_be_named(cli: Cli, tmp_path: Path) -> None:
    """A folder with tokenizer.json; what is none is told with the option's name."""
    result = cli.ask("sample", "x", "--tokenizer", str(tmp_path))
    assert 2 == result.exit_code
    assert "tokenizer.json" in result.stderr
    folder = chat_model(tmp_path / "model", template=None)
    assert lines(cli, "hello", "--tokenizer", str(folder))


# Chat


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def chat_model(folder: Path, *, template: str | None) -> Path:
    """Write the files of a model whose tokens are bytes and ChatML's two."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.from_str(BYTES)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def byte_tokenizer() -> str:
    from tinker_async.local.tiny import byte_tokenizer as made

    text: str = made().to_str()
    return text


BYTES = byte_tokenizer()


def test_a_question_is_asked_in_the_models_own_format(cli: Cli, tmp_path: Path) -> None:
    """What the server sees is the template's text, with the special tokens as one token each."""
    folder = chat_model(tmp_path / "model", template=TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (
        "<|im_start|>system: be brief<|im_end|><|im_start|>user: hi<|im_end|><|im_start|>assistant:"
    )
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert 3 == [tokenizer.id_to_token(token) for token in tokens].count("<|im_start|>")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"tokens": tokens}), encoding="utf-8")

    asked = lines(cli, "hi", "--system", "be brief", "--tokenizer", str(folder))
    given = lines(cli, "--prompts", str(prompts), "--tokenizer", str(folder))
    assert given[0]["tokens"] == asked[0]["tokens"]


def test_a_broken_template_is_an_error_with_its_reason(cli: Cli, tmp_path: Path) -> None:
    """Of the settings, since that is what it is."""
    for number, template in enumerate(
        ("{% for %}", "{{ raise_exception('no system') }}", "{{ ''.__class__.__mro__ }}{{ 1/0 }}")
    ):
        folder = chat_model(tmp_path / str(number), template=template)
        result = cli.ask("sample", "hi", "--chat", "--tokenizer", str(folder))
        assert 2 == result.exit_code
        assert "chat template fails" in result.stderr
        assert "Traceback" not in result.output


# Ctrl-C


def test_ctrl_c_ends_with_its_code_and_gives_the_sample_up(cli: Cli, service: FakeService) -> None:
    """130, nothing on stdout; the session is told to be interrupted."""
    service.pause()
    with cli.process("sample", "x", "--backend", cli.backend, stderr=-1) as child:
        wait_for(lambda: service.ledger.samples)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (130, "") == (child.returncode, out)
    assert "Aborted!" in err
    assert "Traceback" not in err
    wait_for(lambda: [one.ended for one in service.state.sessions.values()] == ["interrupted"])


def wait_for(condition: Any, bound_s: float = 30.0) -> None:
    """Wait until a thread's server has seen something."""
    import threading
    import time

    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)
