"""Fetching one file that the server names by its address.

The rule: the file appears whole or not at all, and no credential of ours goes to its host.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

from tinker_async.cli.connection import Connection
from tinker_async.config import resolve_config
from tinker_async.download.disk import disk_errors
from tinker_async.download.fetch import Answer, Reach, open_fetcher, refusal_of


def file_of(session_id: str) -> str:
    """Return the name of a trace's file, which every system takes."""
    return re.sub(r"[^\w.-]", "_", session_id, flags=re.ASCII) + ".pftrace"


async def fetch_file(url: str, target: Path, connection: Connection) -> int:
    """Fetch what is at an address into a file; return its bytes.

    Raises:
        APIStatusError: The host refuses.
        TransportError: It cannot be reached, or breaks off.
        DownloadError: The address is not one to go to.
        DiskError: The file cannot be written.
    """
    from tinker_async.transport.trust import trusting_context  # noqa: PLC0415  # loads ssl

    config = resolve_config(connection.base_url, ca_bundle=connection.ca_bundle)
    reach = Reach(
        proxies=config.proxies,
        make_ssl_context=partial(trusting_context, config.ca_bundle),
        plain_allowed=config.base_url.startswith("http:"),
    )
    url = urljoin(config.base_url, url) if url.startswith("/") else url
    async with open_fetcher(reach, max_connections=1) as fetcher, fetcher.get(url, {}) as answer:
        if answer.status != 200:
            raise await refusal_of(answer, target.name)
        return await _write(answer, target)


async def _write(answer: Answer, target: Path) -> int:
    partial_file = target.with_name(f".{target.name}.partial")
    size_bytes = 0
    with disk_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
        file = partial_file.open("wb")
    try:
        while block := await answer.next_block():
            with disk_errors():
                file.write(block)  # a few megabytes, in a program that does nothing else
            size_bytes += len(block)
        with disk_errors():
            file.close()
            partial_file.replace(target)
    finally:
        file.close()
        partial_file.unlink(missing_ok=True)
    return size_bytes
