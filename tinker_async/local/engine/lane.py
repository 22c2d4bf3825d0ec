"""The models in training and the snapshots taken of them: how each job on them is done.

The rule: a job that fails leaves models and snapshots as they were, unless it fails with
`ModelLostError`. Ids are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from tinker_async.data.params import LoraConfig
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine import checkpoint, jobs
from tinker_async.local.engine.adapters import BASE, Adapter
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.training import TrainedModel, forward_backward, optim_step

Work: TypeAlias = Generator[None, None, jobs.Result]


class Lane:
    """Carries out every job but `Sample`.

    Args:
        base: The model that all adapters live on.
        micro_batch_tokens: Most padded tokens computed at once in training.
        in_use: Whether a sample still needs the adapter of this name.
    """

    def __init__(
        self, base: BaseModel, *, micro_batch_tokens: int, in_use: Callable[[str], bool]
    ) -> None:
        self._base = base
        self._micro_batch_tokens = micro_batch_tokens
        self._in_use = in_use
        self._models: dict[str, TrainedModel] = {}
        self._snapshots: dict[str, Adapter] = {}
        self._retired: list[Adapter] = []

    def adapter_name(self, snapshot_id: str | None) -> str:
        """Return the adapter to sample with; None stands for the base model alone.

        Raises:
            InvalidInputError: There is no such snapshot.
        """
        return BASE if snapshot_id is None else self._snapshot(snapshot_id).name

    def work(self, job: jobs.Job) -> Work:
        """Carry out a job: a generator that pauses between micro-batches and returns its result.

        Raises:
            InvalidInputError: The job cannot be done, for what the user sent.
        """
        if not isinstance(job, jobs.ForwardBackward):
            return self._do(job)
        return (
            yield from forward_backward(
                self._base,
                self._model(job.model_id),
                job.data,
                loss_fn=job.loss_fn,
                loss_fn_config=job.loss_fn_config,
                forward_only=job.forward_only,
                custom=job.custom,
                micro_batch_tokens=self._micro_batch_tokens,
            )
        )

    def free_retired(self) -> None:
        """Free the dropped snapshots whose last sample has ended."""
        for adapter in list(self._retired):
            if not self._in_use(adapter.name):
                self._retired.remove(adapter)
                self._base.adapters.drop(adapter)

    def _do(self, job: jobs.Job) -> jobs.Result:
        match job:
            case jobs.OptimStep():
                return optim_step(self._model(job.model_id), job.adam)
            case jobs.CreateModel():
                _check_fresh(job.model_id, self._models, "model_id")
                self._models[job.model_id] = TrainedModel.create(self._base, job.lora)
            case jobs.LoadModel():
                return self._load_model(job)
            case jobs.DropModel():
                self._base.adapters.drop(self._model(job.model_id).adapter)
                del self._models[job.model_id]
            case jobs.SaveTraining():
                return checkpoint.save_training(self._base, self._model(job.model_id), job.folder)
            case jobs.SaveSampler():
                adapter = self._model(job.model_id).adapter
                return checkpoint.save_sampler(self._base, adapter, job.folder)
            case _:
                self._do_snapshot(job)
        return None

    def _do_snapshot(self, job: jobs.Job) -> None:
        match job:
            case jobs.TakeSnapshot():
                _check_fresh(job.snapshot_id, self._snapshots, "snapshot_id")
                source = self._model(job.model_id).adapter
                self._snapshots[job.snapshot_id] = self._base.adapters.snapshot(source)
            case jobs.LoadSnapshot():
                _check_fresh(job.snapshot_id, self._snapshots, "snapshot_id")
                loaded = checkpoint.load_snapshot(self._base, job.folder)
                self._snapshots[job.snapshot_id] = loaded
            case jobs.DropSnapshot():
                self._retired.append(self._snapshot(job.snapshot_id))
                del self._snapshots[job.snapshot_id]
                self.free_retired()
            case _:
                raise TypeError(f"{type(job).__name__} is not a job of the training lane")

    def _load_model(self, job: jobs.LoadModel) -> LoraConfig:
        """Load a checkpoint; a model of that id takes its place only when it is whole."""
        before = self._models.get(job.model_id)
        model = checkpoint.load_training(
            self._base,
            job.folder,
            optimizer=job.optimizer,
            expected=before.adapter.lora if before else None,
        )
        self._models[job.model_id] = model
        if before:
            self._base.adapters.drop(before.adapter)
        return model.adapter.lora

    def _model(self, model_id: str) -> TrainedModel:
        if model_id not in self._models:
            raise InvalidInputError(f"there is no model {model_id!r} in training", field="model_id")
        return self._models[model_id]

    def _snapshot(self, snapshot_id: str) -> Adapter:
        if snapshot_id not in self._snapshots:
            raise InvalidInputError(f"there is no snapshot {snapshot_id!r}", field="snapshot_id")
        return self._snapshots[snapshot_id]


def _check_fresh(
    key: str, existing: dict[str, TrainedModel] | dict[str, Adapter], field: str
) -> None:
    if key in existing:
        raise InvalidInputError(f"{field} {key!r} is taken", field=field)
