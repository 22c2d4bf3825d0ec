"""Addresses of the web console are those that the official client makes."""

from __future__ import annotations

import pytest

import tinker_async as ta
from tinker_async.data import console_urls

CONSOLE = "https://tinker.thinkingmachines.ai"
PATH = "tinker://s1:train:0/weights/a b"


def test_a_checkpoints_page_names_its_run_and_id() -> None:
    """Quoted, so that a colon or slash is no part of the address."""
    page = f"{CONSOLE}/checkpoints/s1%3Atrain%3A0/weights%2Fa%20b"
    assert page == ta.SaveWeightsResponse(PATH).get_console_url()
    assert page == ta.SaveWeightsForSamplerResponse(PATH).get_console_url()


def test_a_sampler_checkpoint_has_a_page_to_talk_to_it() -> None:
    encoded = "tinker%3A%2F%2Fs1%3Atrain%3A0%2Fweights%2Fa%20b"
    assert (
        f"{CONSOLE}/playground?mode=checkpoint&checkpoint={encoded}"
        == ta.SaveWeightsForSamplerResponse(PATH).get_playground_url()
    )


def test_what_is_no_checkpoint_has_no_page() -> None:
    with pytest.raises(ta.InvalidInputError) as caught:
        ta.SaveWeightsResponse("elsewhere").get_console_url()
    assert "tinker_path" == caught.value.field


def test_the_addresses_are_the_official_ones() -> None:
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    from tinker.lib import console_urls as official

    assert official.session_console_url("s:1") == console_urls.session_page("s:1")
    assert official.training_run_console_url("r:1") == console_urls.training_run_page("r:1")
    assert official.checkpoint_playground_url(PATH) == console_urls.playground_page(PATH)
    assert official.checkpoint_console_url(
        "s1:train:0", "weights/a b"
    ) == console_urls.checkpoint_page(PATH)
