"""Distillation of the velocity network: few steps of Euler's method that end where many do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from flowsep_ref.unet import UNet
from flowsep_ref.vae import VAE
from flowsep_train.flow import FlowBatch, FlowTraining
from flowsep_train.text import QueryEncoder


class Distillation(FlowTraining):
    """A network whose velocity at the start of a step is the teacher's mean velocity over that step.

    The teacher, the network as it was, solves from noise with many steps of Euler's method. Between two
    times of the short grid it has moved by its mean velocity times their distance, and this mean is what the
    network learns at the first of the two: then one step of Euler's method goes where the teacher's many go
    ("progressive distillation", Salimans and Ho, arXiv:2202.00512, on a grid that is fixed beforehand). No
    recording is needed to learn from, only mixtures and queries. Rows without noise keep the posterior mean:
    they learn the teacher's own velocity.

    Args:
        unet: the teacher's weights, to be trained.
        queries: text encoder, frozen.
        scale_factor: of the autoencoder's latents (docs/model.md#vae).
        steps: of the training.
        evaluations: steps of the short grid.
        teacher_steps: steps of the teacher from noise to sound; a multiple of `evaluations`.
        learning_rate: at its highest.
        vae: the autoencoder, for pictures alone.

    Raises:
        ValueError: `teacher_steps` is not a multiple of `evaluations`.
    """

    def __init__(
        self,
        unet: UNet,
        queries: QueryEncoder,
        scale_factor: float,
        steps: int,
        evaluations: int,
        teacher_steps: int,
        learning_rate: float = 1e-4,
        vae: VAE | None = None,
    ) -> None:
        super().__init__(unet, queries, scale_factor, steps, learning_rate, vae)
        if teacher_steps % evaluations:
            raise ValueError(
                f"the teacher's {teacher_steps} steps cannot be shared by {evaluations} evaluations: "
                f"choose a multiple"
            )
        self.grid = {"evaluations": evaluations, "teacher_steps": teacher_steps}
        # in a list, so that checkpoints do not carry it
        self.teachers = [copy.deepcopy(self.unet).requires_grad_(False).eval()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["grid"] = self.grid

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's steps with those asked for.

        Raises:
            ValueError: they differ.
        """
        if checkpoint["grid"] != self.grid:
            raise ValueError(
                f"this distillation was begun with {checkpoint['grid']} and not {self.grid}: "
                f"delete its folder to start again"
            )

    def training_step(self, batch: FlowBatch, _: int) -> Tensor:
        text, mask = self.queries(batch.captions, self.device)
        mixture = self.scale_factor * batch.mixture
        evaluations, teacher_steps = self.grid.values()
        losses = [
            self.errors(batch.noise[rows], mixture[rows], text[rows], mask[rows], steps, inner)
            # one step from zero, of the teacher as of the network, is the posterior mean
            for rows, steps, inner in (
                (~batch.means, evaluations, teacher_steps // evaluations),
                (batch.means, 1, 1),
            )
            if rows.any()
        ]
        loss = torch.cat(losses).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.t))
        return loss

    def errors(
        self, x: Tensor, mixture: Tensor, text: Tensor, mask: Tensor, steps: int, inner: int
    ) -> Tensor:
        """Mean squared errors of the velocity `[B * steps]`.

        Args:
            x: `[B, 8, n, 16]`, where the solver starts.
            mixture: `[B, 8, n, 16]`, scaled.
            text: hidden states of the queries `[B, L, d]`.
            mask: their mask `[B, L]`.
            steps: of the network.
            inner: the teacher's steps in each of them.
        """
        # Lightning moves only what is a module of its own
        teacher = self.teachers[0].to(x.device)
        states, wanted, times = [], [], []
        with torch.no_grad():
            for step in range(steps):
                state = x
                for part in range(inner):
                    t = torch.full((len(x),), (step + part / inner) / steps, device=x.device)
                    x = x + teacher(x, mixture, t, text, mask).float() / (steps * inner)
                states.append(state)
                wanted.append((x - state) * steps)
                times.append(torch.full((len(x),), step / steps, device=x.device))
        velocity = self.unet(
            torch.cat(states).contiguous(memory_format=torch.channels_last),
            mixture.repeat(steps, 1, 1, 1),
            torch.cat(times),
            text.repeat(steps, 1, 1),
            mask.repeat(steps, 1),
        ).float()
        return (velocity - torch.cat(wanted)).square().mean(dim=(1, 2, 3))
