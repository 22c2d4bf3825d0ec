"""Which file names are accepted, and that the accepted ones are harmless."""

from __future__ import annotations

import ntpath
import posixpath
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_async.download.names import Names, safe_parts
from tinker_async.errors import UnsafeDownloadError

GOOD = {
    "adapter_model.safetensors": ("adapter_model.safetensors",),
    "./adapter_config.json": ("adapter_config.json",),
    "sub//folder/./model-00001-of-00002.safetensors": (
        "sub",
        "folder",
        "model-00001-of-00002.safetensors",
    ),
    ".hidden": (".hidden",),
    "Gewichte-für-größere-Modelle.bin": ("Gewichte-für-größere-Modelle.bin",),
    "重み.bin": ("重み.bin",),
    "final.age": ("final.age",),
    "x" * 255: ("x" * 255,),
    "console.log": ("console.log",),
}

BAD = [
    "/etc/passwd",
    "//server/share",
    "..",
    "../x",
    "a/../x",
    "a/..",
    "a\\..\\x",
    "C:\\x",
    "C:x",
    "file.txt:stream",
    "nul\0byte",
    "new\nline",
    "bell\x07",
    "\u2025",  # two dot leader: NFKC makes ".." of it
    "\u2024\u2024/x",  # one dot leaders
    "a\uff0fb",  # fullwidth solidus
    "a\uff3cb",  # fullwidth reverse solidus
    "model\u202egnp.bin",  # turns the rest around
    "zero\u200bwidth",
    "\ufeffmark",
    "lone\ud800surrogate",
    "private\ue000use",
    "line\u2028separator",
    "trailing.",
    "trailing ",
    " leading",
    "x/NUL",
    "con.txt",
    "COM1",
    "lpt¹",
    "x" * 256,
    "ü" * 128,
    "/".join(["d"] * 17),
    "/".join(["abcdefgh" * 8] * 16),
    "what?",
    "a|b",
    "a\u00a0b",
    "\u1680",
    "a\u3000b",
]


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_plain_relative_names_are_accepted(name: str) -> None:
    """Hidden ones and other scripts too; `.` and doubled slashes say nothing."""
    assert GOOD[name] == safe_parts(name)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_names_that_leave_hide_or_mean_something_are_refused(name: str) -> None:
    """With an error that can be printed anywhere, whatever the name."""
    with pytest.raises(UnsafeDownloadError) as caught:
        Names(max_files=10).add_file(name)

    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(caught.value.member) < 1000


TRICKY = st.text(
    st.one_of(
        st.sampled_from("./\\:~ \0\n\u2024\u2025\u202e\u200b\uff0f\uff0e\uff3cabCON1é"),
        st.characters(),
    ),
    max_size=30,
)


@given(TRICKY)
def test_no_accepted_name_leaves_its_folder_on_any_system(name: str) -> None:
    """As Posix and as Windows join it, and in each normal form that a file system may use."""
    try:
        parts = Names(max_files=10).add_file(name)
    except UnsafeDownloadError:
        return
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        spelt = "/".join(unicodedata.normalize(form, part) for part in parts)
        assert spelt.split("/").count("..") == 0
        assert len(parts) == len(spelt.split("/"))
        assert posixpath.normpath(posixpath.join("/root", spelt)).startswith("/root/")
        windows = ntpath.normpath(ntpath.join("C:\\root", spelt))
        assert windows.startswith("C:\\root\\")
        assert not ntpath.isreserved(spelt) if hasattr(ntpath, "isreserved") else True
    assert "/".join(parts).isprintable()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.bin", "a.bin"),
        ("a.bin", "./a.bin"),
        ("a.bin", "A.BIN"),
        ("straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("A/b", "a/c"),
        ("\ufb01le", "file"),
    ],
)
def test_two_names_that_some_system_takes_for_one_are_refused(first: str, second: str) -> None:
    """Whichever comes first."""
    for one, two in ((first, second), (second, first)):
        names = Names(max_files=10)
        names.add_file(one)
        with pytest.raises(UnsafeDownloadError):
            names.add_file(two)


def test_a_folder_may_be_named_again_but_not_over_a_file() -> None:
    """As tar programs do."""
    names = Names(max_files=10)
    names.add_folder("a")
    names.add_file("a/b")
    names.add_folder("a/")
    names.add_folder("./")
    with pytest.raises(UnsafeDownloadError):
        names.add_folder("a/b")


def test_the_number_of_names_is_limited() -> None:
    """Folders count."""
    names = Names(max_files=3)
    names.add_file("a")
    names.add_folder("b")
    names.add_file("c")
    with pytest.raises(UnsafeDownloadError, match="more than 3"):
        names.add_file("d")


@pytest.mark.parametrize("name", ["", ".", "./", "a/"])
def test_a_file_needs_a_name_of_its_own(name: str) -> None:
    """Neither none nor a folder's."""
    with pytest.raises(UnsafeDownloadError):
        Names(max_files=10).add_file(name)
