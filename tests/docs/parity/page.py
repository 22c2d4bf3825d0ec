"""The parts of the page docs/reference/parity.md, made from the rows."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from docs.parity import official, ours, rows
from docs.parity.rows import Row

_LABELS = {"cli": "tinker-async {}", "env": "{}"}


def parts() -> dict[str, str]:
    """Return the text of each generated part, by name."""
    values = official.objects()
    classes = {name: value for name, value in values.items() if inspect.isclass(value)}
    errors = {name for name, value in classes.items() if issubclass(value, BaseException)}
    clients = {name for name in classes if name.endswith(("Client", "Future"))} - errors
    return {
        "counts": _counts(),
        "clients": _classes(sorted(clients)),
        "types": _classes(sorted({*classes} - errors - clients)),
        "errors": _classes(sorted(errors)),
        "values": _table(
            row for row in rows.names() if row.name in values and row.name not in classes
        ),
        "endpoints": _endpoints(),
        "variables": _table(rows.variables()),
        "commands": _table(rows.commands()),
        "tinkex": "\n".join(
            f"### {section}\n\n{_table(found, 'Tinkex')}" for section, found in rows.tinkex()
        ),
    }


def _counts() -> str:
    every = [*rows.names(), *rows.endpoints(), *rows.variables(), *rows.commands()]
    of_tinkex = [row for _, found in rows.tinkex() for row in found]
    lines = [
        f"Of {len(found):,} names of {whose}, {sum(bool(row.counterparts) for row in found):,} "
        "have a counterpart; for the others the table says why not."
        for found, whose in ((every, "the official package 0.38.0"), (of_tinkex, "Tinkex 0.4.0"))
    ]
    return "\n".join(lines) + "\n"


def _table(found: Iterable[Row], whose: str = "Official") -> str:
    lines = [f"| `{row.name}` | {_here(row)} |" for row in found]
    return f"| {whose} | Here |\n|---|---|\n" + "\n".join(lines) + "\n"


def _here(row: Row) -> str:
    shown = ", ".join(f"`{_label(one)}`" for one in row.counterparts)
    if not shown:
        return f"none: {row.note}"
    return f"{shown}: {row.note}" if row.note else shown


def _label(counterpart: str) -> str:
    kind, _, rest = counterpart.partition(": ")
    return _LABELS.get(kind, "{}").format(rest) if rest else counterpart


# Classes: what needs no words takes one line


def _classes(names: Iterable[str]) -> str:
    by_name = {row.name: row for row in rows.names()}
    lines = ["| Official | Here |", "|---|---|"]
    for name in names:
        lines.append(f"| **`{name}`** | {_here(by_name[name])} |")
        members = [by_name[f"{name}.{one}"] for one in official.members(official.objects()[name])]
        lines += _members(name, by_name[name], members)
    return "\n".join(lines) + "\n"


def _members(name: str, cls: Row, members: list[Row]) -> list[str]:
    same = [row for row in members if _is_same(row, cls)]
    twins = [row for row in members if row not in same and _is_twin(row, members)]
    tags = [row for row in members if row.note == rows.TAG]
    gone = [row for row in members if not cls.counterparts and row.note == cls.note]
    others = [row for row in members if row not in (*same, *twins, *tags, *gone)]
    return [
        *_line(same, "the same names" if len(same) > 1 else "the same name"),
        *_line(twins, "as without `_async`"),
        *(f"| `.{_last(row)}` | {_here(row)} |" for row in others),
        *_line(tags, f"none: {rows.TAG}"),
        *_line(gone, "none, for the same reason"),
    ]


def _is_same(row: Row, cls: Row) -> bool:
    return not row.note and row.counterparts in {
        (f"{home}.{_last(row)}",) for home in cls.counterparts
    }


def _is_twin(row: Row, members: list[Row]) -> bool:
    plain = row.name.removesuffix("_async")
    return plain != row.name and any(one.name == plain for one in members)


def _line(found: list[Row], text: str) -> list[str]:
    names = ", ".join(f"`.{_last(row)}`" for row in found)
    return [f"| {names} | {text} |"] if found else []


def _last(row: Row) -> str:
    return row.name.rpartition(".")[2]


def _endpoints() -> str:
    lines = ["| Endpoint (below `/api/v1`) | Our client asks it | The embedded server has it |"]
    lines.append("|---|---|---|")
    for row in rows.endpoints():
        asked = "yes" if row.name in ours.client_endpoints() else f"no: {row.note}"
        served = "yes" if row.name in ours.server_endpoints() else f"no: {row.note}"
        lines.append(f"| `{row.name}` | {asked} | {served} |")
    return "\n".join(lines) + "\n"
