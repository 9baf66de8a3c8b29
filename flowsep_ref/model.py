"""FlowSep: the seven stages, and `separate`, which chains them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowsep_ref import checkpoint
from flowsep_ref.config import FlowSepConfig
from flowsep_ref.layers import mask_bias
from flowsep_ref.mel import FrontEnd, normalise
from flowsep_ref.solver import SOLVERS
from flowsep_ref.text import TextEncoder
from flowsep_ref.unet import UNet
from flowsep_ref.vae import VAE
from flowsep_ref.vocoder import Vocoder


class FlowSep(nn.Module):
    """Language-queried sound separation by a rectified flow in a latent space.

    The seven stage methods have the names and shapes of `flowsep_runtime.Pipeline`'s.  B batch,
    S samples at 16 kHz, T = S / 160 mel frames (a multiple of `config.frame_multiple`), t = T / 4.
    """

    def __init__(self, config: FlowSepConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.audio)
        self.text_encoder = TextEncoder(config.text)
        self.vae = VAE(config.vae)
        self.unet = UNet(config.unet, config.latent_channels)
        self.vocoder = Vocoder(config.vocoder)
        self.scale_factor: Tensor
        self.register_buffer("scale_factor", torch.ones(()))

    @classmethod
    def from_checkpoint(cls, path: str | Path, config: str | Path | FlowSepConfig | None = None) -> FlowSep:
        """Load a published Lightning file, or a folder that `save` wrote.

        Args:
            path: `*.ckpt`, or a folder with `model.safetensors` and `config.yaml`.
            config: sizes, or a YAML file of them; default: the folder's own, or the published sizes.

        Returns:
            The model in evaluation mode, float32.

        Raises:
            CheckpointError: unreadable file, or a missing, unknown or misshapen entry.
            ConfigError: unreadable configuration.
        """
        return cls.from_state(*checkpoint.read(path, config))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: FlowSepConfig, source: Path) -> FlowSep:
        """Make a model of a checkpoint's entries: see `flowsep_ref.checkpoint.fill`."""
        # on the meta device nothing is allocated
        with torch.device("meta"):
            model = cls(config)
        checkpoint.fill(model, state, source)
        return model.requires_grad_(False).eval()

    @classmethod
    def bundled(cls) -> FlowSep:
        """The small model that ships with this package."""
        return cls.from_checkpoint(cls.bundled_path())

    @staticmethod
    def bundled_path() -> Path:
        """The folder of the small model that ships with this package (weights, config, tokenizer)."""
        return Path(__file__).parent / "assets" / "nano"

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `model.safetensors` and `config.yaml`: see `flowsep_ref.checkpoint.save`."""
        checkpoint.save(self, self.config, folder, dtype)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Front end: `[B, S]`, normalised to [-1, 1], to `[B, T, 64]` (docs/model.md#front-end)."""
        return self.front_end(waveform)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """T5 encoder: `[B, 50]` twice to `[B, 50, D]` (docs/model.md#text-encoder)."""
        return self.text_encoder(input_ids, attention_mask)

    def encode_mixture(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of a latent, already × `scale_factor` (docs/model.md#vae).

        `[B, T, 64]` to two of `[B, 8, t, 16]`.
        """
        mean, logvar = self.vae.encode(log_mel)
        return self.scale_factor * mean, self.scale_factor * torch.exp(0.5 * logvar)

    def velocity(
        self, x: Tensor, t: Tensor | float, mixture_latent: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        """v(x, t): `[B, 8, t, 16]`, time scalar or `[B]` in [0, 1] (docs/model.md#velocity-network).

        Mixture latent, text and mask may have batch 1 and then serve the whole batch of `x`.
        """
        batch = x.shape[0]
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(batch)
        mixture_latent = mixture_latent.expand(batch, -1, -1, -1)
        return self.unet(x, mixture_latent, times, text.expand(batch, -1, -1), mask.expand(batch, -1))

    def solve(
        self,
        noise: Tensor,
        mixture_latent: Tensor,
        text: Tensor,
        mask: Tensor,
        steps: int = 20,
        solver: str = "euler",
    ) -> Tensor:
        """Integrate from `noise [B, 8, t, 16]` at t = 0 to the target's latent (docs/model.md#solver)."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if solver not in SOLVERS:
            raise ValueError(f"no solver {solver!r}; there are {', '.join(SOLVERS)}")
        batch = noise.shape[0]
        mixture = self.unet.mixture_features(mixture_latent)
        contexts = self.unet.text_features(text.expand(batch, -1, -1))
        bias = mask_bias(mask)

        def velocity(x: Tensor, t: float) -> Tensor:
            time = self.unet.time_features(torch.full((batch,), t, device=x.device))
            return self.unet.step(x, mixture, time, contexts, bias)

        return SOLVERS[solver](velocity, noise, steps)

    def decode_latent(self, latent: Tensor) -> Tensor:
        """VAE decoder: scaled latent `[B, 8, t, 16]` to log-mel `[B, T, 64]` (docs/model.md#vae)."""
        return self.vae.decode(latent / self.scale_factor)

    def vocode(self, log_mel: Tensor) -> Tensor:
        """BigVGAN: `[B, T, 64]` to `[B, 160·T + 32]` (docs/model.md#vocoder)."""
        return self.vocoder(log_mel)

    @torch.inference_mode()
    def separate(
        self,
        waveform: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        steps: int = 20,
        solver: str = "euler",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The published program: a clip and a query to the waveform of what the query names.

        Args:
            waveform: `[B, S]`, 16 kHz mono, any level; padded with zeros to `config.clip_samples`
                after normalisation.
            input_ids: `[B, 50]` int64.
            attention_mask: `[B, 50]`, 0/1.
            steps: network evaluations.
            solver: a name of `flowsep_ref.solver.SOLVERS`.
            generator: of the posterior's and the starting noise, in this order.

        Returns:
            `[B, 160·T + 32]` at the normalised level.

        Raises:
            ValueError: the clip is longer than `config.clip_samples`.
        """
        missing = self.config.clip_samples - waveform.shape[-1]
        if missing < 0:
            raise ValueError(
                f"a clip has at most {self.config.clip_samples} samples, not {waveform.shape[-1]}"
            )
        x = torch.nn.functional.pad(normalise(waveform), (0, missing))
        mean, std = self.encode_mixture(self.log_mel(x))
        posterior_noise, noise = (
            torch.randn(mean.shape, generator=generator, device=mean.device) for _ in range(2)
        )
        text = self.encode_text(input_ids, attention_mask)
        latent = self.solve(noise, mean + std * posterior_noise, text, attention_mask, steps, solver)
        return self.vocode(self.decode_latent(latent))
