"""What one would use instead of the engine: `transformers.generate`, and peft with full logits.

`python -m benchmarks.engine_rivals '{"scenario": "generate", ...}'` prints one line of JSON. The same
folder, dtype, adapter shape and number of torch's threads as the engine's scenario.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import peft
import torch
import transformers

from benchmarks import measure, workloads
from tinker_async.local.models import resolve_model

_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _model() -> Any:
    folder = resolve_model("smollm2-135m").folder
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=32, lora_alpha=32, target_modules=_MODULES, init_lora_weights=False)
    model: Any = peft.get_peft_model(base, config)
    model.eval()
    return model


def generate(task: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of `generate` with this many rows, plain sampling at temperature 1."""
    model = _model()
    model.generation_config.eos_token_id = None
    prompts = torch.tensor(workloads.prompts(task["at_once"], task["prompt"])).long()
    mask = torch.ones_like(prompts)

    def draw(rows: Any, new_tokens: int) -> int:
        with torch.inference_mode():
            drawn = model.generate(
                input_ids=rows, attention_mask=mask[: len(rows)], do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new_tokens, pad_token_id=0,
            )  # fmt: skip
        return int(drawn.numel() - rows.numel())

    draw(prompts[:1], 4)
    start = time.monotonic()
    tokens = sum(
        draw(prompts, task["new_tokens"]) for _ in range(task["number"] // task["at_once"])
    )
    return {"tokens_per_s": tokens / (time.monotonic() - start), "memory_mb": measure.memory_mb()}


def training(task: dict[str, Any]) -> dict[str, float]:
    """Tokens per CPU second of forward and backward with all logits, and peak memory."""
    model = _model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    rows = workloads.training_rows(task["rows"], task["tokens"])
    inputs, targets, weights = (
        torch.stack([torch.from_numpy(row[name]) for row in rows])
        for name in ("tokens", "target_tokens", "weights")
    )

    def call(count: int, length: int) -> None:
        logits = model(input_ids=inputs[:count, :length].long()).logits
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(-1, targets[:count, :length].unsqueeze(-1)).squeeze(-1)
        (-(chosen * weights[:count, :length]).sum()).backward()  # type: ignore[no-untyped-call]

    call(1, 16)
    cpu, start = measure.cpu_s(), time.monotonic()
    for _ in range(task["number"]):
        call(task["rows"], task["tokens"])
    wall = time.monotonic() - start
    tokens = task["number"] * task["rows"] * task["tokens"]
    return {
        "tokens_per_cpu_s": tokens / (measure.cpu_s() - cpu),
        "tokens_per_s": tokens / wall,
        "peak_mb": measure.peak_memory_mb(),
    }


_SCENARIOS = {"generate": generate, "training": training}


def main() -> None:
    task = json.loads(sys.argv[1])
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if task.get("threads"):
        torch.set_num_threads(task["threads"])
    print(json.dumps(_SCENARIOS[task["scenario"]](task)))


if __name__ == "__main__":
    main()
