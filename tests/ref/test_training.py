"""All three trainings on a tiny set of tones and noises, and what comes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowsep_ref import FlowSepConfig
from flowsep_ref.training.collect import collect
from flowsep_ref.training.loop import train
from flowsep_ref.training.mixtures import Captions, MixtureDataset, level, mix
from flowsep_ref.training.sounds import SoundBank

LABELS = ("tone", "noise", "clicks")


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three classes, half a second each, one of them with a held-out recording."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    clicks = np.zeros(8000)
    clicks[::1600] = 1
    signals = [np.sin(2 * np.pi * 440 * time), rng.standard_normal(8000) / 4, clicks, np.sin(9000 * time)]
    folder = tmp_path_factory.mktemp("sounds")
    audio = np.concatenate([(32000 * np.clip(signal, -1, 1)).astype(np.int16) for signal in signals])
    np.save(folder / "audio.npy", audio)
    rows = [*((label, "train") for label in LABELS), ("tone", "test")]
    entries = [
        {"label": label, "split": split, "start": 8000 * i, "length": 8000}
        for i, (label, split) in enumerate(rows)
    ]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.tsv"
    rows = [f"{label}\t{text}\ttrain" for label in LABELS for text in (label, f"a {label}")]
    path.write_text("\n".join(["label\tcaption\tuse", *rows, "tone\tone tone\theld-out"]) + "\n")
    return path


@pytest.fixture(scope="session")
def config() -> FlowSepConfig:
    """The smallest sizes that the architecture allows, on clips of 1.28 s."""
    return FlowSepConfig.from_dict(
        {
            "audio": {"duration": 1.28},
            "vae": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1},
            "unet": {
                "model_channels": 32,
                "channel_mult": [1, 1],
                "attention_resolutions": [2],
                "num_res_blocks": 1,
                "context_dim": 32,
            },
            "vocoder": {"upsample_initial_channel": 32},
            "text": {
                "vocab_size": 384,
                "d_model": 32,
                "d_kv": 16,
                "d_ff": 32,
                "num_layers": 1,
                "num_heads": 2,
            },
        }
    )


@pytest.fixture(scope="session")
def work(
    sounds: Path,
    captions: Path,
    config: FlowSepConfig,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in which all three parts were trained for three steps."""
    folder = tmp_path_factory.mktemp("work")
    for part in ("vae", "vocoder", "flow"):
        train(part, sounds, captions, config, folder, data / "tokenizer.json", steps=3, batch=2)
    return folder


def test_the_parts_become_a_model(work: Path, config: FlowSepConfig, data: Path, tmp_path: Path) -> None:
    model = collect(work, config, data / "tokenizer.json", tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
    ]
    ids = torch.ones(1, 50, dtype=torch.long)
    waveform = model.separate(torch.randn(1, 9000), ids, ids, steps=1)
    assert waveform.shape == (1, 20480 + 32)
    assert torch.isfinite(waveform).all()
    # half of what was trained, and the moving average of it
    flow = torch.load(work / "flow" / "last.ckpt", weights_only=False)["state_dict"]
    average = flow["ema.unet.input_blocks.0.0.weight"]
    assert torch.equal(model.unet.conv_in.weight, average.half().float())
    assert 0 < float(model.scale_factor) < 100


def test_training_goes_on_where_it_stopped(
    work: Path, sounds: Path, captions: Path, config: FlowSepConfig, tmp_path: Path
) -> None:
    train("vae", sounds, captions, config, tmp_path, steps=2, batch=2)
    before = torch.load(tmp_path / "vae" / "last.ckpt", weights_only=False)
    train("vae", sounds, captions, config, tmp_path, steps=4, batch=2)
    after = torch.load(tmp_path / "vae" / "last.ckpt", weights_only=False)
    assert (before["global_step"], after["global_step"]) == (2, 4)
    assert after["optimizer_states"][0]["state"][0]["step"] == 4


def test_a_resumed_flow_keeps_its_text_encoder(
    work: Path, sounds: Path, captions: Path, config: FlowSepConfig, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(work, tmp_path / "work")
    last = tmp_path / "work" / "flow" / "last.ckpt"
    key = "text_encoder.shared.weight"
    before = torch.load(last, weights_only=False)["state_dict"][key]
    train("flow", sounds, captions, config, tmp_path / "work", data / "tokenizer.json", steps=4, batch=2)
    after = torch.load(last, weights_only=False)
    assert after["global_step"] == 4
    # one step of the optimiser, not the four hundred of the head start
    assert (after["state_dict"][key] - before).abs().max() < 5e-3


def test_emphasis_draws_a_class_more_often(sounds: Path, captions: Path) -> None:
    bank, phrasings = SoundBank(sounds, "train"), Captions.read(captions)
    shares = MixtureDataset(bank, phrasings, 20480, seed=0, emphasis={"tone": 8.0}).shares
    assert dict(zip(bank.labels, shares, strict=True)) == {"clicks": 0.1, "noise": 0.1, "tone": 0.8}


def test_the_flow_learns_a_fixed_batch(work: Path, captions: Path, config: FlowSepConfig, data: Path) -> None:
    from flowsep_ref.training.flow import FlowTraining

    torch.manual_seed(0)
    module = FlowTraining(config, Captions.read(captions), data / "tokenizer.json", 100, work, 2)
    x_1 = torch.randn(2, 8, 16, 16) * 0.1
    ids, mask = module.tokens(["tone", "a noise"])
    optimizer = torch.optim.Adam(module.unet.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        noise, t = torch.randn_like(x_1), torch.full((2,), 0.5)
        x_t = 0.5 * noise + 0.5 * x_1
        velocity = module.unet(x_t, x_1, t, module.text_encoder(ids, mask), mask)
        loss = (velocity - (x_1 - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_flow_needs_a_trained_autoencoder(
    sounds: Path, captions: Path, config: FlowSepConfig, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="vae has not been trained"):
        train("flow", sounds, captions, config, tmp_path, data / "tokenizer.json", steps=1)
    with pytest.raises(ValueError, match="--tokenizer"):
        train("flow", sounds, captions, config, tmp_path, steps=1)


def test_an_empty_caption_has_a_mask_of_ones(
    work: Path, captions: Path, config: FlowSepConfig, data: Path
) -> None:
    from flowsep_ref.training.flow import FlowTraining

    module = FlowTraining(config, Captions.read(captions), data / "tokenizer.json", 1, work, 1)
    ids, mask = module.tokens(["", "dog " * 100])
    assert mask[0].sum() == 50 and ids[0, 0] == 1 and ids[0, 1:].sum() == 0
    assert mask[1].sum() == 50 and ids[1, -1] == 1


def test_a_bank_keeps_to_its_split(sounds: Path, tmp_path: Path) -> None:
    assert SoundBank(sounds, "test").labels == ["tone"]
    assert SoundBank(sounds, "train").labels == sorted(LABELS)
    with pytest.raises(ValueError, match="no recording of the split other"):
        SoundBank(sounds, "other")
    with pytest.raises(ValueError, match="no sound cache"):
        SoundBank(tmp_path, "train")


def test_mixtures_are_normalised_and_add_up(sounds: Path, captions: Path) -> None:
    data = MixtureDataset(SoundBank(sounds, "train"), Captions.read(captions), 20480, seed=3)
    rng = np.random.default_rng(3)
    silent = 0
    for _ in range(40):
        item = data.draw(rng)
        assert item.mixture.dtype == item.target.dtype == np.float32
        assert abs(np.abs(item.mixture).max() - 0.5) < 1e-5
        np.testing.assert_allclose(item.target + item.other, item.mixture, atol=1e-6)
        assert item.caption in data.captions.trained[item.label]
        silent += not item.target.any()
    assert 0 < silent < 12


def test_level_ignores_gaps() -> None:
    tone = np.sin(np.arange(16000)).astype(np.float32)
    gap = np.concatenate([tone, np.zeros(48000, np.float32)])
    assert abs(level(gap) - level(tone)) < 1e-3


def test_mix_keeps_the_target_at_its_level_in_the_mixture() -> None:
    target = np.array([0.0, 1.0, 0.0, -1.0], np.float32)
    item = mix(target, 4 * target, "tone", "a tone")
    np.testing.assert_allclose(item.target, 0.125 * target, atol=1e-6)
