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


def test_a_config_cannot_be_changed() -> None:
    """Nor what is in it: whoever has it can rely on it."""
    config = resolve_config("http://h", "tml-secret", headers={"x-token": "abc"}, environ={})

    for name in config.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(config, name, None)
    with pytest.raises(AttributeError):
        config.credential.key = None  # type: ignore[misc]  # that is the point


def test_nothing_that_is_secret_is_printed() -> None:
    """Wherever it was found: key, command, headers, the proxy's password."""
    environ = {
        "TINKER_API_KEY": "tml-hush",
        "TINKER_CREDENTIAL_CMD": "print hush",
        "CLOUDFLARE_ACCESS_CLIENT_ID": "hush-id",
        "CLOUDFLARE_ACCESS_CLIENT_SECRET": "hush-too",
        "HTTPS_PROXY": "http://user:hushhush@proxy:3128",
    }
    config = resolve_config("https://h", headers={"authorization": "hush-hush"}, environ=environ)

    assert config.proxy is not None
    assert "hush" not in f"{config!r} {config} {config.proxy!r} {config.secrets!r}"
    assert {"hush-hush", "hush-too", "hushhush", "tml-hush"} <= {
        one.reveal() for one in config.secrets
    }


@pytest.mark.parametrize("wrong", [5, b"x", object(), {"a": 1}, ["a"]])
@pytest.mark.parametrize(
    "name", ["base_url", "api_key", "project_id", "proxy", "ca_bundle", "telemetry"]
)
def test_settings_of_another_type_are_refused_without_being_shown(name: str, wrong: object) -> None:
    """With the right form."""
    with pytest.raises(ConfigError, match="the form is") as caught:
        resolve_config(**{"base_url": "http://h", "api_key": "tml-x", name: wrong}, environ={})  # type: ignore[arg-type]  # wrong on purpose

    assert name in str(caught.value)
    assert repr(wrong) not in str(caught.value)


@pytest.mark.parametrize("headers", [{5: "x"}, {"x": 5}, {"x": None}, {"x": b"y"}])
def test_headers_are_texts(headers: dict[str, str]) -> None:
    """Names and values."""
    with pytest.raises(ConfigError, match="texts only"):
        resolve_config("http://h", "tml-x", headers=headers, environ={})


@pytest.mark.parametrize("tags", ["night", [5], 5, b"x"])
def test_tags_are_a_list_of_texts(tags: list[str]) -> None:
    """A single text would be one tag for each letter."""
    with pytest.raises(ConfigError, match="tags"):
        resolve_config("http://h", "tml-x", tags=tags, environ={})
