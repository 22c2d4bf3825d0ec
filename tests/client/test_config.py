"""Keys and URLs are checked before anything is sent, and never printed."""

from __future__ import annotations

import pytest

from tinker_async import ConfigError, Session
from tinker_async.config import DEFAULT_BASE_URL, resolve_config


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x", "http://", "https://a:99999", "https://h/?q=1"]
)
def test_a_malformed_url_is_refused(url: str) -> None:
    """The message shows the right form; an empty one means the default."""
    if not url:
        assert resolve_config(url, "tml-x", environ={}).base_url == DEFAULT_BASE_URL
        return
    with pytest.raises(ConfigError, match=r"https://host"):
        resolve_config(url, "tml-x", environ={})


def test_argument_beats_environment_beats_default() -> None:
    """In that order, for both settings; the trailing slash goes."""
    env = {"TINKER_BASE_URL": "https://env/", "TINKER_API_KEY": "tml-env"}

    config = resolve_config(environ=env)
    assert (config.base_url, config.api_key.reveal()) == ("https://env", "tml-env")
    config = resolve_config("https://arg/base/", "tml-arg", environ=env)
    assert (
        config.base_url,
        config.base_path,
        config.api_key.reveal(),
    ) == ("https://arg/base", "/base", "tml-arg")


@pytest.mark.parametrize("key", ["", "   ", "tml-ä", "tml- x", "sk-123"])
def test_no_key_or_a_malformed_one_is_refused(key: str) -> None:
    """Before any request, saying how to give one, without repeating the key."""
    with pytest.raises(ConfigError, match="TINKER_API_KEY") as caught:
        resolve_config(None, key, environ={})

    assert not key.strip() or key.strip() not in str(caught.value)


def test_other_servers_take_other_keys() -> None:
    """Only the Tinker service insists on the prefix."""
    assert resolve_config("http://h", "any", environ={}).api_key.reveal() == "any"


def test_the_key_is_in_no_repr() -> None:
    """Neither the config nor the session prints it."""
    config = resolve_config("http://h", "tml-secret", environ={})

    assert "secret" not in repr(config) + str(config.api_key)
    assert "secret" not in repr(Session("http://h", "tml-secret"))
