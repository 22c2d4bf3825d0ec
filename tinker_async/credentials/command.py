"""`TINKER_CREDENTIAL_CMD`: a program of the user's that prints a credential.

The rule: what it writes is never shown, neither its output nor its complaints, and it gets a
bounded time.
"""

from __future__ import annotations

import subprocess
import time

import anyio

from tinker_async.credentials.secret import Secret
from tinker_async.credentials.tokens import expiry_of, is_token
from tinker_async.errors import CredentialError

COMMAND_LIMIT_S = 30.0
"""The time that the command may take."""
_HINT = "run TINKER_CREDENTIAL_CMD by hand: it has to print a key or token, and nothing else"
_LONGEST = 64 << 10


async def credential_from_command(command: Secret, *, limit_s: float = COMMAND_LIMIT_S) -> Secret:
    """Run the command in a shell and return what it prints.

    Cancelling kills it.

    Raises:
        CredentialError: It failed, took longer than `limit_s` seconds, or printed nothing that
            can be a credential, or a token that has expired.
    """
    done: subprocess.CompletedProcess[bytes] | None = None
    with anyio.move_on_after(limit_s):
        try:
            done = await anyio.run_process(
                command.reveal(), check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            # From None: the error may name the command, and that may hold a password.
            raise CredentialError(
                f"the credential command cannot be started: {error.strerror}", hint=_HINT
            ) from None
    if done is None:
        raise CredentialError(f"the credential command took longer than {limit_s:g} s", hint=_HINT)
    if done.returncode != 0:
        raise CredentialError(
            f"the credential command ended with status {done.returncode}", hint=_HINT
        )
    return _checked(done.stdout)


def _checked(output: bytes) -> Secret:
    text = output[: _LONGEST + 1].decode("utf-8", "replace").strip()
    if not text:
        raise CredentialError("the credential command printed nothing", hint=_HINT)
    if len(text) > _LONGEST or not (text.isascii() and text.isprintable()) or " " in text:
        raise CredentialError(
            "the credential command printed what cannot be a credential", hint=_HINT
        )
    if is_token(text):
        ends = expiry_of(text)
        if ends is not None and time.time() >= ends:
            raise CredentialError(
                "the credential command printed a token that has expired", hint=_HINT
            )
    return Secret(text)
