"""What a session makes: models to train, losses of one's own, and samplers.

The rule: whether the session is open is decided before anything is awaited; what is made lives
as long as the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.data import given
from tinker_async.data.custom_loss import CustomLossInputRank, LossHandle, PerDatumLossFn
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.optimizers import OptimizerConfig
from tinker_async.data.params import LoraConfig
from tinker_async.sampling import SamplingClient
from tinker_async.trainers import FromState
from tinker_async.training import TrainingClient

if TYPE_CHECKING:
    from tinker_async.parts import Parts


class Creation:
    """The part of `Session` that makes clients."""

    def _open_parts(self) -> Parts:
        raise NotImplementedError

    async def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Mapping[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a LoRA model on a base model and return the client that trains it.

        Args:
            base_model: Its name.
            rank: Of the adapter.
            seed: Of its initial weights; None lets the server choose.
            train_mlp: Whether MLP layers are trained.
            train_attn: Whether attention layers are trained.
            train_unembed: Whether the unembedding is trained.
            user_metadata: Kept with the training run.
            optimizer: For the life of the model: `DimuonOptimizerConfig`, or for a family that is
                not known here a mapping with a `type`. None is AdamW.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Raises:
            InvalidInputError: Rank or switches make no adapter.
            BadRequestError: The server has no such base model.
            RequestTimeoutError: The time is over; the model may have been made.
        """
        trainers = self._open_parts().trainers
        lora = LoraConfig(
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
        )
        metadata = given.texts(user_metadata, "user_metadata")
        return await trainers.create(
            base_model, lora, metadata, optimizer=optimizer, timeout=timeout, retry=retry
        )

    async def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: OptimizerConfig | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, with a fresh optimizer.

        Args:
            path: Of the checkpoint.
            base_model: In place of the checkpoint's own, with which it must go together.
            user_metadata: Kept with the new training run.
            weights_access_token: Grants access to a checkpoint of another account.
            optimizer: As for `create_lora_training_client`.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Raises:
            InvalidInputError: Not the path of a training checkpoint.
            RequestFailedError, NotFoundError: The server has no such checkpoint.
        """
        wanted = FromState(
            path=path,
            with_optimizer=False,
            metadata=given.texts(user_metadata, "user_metadata"),
            base_model=base_model,
            optimizer=optimizer,
            access_token=weights_access_token,
        )
        trainers = self._open_parts().trainers
        return await trainers.create_from_state(wanted, timeout=timeout, retry=retry)

    async def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
        weights_access_token: str | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> TrainingClient:
        """Create a model from a checkpoint of `save_state`, optimizer state included.

        Otherwise as `create_training_client_from_state`.
        """
        wanted = FromState(
            path=path,
            with_optimizer=True,
            metadata=given.texts(user_metadata, "user_metadata"),
            base_model=base_model,
            access_token=weights_access_token,
        )
        trainers = self._open_parts().trainers
        return await trainers.create_from_state(wanted, timeout=timeout, retry=retry)

    async def create_custom_loss(
        self,
        fn: PerDatumLossFn,
        input_ranks: Mapping[str, CustomLossInputRank],
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> LossHandle:
        """Make a loss of your own that can run on the server (extra `torch`).

        `fn` is called once, with stand-ins, and what it does is written down: it may not decide
        by a tensor's value, nor call anything but torch and math. A server that takes custom
        losses gets it; with any other it runs here, in the same way.

        Args:
            fn: The loss of one datum: `fn(logprobs, weights, ...)`, the other parameters being
                keys of `loss_fn_inputs`. Returns a scalar tensor, and a dict of scalar tensors
                named `custom/<name>:sum` or `custom/<name>:mean`. The losses of all data are summed.
            input_ranks: The rank of each parameter: 0 a scalar, 1 `[T]`, 2 `[T, K]`.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Returns:
            The handle for `TrainingClient.forward_backward_custom`; the same one for the same loss.

        Raises:
            InvalidInputError: The function cannot be written down; the message says where.
            MissingExtraError: torch is not installed.
        """
        losses = self._open_parts().custom_losses
        return await losses.create(fn, input_ranks, timeout=timeout, retry=retry)

    async def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        *,
        record_stability_info: bool = False,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """Make a client that samples from a checkpoint or from a base model.

        Args:
            model_path: `tinker://...` of `save_weights_for_sampler`.
            base_model: Or the name of a base model.
            record_stability_info: As for `TrainingClient.save_weights_and_get_sampling_client`.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Raises:
            InvalidInputError: Neither or both given, or not a checkpoint's path.
            BadRequestError, NotFoundError: The server does not have it.
        """
        samplers = self._open_parts().samplers
        given.flag(record_stability_info, "record_stability_info")
        client = await samplers.create(model_path, base_model, timeout=timeout, retry=retry)
        client.record_stability_info = record_stability_info
        return client

    async def create_sampling_client_from_handle(
        self,
        handle: SamplerHandle,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """Make a client for the sampler of another process, from `SamplingClient.handle`.

        Its requests share no number with those of other processes, so no sample is lost or given
        to two. From a base model or a checkpoint, this session makes a sampler of its own, which
        does not depend on the other session. A snapshot is shared and ends with the session that
        made it; numbers are the server's choice, or else drawn at random from 5e17.

        Raises:
            ConfigError: The handle is of a server with another URL.
            NotFoundError, BadRequestError: The server does not have what it names. The
                first sample from a snapshot raises NotFoundError or GoneError instead.
        """
        return await self._open_parts().samplers.open(handle, timeout=timeout, retry=retry)
