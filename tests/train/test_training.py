"""The trainings on a tiny set of tones and noises, and what comes of them."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from flowsep_ref import FlowSep
from flowsep_ref.unet import UNet
from flowsep_train import loop
from flowsep_train.collect import collect
from flowsep_train.flow import FlowBatches, FlowTraining
from flowsep_train.latents import LatentCache
from flowsep_train.masks import QUIETEST, imitate, mask_loss
from flowsep_train.mixtures import Captions, Stream, Waveforms, draw_mixture, level, mix
from flowsep_train.parts import ModelParts
from flowsep_train.sounds import SoundBank
from flowsep_train.text import QueryEncoder, learn_phrasings, tokens
from tests.train.training import CONFIG, LABELS, PHRASES, run, trainings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(bank: SoundBank, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all parts were trained for three steps, with the latents in between."""
    folder = tmp_path_factory.mktemp("work")
    parts = ModelParts(folder, CONFIG)
    loop.train_text(parts, tokenizer, PHRASES, steps=3)
    loop.train_vae(parts, bank, run(3))
    loop.cache_latents(parts, bank, folder / "latents", shards=1, written=lambda shards: None)
    for part in ("vocoder", "flow"):
        trainings(parts, bank, folder / "latents", tokenizer)[part](run(3, pictures_every=2))
    return folder


def last(work: Path, part: str) -> dict[str, torch.Tensor]:
    """The tensors of a part's last checkpoint."""
    state = ModelParts(work, CONFIG).checkpoint(part)
    assert state is not None
    return state


def test_the_parts_become_a_model(work: Path, tokenizer: Path, tmp_path: Path) -> None:
    model = collect(ModelParts(work, CONFIG), tokenizer, tmp_path / "model")
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
    flow = last(work, "flow")
    average = flow["ema.input_blocks.0.0.weight"]
    assert not torch.equal(average, flow["unet.input_blocks.0.0.weight"])
    assert torch.equal(model.unet.conv_in.weight, average.half().float())
    assert 0 < float(model.scale_factor) < 100


class PowerCutError(Exception):
    """Stop as a power cut would."""


@pytest.mark.parametrize("part", ["vae", "vocoder", "flow"])
def test_a_killed_training_resumes_exactly(
    part: str, work: Path, bank: SoundBank, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        for kept in ("text", "vae"):
            if kept != part:
                shutil.copytree(work / kept, folder / kept)
    cache = work / "latents"
    trainings(ModelParts(folders[0], CONFIG), bank, cache, tokenizer)[part](run(4))

    whole_stream = Stream.__iter__

    def dying(self: Stream[object]) -> object:
        for number, batch in enumerate(whole_stream(self)):
            if number == 2:
                raise PowerCutError
            yield batch

    monkeypatch.setattr(Stream, "__iter__", dying)
    with pytest.raises(PowerCutError):
        trainings(ModelParts(folders[1], CONFIG), bank, cache, tokenizer)[part](run(4))
    monkeypatch.undo()
    trainings(ModelParts(folders[1], CONFIG), bank, cache, tokenizer)[part](run(4))

    whole, resumed = (last(folder, part) for folder in folders)
    assert whole.keys() == resumed.keys()
    different = [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert different == []


def test_a_finished_training_goes_on_with_more_steps(
    work: Path, bank: SoundBank, tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(work, tmp_path / "work")
    parts = ModelParts(tmp_path / "work", CONFIG)
    loop.train_vae(parts, bank, run(3))
    assert torch.equal(
        last(work, "vae")["vae.encoder.conv_in.weight"], last(parts.work, "vae")["vae.encoder.conv_in.weight"]
    )
    loop.train_vae(parts, bank, run(5))
    checkpoint = torch.load(parts.work / "vae" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 5


def test_gradients_accumulate(work: Path, bank: SoundBank, tokenizer: Path, tmp_path: Path) -> None:
    loop.train_vae(ModelParts(tmp_path, CONFIG), bank, run(2, accumulate=3))
    assert torch.load(tmp_path / "vae" / "last.ckpt", weights_only=False)["global_step"] == 2


def test_pictures_are_logged(work: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for part, tag in (("vocoder", "piece and vocoder"), ("flow", "mixture, target, output")):
        events = EventAccumulator(str(work / part / "log"))
        events.Reload()
        assert events.Tags()["images"] == [tag]
        image = events.Images(tag)[0]
        assert image.width > 0 and image.height % 65 == 0


def test_the_vocoder_listens_to_its_discriminators_from_the_step_on(bank: SoundBank, tmp_path: Path) -> None:
    parts = ModelParts(tmp_path, CONFIG)
    loop.train_vocoder(parts, bank, run(1), 1, 4)
    before = {k: v for k, v in last(tmp_path, "vocoder").items() if k.startswith("discriminators.")}
    loop.train_vocoder(parts, bank, run(2), 1, 4)
    after = last(tmp_path, "vocoder")
    assert before and all(not torch.equal(value, after[key]) for key, value in before.items())


def test_the_flow_learns_a_fixed_batch(work: Path, tokenizer: Path) -> None:
    torch.manual_seed(0)
    parts = ModelParts(work, CONFIG)
    queries = QueryEncoder(parts.trained("text"), Tokenizer.from_file(str(tokenizer)))
    module = FlowTraining(ModelParts(work / "none", CONFIG).untrained("flow"), queries, 1.0, 100)
    batches = FlowBatches(LatentCache(work / "latents"), PHRASES, clips=1, multiple=2, steps=100)
    batch = batches(np.random.default_rng(0), 0)
    optimizer = torch.optim.Adam(module.unet.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_asks_every_mixture_for_a_sound_and_for_the_rest(work: Path) -> None:
    cache = LatentCache(work / "latents")
    batches = FlowBatches(cache, PHRASES, clips=2, multiple=2, steps=100, skew=2.0)
    silence = cache.silence
    known = {text for texts in PHRASES.values() for text in texts}
    absent = empty = complements = rows = 0
    for number in range(60):
        batch = batches(np.random.default_rng(number), number)
        assert batch.mixture.shape == batch.target.shape == batch.noise.shape
        assert len(batch.captions) == len(batch.t) == len(batch.target)
        assert torch.equal(batch.mixture[::2], batch.mixture[1::2])
        assert all(caption in known | {""} for caption in batch.captions[::2])
        rows += len(batch.t)
        empty += sum(caption == "" for caption in batch.captions)
        complements += sum(caption not in known | {""} for caption in batch.captions[1::2])
        absent += sum(torch.equal(target, silence[:, : target.shape[1]]) for target in batch.target[::2])
    assert 0.04 < empty / rows < 0.17 and 0.02 < absent / rows < 0.25
    assert 0.2 < complements / rows < 0.5


def test_the_posterior_mean_is_learned_from_zero_without_a_caption_dropped(work: Path) -> None:
    batches = FlowBatches(LatentCache(work / "latents"), PHRASES, 2, 2, steps=100, mean=1.0)
    batch = batches(np.random.default_rng(0), 0)
    assert not batch.noise.any() and not batch.t.any() and "" not in batch.captions


def test_a_piece_lies_within_one_mixture(work: Path) -> None:
    cache = LatentCache(work / "latents")
    name, (array, labels) = next(iter(cache.shards.items()))
    marked = np.zeros_like(array)
    section = array.shape[3] // 4
    for number in range(4):
        marked[:, 2, :, number * section : (number + 1) * section] = number
    cache.shards = {name: (marked, [[[str(number)] for number in range(4)]] * len(labels))}
    for seed in range(20):
        piece = cache.piece(4, 2, np.random.default_rng(seed))
        assert piece.target.unique().tolist() == [float(piece.labels[0])]
    with pytest.raises(ValueError, match="no mixture as long as 1/2 of a clip"):
        cache.piece(2, 2, np.random.default_rng(0))


def test_the_loss_of_a_mask_is_zero_for_the_true_shares_and_ignores_silence() -> None:
    rng = np.random.default_rng(0)
    target, rest = torch.from_numpy(rng.uniform(-8, 0, (2, 2, 16, 64)).astype(np.float32))
    assert mask_loss(target, rest, target, rest) == 0
    assert mask_loss(target + 3, rest + 3, target, rest) < 1e-6  # a share has no level
    wrong = mask_loss(rest, target, target, rest)
    assert 0.1 < wrong < 1
    silent = torch.full_like(target, QUIETEST)
    assert mask_loss(target, rest, silent, silent) == 0


def test_a_flow_that_learns_masks_trains_an_imitation_of_its_decoder_first(
    work: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "imitate", functools.partial(imitate, steps=5))
    for part in ("text", "vae"):
        shutil.copytree(work / part, tmp_path / part)
    cache = LatentCache(work / "latents")
    parts = ModelParts(tmp_path, CONFIG)
    loop.train_flow(parts, cache, tokenizer, PHRASES, run(2), mean=0.5, masking=1.0)
    made = tmp_path / "flow" / "decoder_imitation.pt"
    before = made.read_bytes()
    loop.train_flow(parts, cache, tokenizer, PHRASES, run(3), mean=0.5, masking=1.0)
    assert made.read_bytes() == before


def test_a_cache_grows_while_it_is_read(work: Path, bank: SoundBank, tmp_path: Path) -> None:
    shutil.copytree(work / "latents", tmp_path / "latents")
    cache = LatentCache(tmp_path / "latents")
    assert len(cache.shards) == 1
    first = (tmp_path / "latents" / "shard-00000.npy").stat().st_mtime_ns
    loop.cache_latents(ModelParts(work, CONFIG), bank, tmp_path / "latents", 2, written=lambda shards: None)
    cache.refresh()
    assert len(cache.shards) == 2
    assert (tmp_path / "latents" / "shard-00000.npy").stat().st_mtime_ns == first
    assert not list((tmp_path / "latents").glob(".writing-*"))
    with pytest.raises(ValueError, match="no latents: run flowsep-train latents"):
        LatentCache(tmp_path)


def test_a_missing_part_is_named(work: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text has not been trained"):
        collect(ModelParts(tmp_path, CONFIG), tokenizer, tmp_path / "model")
    cache = LatentCache(work / "latents")
    with pytest.raises(ValueError, match="text has not been trained"):
        loop.train_flow(ModelParts(tmp_path, CONFIG), cache, tokenizer, PHRASES, run(1))


@pytest.mark.parametrize("published", [True, False])
def test_a_model_is_fine_tuned(
    published: bool, bank: SoundBank, tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """Fine-tuning from the published layout and from the bundled model: the loss falls, the result loads."""
    if published:
        base = FlowSep.from_checkpoint(tiny_checkpoint, data / "configs" / "tiny.yaml")
        vocabulary = data / "tokenizer.json"
    else:
        base, vocabulary = FlowSep.bundled(), FlowSep.bundled_path() / "tokenizer.json"
    before = [p.clone() for p in base.unet.parameters()]
    base.save(tmp_path / "base", torch.float32)
    parts = ModelParts(tmp_path / "work", base.config, base)
    cache_folder = tmp_path / "latents"
    clip = base.config.frame_multiple * 4 * 160
    from flowsep_ref.mel import FrontEnd
    from flowsep_train.latents import Encoder, write_cache

    encoder = Encoder(FrontEnd(base.config.audio), base.vae)
    write_cache(cache_folder, bank, encoder, clip, shards=1, seed=0)
    cache = LatentCache(cache_folder)
    queries = QueryEncoder(base.text_encoder, Tokenizer.from_file(str(vocabulary)))

    def loss(unet: UNet) -> float:
        module = FlowTraining(unet, queries, float(base.scale_factor), 1)
        multiple = base.config.frame_multiple // base.config.latent_stride
        batches = FlowBatches(cache, PHRASES, clips=1, multiple=multiple, steps=100)
        with torch.no_grad():
            return float(
                np.mean(
                    [float(module.training_step(batches(np.random.default_rng(n), 0), 0)) for n in range(6)]
                )
            )

    first = loss(base.unet)
    loop.train_flow(parts, cache, vocabulary, PHRASES, run(12, learning_rate=3e-4))
    tuned = collect(parts, vocabulary, tmp_path / "model")
    assert loss(tuned.unet) < first
    assert any(not torch.equal(a, b) for a, b in zip(before, tuned.unet.parameters(), strict=True))
    # what was not trained is the base model's
    assert torch.equal(tuned.vocoder.conv_pre.weight, base.vocoder.conv_pre.weight.half().float())
    assert float(tuned.scale_factor) == float(base.scale_factor)
    # from a file, as a command does: the training has changed the object
    own = ModelParts(parts.work, parts.config, FlowSep.from_checkpoint(tmp_path / "base"))
    averaged = collect(own, vocabulary, tmp_path / "averaged", half=False, kept=0.25)
    trained = collect(parts, vocabulary, tmp_path / "trained", half=False).unet.parameters()
    for a, b, c in zip(before, trained, averaged.unet.parameters(), strict=True):
        assert torch.allclose(c, 0.25 * a + 0.75 * b, atol=1e-6)


def test_a_text_encoder_learns_its_phrasings(tokenizer: Path) -> None:
    torch.manual_seed(0)
    encoder = FlowSep(CONFIG).text_encoder
    torch.nn.init.normal_(encoder.shared.weight)
    sentences = {label: [f"the sound of a {label}", f"loud {label} outside"] for label in LABELS}
    first = learn_phrasings(encoder, Tokenizer.from_file(str(tokenizer)), PHRASES, sentences, steps=1)
    later = learn_phrasings(encoder, Tokenizer.from_file(str(tokenizer)), PHRASES, sentences, steps=150)
    assert later < 0.6 * first


def test_an_empty_caption_has_a_mask_of_ones(tokenizer: Path) -> None:
    ids, mask = tokens(Tokenizer.from_file(str(tokenizer)), ["", "dog " * 100])
    assert mask[0].sum() == 50 and ids[0, 0] == 1 and ids[0, 1:].sum() == 0
    assert mask[1].sum() == 50 and ids[1, -1] == 1


def test_remembered_captions_are_those_of_the_encoder(tokenizer: Path) -> None:
    encoder = FlowSep(CONFIG).text_encoder
    vocabulary = Tokenizer.from_file(str(tokenizer))
    queries = QueryEncoder(encoder, vocabulary, remembered=1)
    for captions in (["a tone", "", "a tone"], ["a noise", "a tone"]):
        text, mask = queries(captions)
        ids, wanted_mask = tokens(vocabulary, captions)
        assert torch.equal(mask, wanted_mask)
        assert torch.allclose(text, encoder(ids, wanted_mask), atol=5e-3)
    assert len(queries.memory) == 1


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_does_not_depend_on_its_workers(workers: int) -> None:
    from torch.utils.data import DataLoader

    stream = Stream(lambda rng, number: (number, int(rng.integers(1000))), [5], start=7)
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    drawn = [pair for pair, _ in zip(loader, range(9), strict=False)]
    assert [number for number, _ in drawn] == list(range(7, 16))
    assert [value for _, value in drawn] == [
        int(np.random.default_rng([5, number]).integers(1000)) for number in range(7, 16)
    ]


def test_mixtures_are_normalised_and_add_up(bank: SoundBank) -> None:
    rng = np.random.default_rng(3)
    alone = crowded = 0
    for _ in range(60):
        item = draw_mixture(bank, 20480, rng, alone=0.2, crowded=0.3)
        assert item.mixture.dtype == item.sources[0].dtype == np.float32
        assert abs(np.abs(item.mixture).max() - 0.5) < 1e-5
        whole = np.sum(item.sources, axis=0)
        np.testing.assert_allclose(whole - whole.mean(), item.mixture, atol=1e-5)
        assert set(item.labels) <= set(LABELS) and len(item.labels) == len(item.sources)
        alone += len(item.sources) == 1
        crowded += len(item.sources) == 3
    assert 0 < alone < 30 and (crowded > 0) == (len(bank.labels) > 2)


def test_waveforms_are_pieces_of_a_clip(bank: SoundBank) -> None:
    x = Waveforms(bank, batch=3, samples=5120, clip=20480)(np.random.default_rng(0), 0)
    assert x.shape == (3, 5120) and x.dtype == torch.float32
    assert float(x.abs().max()) <= 0.51


def test_level_ignores_gaps() -> None:
    tone = np.sin(np.arange(16000)).astype(np.float32)
    gap = np.concatenate([tone, np.zeros(48000, np.float32)])
    assert abs(level(gap) - level(tone)) < 1e-3


def test_mix_keeps_the_sources_at_their_level_in_the_mixture() -> None:
    source = np.array([0.0, 1.0, 0.0, -1.0], np.float32)
    item = mix([source, 3 * source], ("tone", "noise"))
    np.testing.assert_allclose(item.sources[0], 0.125 * source, atol=1e-6)
    np.testing.assert_allclose(item.mixture, 0.5 * source, atol=1e-6)


def test_captions_are_split_into_trained_and_held_out(tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text("label\tcaption\tuse\ntone\ta tone\ttrain\ntone\ttone tone\theld-out\n")
    captions = Captions.read(path)
    assert captions.trained == {"tone": ["a tone"]} and captions.held_out == {"tone": ["tone tone"]}
