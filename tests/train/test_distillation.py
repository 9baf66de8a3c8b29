"""A distilled flow ends with few steps where it ended with many."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowsep_ref.unet import UNet
from flowsep_train import loop
from flowsep_train.collect import collect
from flowsep_train.distill import Distillation
from flowsep_train.flow import FlowBatches
from flowsep_train.latents import LatentCache
from flowsep_train.parts import DISTILLED, ModelParts
from flowsep_train.sounds import SoundBank
from flowsep_train.text import QueryEncoder, read_tokenizer
from tests.train.training import CONFIG, PHRASES, run, trainings, write_sounds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Path:
    return data / "tokenizer.json"


@pytest.fixture(scope="module")
def work(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text encoder, an autoencoder, latents, a vocoder and a flow of two steps each."""
    folder = tmp_path_factory.mktemp("work")
    parts, bank = ModelParts(folder, CONFIG), SoundBank(write_sounds(folder), "train")
    loop.train_text(parts, tokenizer, PHRASES, steps=2)
    loop.train_vae(parts, bank, run(2))
    loop.cache_latents(parts, bank, folder / "latents", shards=1, written=lambda shards: None)
    for part in ("vocoder", "flow"):
        trainings(parts, bank, folder / "latents", tokenizer)[part](run(2))
    return folder


def distillation(work: Path, tokenizer: Path, evaluations: int, teacher_steps: int) -> Distillation:
    torch.manual_seed(0)
    queries = QueryEncoder(ModelParts(work, CONFIG).trained("text"), read_tokenizer(tokenizer))
    # random weights: unlike those of a new training, which start at zero, they move far
    unet = UNet(CONFIG.unet, CONFIG.latent_channels)
    module = Distillation(unet, queries, 1.0, 40, evaluations, teacher_steps, 1e-3)
    module.log = lambda *arguments, **named: None  # type: ignore[method-assign]
    return module


def solved(
    unet: torch.nn.Module, x: Tensor, mixture: Tensor, text: Tensor, mask: Tensor, steps: int
) -> Tensor:
    for step in range(steps):
        x = x + unet(x, mixture, torch.full((len(x),), step / steps), text, mask) / steps
    return x


def test_few_steps_learn_to_end_where_many_did(work: Path, tokenizer: Path) -> None:
    module = distillation(work, tokenizer, evaluations=2, teacher_steps=8)
    batch = FlowBatches(LatentCache(work / "latents"), PHRASES, 1, 2, 10)(np.random.default_rng(0), 0)
    text, mask = module.queries(batch.captions, module.device)
    asked = batch.noise, batch.mixture, text, mask
    optimizer = torch.optim.Adam(module.unet.parameters(), 1e-3)
    with torch.no_grad():
        many = solved(module.teachers[0], *asked, 8)
        before = (solved(module.unet, *asked, 2) - many).square().mean()
    for _ in range(40):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    with torch.no_grad():
        after = (solved(module.unet, *asked, 2) - many).square().mean()
    assert after < before / 2


def test_nothing_is_left_to_learn_when_the_teacher_takes_the_same_steps(work: Path, tokenizer: Path) -> None:
    module = distillation(work, tokenizer, evaluations=4, teacher_steps=4)
    batch = FlowBatches(LatentCache(work / "latents"), PHRASES, 2, 2, 10, mean=0.5)(
        np.random.default_rng(1), 0
    )
    assert (batch.noise == 0).all(dim=(1, 2, 3)).any()
    with torch.no_grad():
        assert float(module.training_step(batch, 0)) < 1e-10


def test_the_collected_model_has_the_distilled_flow(work: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    parts = ModelParts(tmp_path / "work", CONFIG)
    cache = LatentCache(work / "latents")
    loop.distill_flow(parts, cache, tokenizer, PHRASES, run(2), teacher_steps=4)
    model = collect(parts, tokenizer, tmp_path / "model", half=False)
    made, taught = parts.trained(DISTILLED), parts.trained("flow")
    assert torch.equal(model.unet.conv_in.weight, made.conv_in.weight)
    assert not torch.equal(made.conv_in.weight, taught.conv_in.weight)
    with pytest.raises(ValueError, match="leave --keep out"):
        collect(ModelParts(parts.work, CONFIG, model), tokenizer, tmp_path / "average", kept=0.5)
    with pytest.raises(ValueError, match="was begun with"):
        loop.distill_flow(parts, cache, tokenizer, PHRASES, run(3), evaluations=1, teacher_steps=4)
    trainings(parts, SoundBank(parts.work, "train"), work / "latents", tokenizer)["flow"](run(3))
    with pytest.raises(ValueError, match="distill again"):
        collect(parts, tokenizer, tmp_path / "model")


def test_the_teachers_steps_are_a_multiple_of_the_evaluations(work: Path, tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="choose a multiple"):
        distillation(work, tokenizer, evaluations=3, teacher_steps=20)
