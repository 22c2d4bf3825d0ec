"""AdamW on an adapter's parameters: torch's fused kernel, without what `torch.optim` does around it.

The rule: the kernel and the order of operations are fixed, since they decide the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tinker_async.data.params import AdamParams


class AdamW:
    """Moments and step counts of some parameters, and the steps taken with them.

    Args:
        parameters: Those to step, all on one device.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = tuple(parameters)
        self.state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        """`step`, `exp_avg` and `exp_avg_sq`, float32, of each parameter that was ever stepped.
        Those stepped first together share their `step`: an adapter's have gradients all or none."""

    def prepare(self) -> None:
        """Make room for the moments of parameters that are stepped next for the first time.

        What can run out of memory is here, where nothing has been changed yet.
        """
        self._begin([one for one in self._parameters if one.grad is not None])

    @torch.no_grad()
    def step(self, adam: AdamParams) -> None:
        """Step the parameters that have a gradient; the others are left alone."""
        stepped: list[torch.nn.Parameter] = []
        gradients: list[torch.Tensor] = []
        for parameter in self._parameters:
            if parameter.grad is not None:
                stepped.append(parameter)
                gradients.append(parameter.grad)
        if not stepped:
            return
        self._begin(stepped)
        states = [self.state[parameter] for parameter in stepped]
        steps = [state["step"] for state in states]
        for step in {id(step): step for step in steps}.values():
            step.add_(1.0)
        # `torch.optim` calls the same after ten times as long: on small adapters that counts.
        torch._fused_adamw_(
            [*stepped],
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            amsgrad=False,
            lr=adam.learning_rate,
            beta1=adam.beta1,
            beta2=adam.beta2,
            weight_decay=adam.weight_decay,
            eps=adam.eps,
            maximize=False,
        )

    def _begin(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        fresh = [parameter for parameter in parameters if parameter not in self.state]
        if not fresh:
            return
        step = torch.zeros((), dtype=torch.float32, device=fresh[0].device)
        for parameter in fresh:
            self.state[parameter] = {
                "step": step,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
