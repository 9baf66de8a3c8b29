"""Settings of the published YAML that are not sizes: files to start from, and numbers of the training.

Sizes are read by `flowsep_ref.FlowSepConfig.from_yaml`. docs/from-flowsep.md lists every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowsep_ref.config import at, file_named

#: Settings that these trainings always have, by the place of the key in the YAML.
FIXED: Mapping[tuple[str, ...], Any] = {
    ("augmentation", "mixup"): 0.0,
    ("data", "mix_audio"): True,
    ("model", "params", "unconditional_prob_cfg"): 0.1,
    ("model", "params", "scale_by_std"): True,
    ("model", "params", "clap_trainable"): False,
    ("model", "params", "euler"): True,
    ("model", "params", "extra_channels"): True,
}
FIRST_STAGE = ("model", "params", "first_stage_config")
TEXT = ("model", "params", "cond_stage_config", "crossattn_text", "params", "text_encoder_name")


@dataclass(frozen=True)
class Settings:
    """Settings of a published YAML; None where it has none.

    Attributes:
        base: Checkpoint to go on from.
        vae: File of the autoencoder.
        text: Name of the text encoder.
        numbers: Defaults of the options `steps`, `batch` and `learning_rate` of the flow's training.
        remarks: One sentence on each setting that is not followed.
    """

    base: Path | None
    vae: Path | None
    text: str | None
    numbers: Mapping[str, Any]
    remarks: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a YAML that `FlowSepConfig.from_yaml` has accepted.

        Raises:
            ValueError: a number is not one.
        """
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        remarks: list[str] = []

        def file(*keys: str) -> Path | None:
            named = at(values, *keys)
            found = file_named(path, named)
            if named and found is None:
                remarks.append(f"{path.name} has {keys[-1]}: {named}, which is not there")
            return found

        def number(kind: type[int] | type[float], *keys: str) -> Any:
            found = at(values, *keys)
            if found is None:
                return None
            try:
                answer = kind(found)
            except (TypeError, ValueError):
                answer = kind(0)
            if not answer > 0:
                raise ValueError(f"{path}: {'.'.join(keys)} is {found!r}, which is not a number above zero")
            return answer

        base, vae = file("reload_from_ckpt"), file(*FIRST_STAGE, "params", "reload_from_ckpt")
        for keys, fixed in FIXED.items():
            found = at(values, *keys)
            if found is not None and found != fixed:
                remarks.append(f"{path.name}: {'.'.join(keys)} is {found!r}, here it is always {fixed!r}")
        numbers = {
            "steps": number(int, "step", "max_steps"),
            "batch": number(int, "model", "params", "batchsize"),
            "learning_rate": number(float, "model", "params", "base_learning_rate"),
        }
        text = at(values, *TEXT)
        return cls(base, vae, text if isinstance(text, str) else None, numbers, tuple(remarks))
