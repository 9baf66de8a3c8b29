"""The four parts that are trained one after the other, and the sources of their weights."""

from __future__ import annotations

import hashlib
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
from flowsep_train import given
from flowsep_train.given import State, has_vocoder
from flowsep_train.hub import text_folder

PARTS = ("text", "vae", "vocoder", "flow")
#: The flow again, for few steps; where it was trained, it takes the flow's place in the model.
DISTILLED = "distilled"
#: In its folder, the checksum of the flow that it was made from.
TEACHER = "teacher.sha256"
#: Name of each part in the model.
MODULES = {"text": "text_encoder", "vae": "vae", "vocoder": "vocoder", "flow": "unet", DISTILLED: "unet"}
#: Each part alone: the whole published model has 676 million weights to draw.
NEW: dict[str, Callable[[FlowSepConfig], nn.Module]] = {
    "text": lambda config: TextEncoder(config.text),
    "vae": lambda config: VAE(config.vae),
    "vocoder": lambda config: Vocoder(config.vocoder),
    "flow": lambda config: UNet(config.unet, config.latent_channels),
}
NEW[DISTILLED] = NEW["flow"]
#: Prefix of each part's weights in the checkpoint of its training; for the flow, of the moving average.
PREFIXES = {
    "text": "text_encoder.",
    "vae": "vae.",
    "vocoder": "vocoder.",
    "flow": "ema.",
    DISTILLED: "ema.",
}


@dataclass(frozen=True)
class ModelParts:
    """Source of weights: the parts trained in `work`, those that were given, and the model `base`, if any."""

    work: Path
    config: FlowSepConfig
    base: FlowSep | None = None

    def trained(self, name: str) -> Any:
        """A part with its weights, in evaluation mode and frozen; its class depends on the name.

        Raises:
            ValueError: neither trained, nor given, nor in a base model.
        """
        state = self.checkpoint(name)
        module: nn.Module
        if state is not None:
            # not the base model's, which is asked for its own weights later
            module = NEW[name](self.config)
            module.load_state_dict(below(state, PREFIXES[name]))
        elif self.has(name):
            module = self.untrained(name)
        else:
            option = "" if name == "flow" else f"--{name} its file, or "
            raise ValueError(
                f"the {name} has not been trained: there is no {self.work / name / 'last.ckpt'}; "
                f"run flowsep-train fit {name}, or give {option}--from a model"
            )
        return module.requires_grad_(False).eval()

    def has(self, name: str) -> bool:
        """True if `trained` would find the part."""
        here = ((self.work / name / file).exists() for file in ("last.ckpt", given.GIVEN))
        return self.base is not None or any(here)

    def untrained(self, name: str) -> Any:
        """A part as its training starts: as it was given, of the base model, or with random weights."""
        module: nn.Module
        if self.given(name).exists():
            module = NEW[name](self.config)
            module.load_state_dict(given.load(self.given(name)))
        elif self.base is not None:
            module = getattr(self.base, MODULES[name])
        else:
            module = NEW[name](self.config)
        return module.requires_grad_(True).train()

    def given(self, name: str) -> Path:
        """The place of a part that was trained elsewhere."""
        return self.work / name / given.GIVEN

    @property
    def tokenizer(self) -> Path:
        """The place of the tokenizer that came with a text encoder."""
        return self.work / "text" / given.TOKENIZER

    def starts_anew(self, name: str) -> bool:
        """True for a part whose training starts from random weights."""
        return self.base is None and not self.given(name).exists()

    def take(self, vae: str | None = None, vocoder: str | None = None, text: str | None = None) -> None:
        """Convert parts that others trained into the work folder: see `flowsep_train.given`.

        Args:
            vae: the published `vae.ckpt`. The vocoder inside is taken too, unless there is another.
            vocoder: BigVGAN's generator, or the published `vae.ckpt`.
            text: folder of a T5 encoder, or its name on the Hugging Face hub.

        Raises:
            ValueError: such a file is missing, unreadable or of other sizes, or another one was taken before.
        """
        if vae is not None:
            given.keep(self.given("vae"), vae, lambda: given.vae_entries(Path(vae), self.wanted("vae")))
            if vocoder is None and not self.has("vocoder") and has_vocoder(Path(vae)):
                vocoder = vae
        if vocoder is not None:
            wanted = self.wanted("vocoder")
            given.keep(
                self.given("vocoder"),
                vocoder,
                lambda: given.vocoder_entries(Path(vocoder), wanted, self.config),
            )
        if text is not None:

            def encoder() -> State:
                folder = text_folder(text)
                found = given.text_entries(folder, self.wanted("text"), self.config.text)
                given.keep_tokenizer(folder, self.tokenizer)
                return found

            given.keep(self.given("text"), text, encoder)

    def wanted(self, name: str) -> State:
        """The names and shapes of a part's entries."""
        with torch.device("meta"):
            entries: State = NEW[name](self.config).state_dict()
        return entries

    def is_trained(self, name: str) -> bool:
        """True if a part was trained here."""
        return (self.work / name / "last.ckpt").exists()

    def checkpoint(self, name: str) -> State | None:
        """The tensors of a part's last checkpoint, if it was trained here."""
        if not self.is_trained(name):
            return None
        path = self.work / name / "last.ckpt"
        # weights_only=False: the loop's own file, written by this program
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        state: State = content["state_dict"]
        return state

    def check_teacher(self, flow: nn.Module) -> None:
        """Compare a flow with the one that the distilled flow was made from.

        Raises:
            ValueError: they differ.
        """
        folder = self.work / DISTILLED
        known = folder / TEACHER
        if not known.exists() or known.read_text(encoding="utf-8") != digest(flow):
            raise ValueError(
                f"{folder} was distilled from another flow than the present one: delete it and distill again"
            )

    def scale_factor(self) -> Tensor | None:
        """`scale_factor` of the trained flow, else of the base model if its autoencoder is still in use."""
        flow = self.checkpoint("flow")
        if flow is not None:
            return flow["scale_factor"]
        if self.base is None or digest(self.trained("vae")) != digest(self.base.vae):
            return None
        return self.base.scale_factor


def below(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def digest(module: nn.Module) -> str:
    """SHA-256 of a part's weights, which says whose latents or whose imitation something is."""
    sha256 = hashlib.sha256()
    for key, value in module.state_dict().items():
        sha256.update(key.encode())
        sha256.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return sha256.hexdigest()
