"""The four parts that are trained one after the other, and the sources of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowsep_ref.config import FlowSepConfig
from flowsep_ref.model import FlowSep
from flowsep_ref.text import TextEncoder
from flowsep_ref.unet import UNet
from flowsep_ref.vae import VAE
from flowsep_ref.vocoder import Vocoder

State = dict[str, Tensor]
PARTS = ("text", "vae", "vocoder", "flow")
#: Name of each part in the model.
MODULES = {"text": "text_encoder", "vae": "vae", "vocoder": "vocoder", "flow": "unet"}
#: Each part alone: the whole published model has 676 million weights to draw.
NEW: dict[str, Callable[[FlowSepConfig], nn.Module]] = {
    "text": lambda config: TextEncoder(config.text),
    "vae": lambda config: VAE(config.vae),
    "vocoder": lambda config: Vocoder(config.vocoder),
    "flow": lambda config: UNet(config.unet, config.latent_channels),
}
#: Prefix of each part's weights in the checkpoint of its training; for the flow, of the moving average.
PREFIXES = {"text": "text_encoder.", "vae": "vae.", "vocoder": "vocoder.", "flow": "ema."}


@dataclass(frozen=True)
class ModelParts:
    """Source of weights: the parts trained in `work`, else the model `base`, if there is one."""

    work: Path
    config: FlowSepConfig
    base: FlowSep | None = None

    def trained(self, name: str) -> Any:
        """A part with its weights, in evaluation mode and frozen; its class depends on the name.

        Raises:
            ValueError: neither trained nor in a base model.
        """
        module = self.untrained(name)
        state = self.checkpoint(name)
        if state is not None:
            module.load_state_dict(below(state, PREFIXES[name]))
        elif self.base is None:
            raise ValueError(
                f"the {name} has not been trained: there is no {self.work / name / 'last.ckpt'}; "
                f"run flowsep-train fit {name}, or give --from a model"
            )
        return module.requires_grad_(False).eval()

    def has(self, name: str) -> bool:
        """True if `trained` would find the part."""
        return self.base is not None or (self.work / name / "last.ckpt").exists()

    def untrained(self, name: str) -> Any:
        """A part as its training starts: of the base model, or with random weights."""
        module: nn.Module
        if self.base is not None:
            module = getattr(self.base, MODULES[name])
        else:
            module = NEW[name](self.config)
        return module.requires_grad_(True).train()

    def checkpoint(self, name: str) -> State | None:
        """The tensors of a part's last checkpoint, if it was trained here."""
        path = self.work / name / "last.ckpt"
        if not path.exists():
            return None
        # weights_only=False: the loop's own file, written by this program
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        state: State = content["state_dict"]
        return state

    def scale_factor(self) -> Tensor | None:
        """`scale_factor` of the trained flow, else of the base model if its autoencoder is still in use."""
        flow = self.checkpoint("flow")
        if flow is not None:
            return flow["scale_factor"]
        keeps_vae = self.base is not None and not (self.work / "vae" / "last.ckpt").exists()
        return self.base.scale_factor if self.base is not None and keeps_vae else None


def below(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
