"""Training of a small network, step by step: AdamW, an average of the weights, checkpoints that a run goes on from."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from sanawm_env.system.saving import replacing
from sanawm_env.system.signals import on_stop
from sanawm_env.training.network import read_checkpoint
from sanawm_env.world.state import save_whole

CHECKPOINT_EVERY = 200


class Steps(Protocol):
    """What the settings of such a run hold."""

    @property
    def steps(self) -> int:
        """Of the run."""
        ...

    @property
    def learning_rate(self) -> float:
        """At its highest."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...


def train_steps(
    name: str,
    model: nn.Module,
    prepare: Callable[[], Callable[[torch.Generator], Tensor]],
    config: Steps,
    checkpoint: Path,
    weights: Path,
    identity: str,
    device: str,
) -> float:
    """Train a network, and leave the average of its weights as float16. It continues from the checkpoint.

    The learning rate warms up, stays, and falls over the last third. Ctrl-C and SIGTERM finish the step, save a
    checkpoint and raise KeyboardInterrupt.

    Args:
        name: of what is trained, for the progress bar.
        model: the network, on the device.
        prepare: returns the loss of a step, whose random numbers come from a generator on the device. It is not called
            for a run that is at its end.
        config: of the run.
        checkpoint, weights: files.
        identity: settings of the run, as JSON.
        device: of the weights.

    Returns:
        Seconds of training, over all calls.

    Raises:
        ValueError: for a checkpoint of another run.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    average = {key: p.detach().clone() for key, p in model.named_parameters()}
    step, seconds, recent = 0, 0.0, None
    if (saved := read_checkpoint(checkpoint, identity)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average = {key: value.to(device) for key, value in saved["average"].items()}
        step, seconds = saved["step"], saved["seconds"]
        if step >= config.steps:
            return seconds
    error, began = prepare(), time.monotonic() - seconds

    def save() -> None:
        parts = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step,
            "seconds": time.monotonic() - began, "identity": identity,
        }  # fmt: skip
        with replacing(checkpoint) as part:
            torch.save(parts, part)
        save_whole({key: value.half().cpu().contiguous() for key, value in average.items()}, weights)

    stopped: list[int] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with on_stop(stopped.append), Progress(*columns) as progress:
        task = progress.add_task(name, total=config.steps, completed=step)
        while step < config.steps and not stopped:
            generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
            rate = min(1.0, (step + 1) / 100, 3 * (config.steps - step) / config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * config.learning_rate
            loss = error(generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(0.998, (step + 1) / (step + 10))
            for key, parameter in model.named_parameters():
                average[key].lerp_(parameter.detach(), 1 - decay)
            step += 1
            recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
            progress.update(task, completed=step, description=f"{name} loss {recent:.4f}")
            if step % CHECKPOINT_EVERY == 0:
                save()
                progress.console.print(f"{name} step {step} loss {recent:.4f}")
        save()
    if stopped:
        raise KeyboardInterrupt(stopped[0])
    return time.monotonic() - began
