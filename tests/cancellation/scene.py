"""What a cancelled call finds around it, and what has to be so again when it has gone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from cancellation.cut import Cut

from tinker_async import (
    CheckpointPolicy,
    Datum,
    DurableTrainingClient,
    ModelInput,
    RecoveryPolicy,
    RetryPolicy,
    SamplingClient,
    SamplingParams,
    Session,
    TrainingClient,
)
from tinker_async.testing import FakeService
from tinker_async.wire.messages import ClientConfigResponse

TEXT = list(b"cancel")
PROMPT = ModelInput.from_ints(TEXT[:2])
DATUM = Datum(ModelInput.from_ints(TEXT[:-1]), {"target_tokens": TEXT[1:]})
PARAMS = SamplingParams(max_tokens=3, seed=5, stop=[])
QUICK = RetryPolicy(base_s=0.001, max_s=0.002)
WAYS = ("in process", "HTTP/1.1", "HTTP/2")
TWO_WAYS = ("in process", "HTTP/2")
"""For calls whose requests are sent as others' are, which are made in all three."""
BY_EPOCH = CheckpointPolicy(strategy="epoch", on_exit=False)
PATIENT = RecoveryPolicy(
    enabled=True, backoff_s=0.001, max_backoff_s=0.002, poll_interval_s=1000, fallback=0
)


class Scene:
    """An open session with one of everything, and the cut that is being made."""

    def __init__(
        self, service: FakeService, session: Session, trainer: TrainingClient, path: str
    ) -> None:
        self.service = service
        self.session = session
        self.trainer = trainer
        self.path = path
        """Of a training checkpoint."""
        self.sampler: SamplingClient
        self.counted: SamplingClient
        """A sampler whose `sample` counts as the call's own, in whatever task it runs."""
        self.sampler_path: str
        self.durable: DurableTrainingClient
        """Where the row asks for one."""
        self.folder: Path
        """For a durable training that the row begins: the same where a call is made again."""
        self.cut: Cut | None = None
        self._numbers = itertools.count()

    def new_name(self) -> str:
        """A checkpoint's name that was not used."""
        return f"c{next(self._numbers)}"

    def loss_number(self) -> int:
        """A number that makes a custom loss another one."""
        return next(self._numbers)

    def count_samples_of(self, sampler: SamplingClient) -> SamplingClient:
        """Let the waits of its samples count, whose tasks the call starts itself."""
        plain = sampler.sample

        def sample(*arguments: Any, **options: Any) -> Awaitable[Any]:
            work = plain(*arguments, **options)
            return work if self.cut is None else self.cut.drive(work)

        sampler.sample = sample  # type: ignore[method-assign,assignment]  # the same, but counted
        return sampler

    def at_rest(self) -> bool:
        """Whether the client holds nothing and does nothing."""
        found = self.session.statistics()
        taken = (found.sampling.samples, found.sampling.dispatch_bytes)
        return (
            not any(found.transport.in_flight.values())
            and not any(found.transport.waiting.values())
            and not any(one.in_use or one.waiting for one in taken)
            and not found.sampling.cancels
            and not found.sampling.paused_samples
            and not any(lane.unsettled or lane.queued for lane in found.lanes.values())
            and not any(name.endswith(("_tell", "Saver._finish")) for name in tasks_of_the_client())
        )

    def sockets_agree(self) -> bool:
        """Whether the server has no connection that the client does not know."""
        known = self.session.statistics().transport.connections
        return self.service.ledger.open_connections in (known, 0)


def tasks_of_the_client() -> Counter[str]:
    """Names of the tasks that run now, without those of the fake server."""
    names = Counter(task.name or "" for task in anyio.get_running_tasks())
    return Counter({name: n for name, n in names.items() if ".testing." not in name})


async def until(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait until something holds, and still does after some turns of the loop."""
    with anyio.move_on_after(5):
        while True:
            for _ in range(4):
                await anyio.lowlevel.checkpoint()
            if holds():
                await anyio.lowlevel.checkpoint()
                if holds():
                    return
            await anyio.sleep(0.0005)
    raise AssertionError(f"did not come to rest: {what()}")


@asynccontextmanager
async def opened(way: str, service: FakeService, **options: Any) -> AsyncGenerator[Session]:
    """A session with a service, one of three ways."""
    options = {"retry": QUICK, **options}
    async with AsyncExitStack() as stack:
        if way == "in process":
            session = service.session(**options)
        else:
            url = await stack.enter_async_context(service.serve())
            session = Session(url, service.api_key, http2=way == "HTTP/2", **options)
        async with session:
            yield session
        await until(lambda: not service.ledger.open_connections, lambda: service.ledger)


@asynccontextmanager
async def scene(way: str, *, polls_together: bool = False, **options: Any) -> AsyncGenerator[Scene]:
    """A session with a service of its own, a trainer, a sampler and two checkpoints."""
    config = ClientConfigResponse(
        parallel_fwdbwd_chunks=True,
        custom_loss_server_side=True,
        sample_use_retrieve_futures=polls_together,
    )
    service = FakeService(hold_s=0.01, config=config)
    async with opened(way, service, **options) as session:
        trainer = await session.create_lora_training_client("toy", rank=8)
        saved = await trainer.save_state("start")
        made = Scene(service, session, trainer, saved.path)
        made.sampler_path = (await trainer.save_weights_for_sampler("start")).path
        made.sampler = await session.create_sampling_client(base_model="toy")
        made.counted = made.count_samples_of(await session.create_sampling_client(base_model="toy"))
        yield made


@asynccontextmanager
async def durable_scene(way: str, folder: Path) -> AsyncGenerator[Scene]:
    """A scene with a durable training, whose checkpoints are of epochs."""
    async with (
        scene(way) as made,
        made.session.durable_training(
            folder / "scene",
            base_model="toy",
            seed=7,
            rank=8,
            checkpoints=BY_EPOCH,
            recovery=PATIENT,
        ) as trainer,
    ):
        made.durable = trainer
        yield made
