"""Reading the project's Markdown: fenced blocks with their lines, and generated parts."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$", re.DOTALL | re.MULTILINE
)
_GENERATED = re.compile(
    r"<!-- generated: (?P<name>[\w-]+) -->\n(?P<text>.*?)<!-- end of generated -->", re.DOTALL
)


class Block(msgspec.Struct, frozen=True):
    """One fenced block. `line` is where its text begins, from 1."""

    path: Path
    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """README, CONTRIBUTING and everything below `docs/`."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, *languages: str) -> list[Block]:
    """Return the fenced blocks of these languages, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, match["language"], match["text"], text.count("\n", 0, match.start("text")) + 1)
        for match in _FENCE.finditer(text)
        if match["language"] in languages
    ]


def generated_parts(path: Path) -> dict[str, str]:
    """Return the text between the markers, by name."""
    text = path.read_text(encoding="utf-8")
    return {match["name"]: match["text"] for match in _GENERATED.finditer(text)}


def replace_generated(path: Path, parts: dict[str, str]) -> None:
    """Write new text between the markers."""

    def new(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n{parts[name]}<!-- end of generated -->"

    text = path.read_text(encoding="utf-8")
    path.write_text(_GENERATED.sub(new, text), encoding="utf-8")
