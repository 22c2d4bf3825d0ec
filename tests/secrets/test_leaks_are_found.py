"""The part of pytest that watches for keys: it finds each kind of leak, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

LEAKY = """
import logging, subprocess, sys, warnings
import pytest, structlog
from tinker_async.errors import ConfigError, status_error

KEY = "tml" + "-leaky-key"

def test_stdout():
    print("using", KEY)

def test_stderr_of_a_child():
    code = "import sys; sys.stderr.write('tml' + '-leaky-key')"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_structlog():
    structlog.get_logger("x").debug("connected", headers={"x-api-key": KEY})

def test_logging():
    logging.getLogger("x").warning("the key is %s", KEY)

def test_logging_below_the_level_that_pytest_shows():
    logging.getLogger("x").setLevel(logging.DEBUG)
    logging.getLogger("x").debug("the key is %s", KEY)

def test_warning():
    warnings.warn(f"old key {KEY}", UserWarning)

def test_error_that_is_caught():
    with pytest.raises(ConfigError):
        raise ConfigError(f"{KEY} is malformed")

def test_fact_of_an_error():
    str(status_error(401, endpoint="/p", detail=f"unknown key {KEY}"))

@pytest.fixture
def loud():
    yield
    print(KEY)

def test_fixture(loud):
    pass

def test_clean_1():
    print("keys start with tml-, this one does not")

def test_clean_2():
    sys.stderr.write("API key: tml-made-by-serve\\n")

def test_clean_3():
    ConfigError("no key", hint="keys start with tml-")
"""


def test_each_kind_of_leak_fails_its_test_and_no_other(tmp_path: Path) -> None:
    """Output, children's output, logs, warnings, errors and facts are searched, in xdist's worker."""
    (tmp_path / "test_leaky.py").write_text(LEAKY, encoding="utf-8")
    options = ["-p", "support.leaks", "-p", "xdist", "-n", "1", "-rA", "-q", "-W", "error"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), "test_leaky.py"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = set(re.findall(r"^ERROR test_leaky\.py::(\w+)", run.stdout, re.MULTILINE))
    wanted = set(re.findall(r"^def (test_\w+)", LEAKY, re.MULTILINE))
    assert {name for name in wanted if "clean" not in name} == found, run.stdout
    assert "test_stdout let an API key out" in run.stdout
