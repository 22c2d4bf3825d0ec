"""What programs do with a session: each calls a part of what the client offers."""

from __future__ import annotations

from typing import Any

import anyio

from tinker_async import AdamParams, SamplerHandle, SamplingParams, Session, SessionSearchRequest
from tinker_async.background.roll import FEW_ASKING
from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput

PROMPT = ModelInput.from_ints([1, 2, 3])
DATUM = Datum(PROMPT, {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]})
PARAMS = SamplingParams(max_tokens=2, seed=1)
POLLED = FEW_ASKING + 8
"""Samples at once, of which some wait for the poller."""


async def enter(_session: Session) -> None:
    """Open and end a session."""


async def sample(session: Session) -> None:
    """Draw one sample."""
    sampler = await session.create_sampling_client(base_model="m")
    await sampler.sample(PROMPT, PARAMS)


async def train(session: Session) -> None:
    """Make one step."""
    trainer = await session.create_lora_training_client("m", rank=4)
    step = trainer.forward_backward([DATUM], "cross_entropy")
    trainer.optim_step(AdamParams())
    await step


async def save(session: Session) -> None:
    """Save, and load what was saved."""
    trainer = await session.create_lora_training_client("m", rank=4)
    await trainer.save_state("a")
    await trainer.save_weights_for_sampler("a")
    await trainer.load_state("tinker://s/weights/a")


async def browse(session: Session) -> None:
    """List runs and checkpoints."""
    rest = session.rest
    [run async for run in rest.list_training_runs()]
    [checkpoint async for checkpoint in rest.list_checkpoints()]
    await rest.get_training_run("run")


async def ask(session: Session) -> None:
    """Ask what the server has."""
    await session.get_server_capabilities()
    sampler = await session.create_sampling_client(base_model="m")
    await sampler.get_base_model()
    await session.rest.get_sampler("s:sample:0")


async def tokenizer(session: Session) -> None:
    """Fetch a model's tokenizer."""
    trainer = await session.create_lora_training_client("m", rank=4)
    await trainer.get_info()
    sampler = await session.create_sampling_client(base_model="m")
    await sampler.get_tokenizer()


async def look(session: Session) -> None:
    """List, search and manage sessions."""
    rest = session.rest
    [one async for one in rest.list_sessions()]
    [one async for one in rest.search_sessions(SessionSearchRequest())]
    await rest.get_session("s")
    await rest.export_session_trace("s", timeout=2.0)
    await rest.assign_session_project("s", "p")
    await rest.finish_session("s")


async def account(session: Session) -> None:
    """Ask for what is about the account."""
    rest = session.rest
    await rest.healthz()
    await rest.whoami()
    await rest.get_billing_usage("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z")
    await rest.get_current_checkpoint_storage_usage()
    await rest.get_audit_log()


async def manage(session: Session) -> None:
    """Manage checkpoints."""
    rest = session.rest
    await rest.copy_weights("tinker://run/weights/a", "p")
    await rest.get_external_weights_urls("tinker://run/external_weights/a")
    await rest.publish_checkpoint_from_tinker_path("tinker://run/weights/a")
    await rest.set_checkpoint_ttl_from_tinker_path("tinker://run/weights/a", 3600)
    await rest.get_weights_info_by_tinker_path("tinker://run/weights/a")
    await rest.delete_checkpoint("run", "weights/a")


async def export(session: Session) -> None:
    """Save for other programs."""
    trainer = await session.create_lora_training_client("m", rank=4)
    await trainer.save_weights_external("a")


async def poll(session: Session) -> None:
    """Draw many samples, which the session poller tells of."""
    sampler = await session.create_sampling_client(base_model="m")
    async with anyio.create_task_group() as tasks:
        for _ in range(POLLED):
            tasks.start_soon(sampler.sample, PROMPT, PARAMS)


async def join(session: Session) -> None:
    """Draw with the sampler of another process."""
    handle = SamplerHandle(
        base_url=session.server.base_url, sampling_session_id="s:sample:0", base_model=None
    )
    sampler = await session.create_sampling_client_from_handle(handle)
    await sampler.sample(PROMPT, PARAMS)


async def tell(session: Session) -> None:
    """Do what telemetry tells of."""
    await session.get_server_capabilities()


async def upload(session: Session) -> None:
    """Make a custom loss on the server."""

    def loss(logprobs: Any, weights: Any) -> Any:
        return -(logprobs * weights).sum(), {}

    await session.create_custom_loss(loss, {"logprobs": 1, "weights": 1})


async def exchange(session: Session) -> None:
    """Call with a token in place of the key."""
    await session.get_server_capabilities()


PROGRAMS = {
    program.__name__: program
    for program in (
        enter,
        sample,
        train,
        save,
        browse,
        ask,
        tokenizer,
        look,
        account,
        manage,
        export,
        poll,
        join,
        tell,
        upload,
        exchange,
    )
}
