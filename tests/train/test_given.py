"""Parts from the published project's files: read, checked, converted once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from flowsep_ref import CheckpointError, FlowSep, FlowSepConfig
from flowsep_ref.checkpoint import check
from flowsep_train import given
from flowsep_train.collect import collect
from flowsep_train.parts import NEW, ModelParts, digest
from tests.data.make_checkpoint import read_layout
from tests.train.published_files import TEXT, VAE, entries, normalised, text_folder, vae_file, vocoder_file


@pytest.fixture(scope="module")
def config(data: Path) -> FlowSepConfig:
    return FlowSepConfig.from_yaml(data / "configs" / "tiny.yaml")


@pytest.fixture
def sizes(config: FlowSepConfig) -> dict[str, Any]:
    """Settings of the tiny encoder, as T5's `config.json` has them."""
    return {name: value for name, value in asdict(config.text).items() if name != "max_length"}


@pytest.fixture
def parts(tmp_path: Path, config: FlowSepConfig) -> ModelParts:
    return ModelParts(tmp_path / "work", config)


@pytest.fixture(scope="module")
def published(tiny_checkpoint: Path, config: FlowSepConfig) -> FlowSep:
    """The whole checkpoint of the same weights."""
    return FlowSep.from_checkpoint(tiny_checkpoint, config)


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    return digest(module) == digest(other)


def test_the_published_autoencoder_brings_its_vocoder(
    parts: ModelParts, published: FlowSep, tmp_path: Path
) -> None:
    parts.take(vae=str(vae_file(tmp_path / "vae.ckpt")))
    assert same(parts.trained("vae"), published.vae)
    assert same(parts.trained("vocoder"), published.vocoder)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_the_weight_normalisation_of_bigvgan_is_folded(
    prefix: str, parts: ModelParts, published: FlowSep, tmp_path: Path
) -> None:
    parts.take(vocoder=str(vocoder_file(tmp_path / "g_01000000", prefix)))
    found = parts.trained("vocoder").state_dict()
    for key, value in published.vocoder.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)


def test_both_forms_of_weight_normalisation_are_those_of_pytorch() -> None:
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 5, 4))
    with torch.no_grad():
        convolution.parametrizations.weight.original0.mul_(1.7)
    found = given.folded(torch.nn.Sequential(convolution).state_dict())
    assert set(found) == {"0.bias", "0.weight"}
    torch.testing.assert_close(found["0.weight"], convolution.weight.detach())
    weight = {"weight": torch.randn(4, 2, 3)}
    old = given.folded(normalised({"a.weight": weight["weight"]}))
    torch.testing.assert_close(old["a.weight"], weight["weight"])


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_a_text_encoder_comes_with_its_tokenizer(
    form: str, parts: ModelParts, published: FlowSep, sizes: dict[str, Any], tmp_path: Path, data: Path
) -> None:
    folder = text_folder(tmp_path / "t5", sizes, form)
    parts.take(text=str(folder))
    assert same(parts.trained("text"), published.text_encoder)
    assert parts.tokenizer.read_bytes() == (data / "tokenizer.json").read_bytes()


def test_what_was_converted_needs_its_source_no_more(
    parts: ModelParts, published: FlowSep, sizes: dict[str, Any], tmp_path: Path
) -> None:
    files = [vae_file(tmp_path / "vae.ckpt"), text_folder(tmp_path / "t5", sizes)]
    parts.take(vae=str(files[0]), text=str(files[1]))
    before = [parts.given(name).stat().st_mtime_ns for name in ("vae", "vocoder", "text")]
    parts.take(vae=str(files[0]), text=str(files[1]))
    assert [parts.given(name).stat().st_mtime_ns for name in ("vae", "vocoder", "text")] == before
    files[0].unlink()
    shutil.rmtree(files[1])
    again = ModelParts(parts.work, parts.config)
    assert same(again.trained("vae"), published.vae) and same(again.trained("text"), published.text_encoder)


def test_another_source_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    parts.take(vae=str(vae_file(tmp_path / "vae.ckpt")))
    other = entries(VAE)
    other["quant_conv.bias"] += 1
    torch.save({"state_dict": other}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"given.safetensors was made of .*vae.ckpt, not of .*other.ckpt"):
        parts.take(vae=str(tmp_path / "other.ckpt"))


def refused(take: Callable[[], None], path: Path) -> str:
    """The one sentence of a refusal, which names the file; nothing is left in the work folder."""
    with pytest.raises(CheckpointError) as caught:
        take()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("quant_conv.bias", "missing: quant_conv.bias"),
        ("decoder.extra.weight", "unknown: decoder.extra.weight"),
        ("encoder.conv_in.weight", "of another shape: encoder.conv_in.weight is [2], not ["),
    ],
)
def test_an_autoencoder_is_compared_by_names_and_shapes(
    key: str, fault: str, parts: ModelParts, tmp_path: Path
) -> None:
    state = entries(VAE)
    if fault.startswith("missing"):
        del state[key]
    else:
        state[key] = torch.zeros(2)
    path = tmp_path / "vae.ckpt"
    torch.save({"state_dict": state}, path)
    assert fault in refused(lambda: parts.take(vae=str(path)), path)
    assert not parts.given("vae").exists()


def test_a_whole_model_is_no_autoencoder(parts: ModelParts, tiny_checkpoint: Path) -> None:
    message = refused(lambda: parts.take(vae=str(tiny_checkpoint)), tiny_checkpoint)
    assert "give it as --from" in message


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"generator": 3}, "has no generator of tensors"),
        ({"state_dict": {"a": torch.zeros(1)}}, "has no vocoder"),
        ({"generator": {"conv_pre.weight_g": torch.zeros(1)}}, "unknown: conv_pre.weight_g"),
    ],
)
def test_what_is_no_vocoder(content: object, fault: str, parts: ModelParts, tmp_path: Path) -> None:
    path = tmp_path / "g_1"
    torch.save(content, path)
    assert fault in refused(lambda: parts.take(vocoder=str(path)), path)


def test_a_vocoder_for_other_recordings_is_refused_by_its_settings(parts: ModelParts, tmp_path: Path) -> None:
    """The shapes are the same at another rate and with other strides."""
    path = vocoder_file(tmp_path / "g_1", sampling_rate=24000)
    message = refused(lambda: parts.take(vocoder=str(path)), path.with_name("config.json"))
    assert "sampling_rate is 24000, not 16000" in message


@pytest.mark.parametrize(
    ("name", "value"), [("num_heads", 1), ("feed_forward_proj", "relu"), ("model_type", "mt5")]
)
def test_a_text_encoder_of_other_settings_is_refused(
    name: str, value: object, parts: ModelParts, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = text_folder(tmp_path / "t5", sizes | {name: value})
    message = refused(lambda: parts.take(text=str(folder)), folder / "config.json")
    assert f"{name} is {json.dumps(value)}, not " in message


@pytest.mark.parametrize(
    ("missing", "fault"), [("config.json", "has no config.json"), ("model.safetensors", "has no weights")]
)
def test_a_text_encoder_without_a_file(
    missing: str, fault: str, parts: ModelParts, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = text_folder(tmp_path / "t5", sizes)
    (folder / missing).unlink()
    assert fault in refused(lambda: parts.take(text=str(folder)), folder)


def test_an_index_of_weights_stays_in_its_folder(
    parts: ModelParts, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = text_folder(tmp_path / "t5", sizes, "shards")
    (folder / "model-00002-of-00002.safetensors").rename(tmp_path / "out.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "../out"))
    refused(lambda: parts.take(text=str(folder)), folder / "out.safetensors")


def test_a_name_that_is_no_name(parts: ModelParts) -> None:
    with pytest.raises(ValueError, match="there is no folder a/b/c"):
        parts.take(text="a/b/c")


def test_a_damaged_file_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    path = tmp_path / "vae.ckpt"
    path.write_bytes(b"PK\x03\x04 no more")
    refused(lambda: parts.take(vae=str(path)), path)
    refused(lambda: parts.take(vae=str(tmp_path / "none.ckpt")), tmp_path / "none.ckpt")


def test_the_same_autoencoder_keeps_the_base_models_scale(
    tmp_path: Path, published: FlowSep, config: FlowSepConfig
) -> None:
    """The published way of fine-tuning names the whole model and its autoencoder apart."""
    parts = ModelParts(tmp_path / "work", config, published)
    parts.take(vae=str(vae_file(tmp_path / "vae.ckpt")))
    assert parts.scale_factor() == published.scale_factor
    state = entries(VAE)
    state["quant_conv.bias"] += 1
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    other = ModelParts(tmp_path / "other", config, published)
    other.take(vae=str(tmp_path / "other.ckpt"))
    assert other.scale_factor() is None


def test_the_given_parts_become_the_published_model(
    tmp_path: Path, published: FlowSep, config: FlowSepConfig, sizes: dict[str, Any]
) -> None:
    parts = ModelParts(tmp_path / "work", config, published)
    parts.take(str(vae_file(tmp_path / "vae.ckpt")), None, str(text_folder(tmp_path / "t5", sizes)))
    model = collect(parts, parts.tokenizer, tmp_path / "model", half=False)
    assert same(model, published)


@pytest.mark.slow
def test_the_full_layout_has_the_names_and_shapes_of_the_published_parts(data: Path) -> None:
    layout = read_layout(data / "layouts" / "full.json")["state_dict"]
    published = FlowSepConfig.published()
    for name, prefix, beside in (
        ("vae", VAE, given.BESIDE_VAE),
        ("vocoder", VAE + "vocoder.", ()),
        ("text", TEXT, given.BESIDE_ENCODER),
    ):
        with torch.device("meta"):
            state = {
                key.removeprefix(prefix): torch.empty(shape)
                for key, shape, _ in layout
                if key.startswith(prefix)
            }
            check(NEW[name](published).state_dict(), state, Path("file"), beside)
