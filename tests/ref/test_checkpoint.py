"""Entries that are read from a checkpoint, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowsep_ref import CheckpointError, ConfigError, FlowSep, FlowSepConfig
from tests.data.make_checkpoint import checkpoint, read_layout

Content = dict[str, Any]


@pytest.fixture
def content(data: Path) -> Content:
    """The tiny checkpoint, for tests to damage."""
    return checkpoint(read_layout(data / "layouts" / "tiny.json"), seed=0)


@pytest.fixture
def rejected(tmp_path: Path, tiny_config: Path) -> Callable[[object], str]:
    """Write something, try to load it, give back the one error."""

    def attempt(content: object) -> str:
        path = tmp_path / "damaged.ckpt"
        torch.save(content, path)
        with pytest.raises(CheckpointError) as caught:
            FlowSep.from_checkpoint(path, tiny_config)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return attempt


@pytest.mark.slow
def test_full_layout_fits_the_published_sizes(data: Path) -> None:
    layout = json.loads((data / "layouts" / "full.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape, _ in layout["state_dict"]}
    model = FlowSep.from_state(state, FlowSepConfig.published(), Path("v2_100k.ckpt"))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 676_111_258
    assert model.config.frame_multiple == 32


def test_full_yaml_gives_the_published_sizes(data: Path) -> None:
    assert FlowSepConfig.from_yaml(data / "configs" / "full.yaml") == FlowSepConfig.published()


def test_the_raw_weights_are_not_what_runs(tiny: FlowSep, content: Content) -> None:
    state = content["state_dict"]
    weight = tiny.unet.conv_in.weight
    assert torch.equal(weight, state["model_ema.diffusion_modelinput_blocks00weight"])
    assert not torch.equal(weight, state["model.diffusion_model.input_blocks.0.0.weight"])


def test_a_file_without_the_raw_weights_loads(content: Content, tmp_path: Path, tiny_config: Path) -> None:
    state = content["state_dict"]
    content["state_dict"] = {k: v for k, v in state.items() if not k.startswith("model.diffusion_model.")}
    torch.save(content, tmp_path / "small.ckpt")
    FlowSep.from_checkpoint(tmp_path / "small.ckpt", tiny_config)


def test_parameters_are_views_of_the_file(tiny_checkpoint: Path, tiny_config: Path) -> None:
    model = FlowSep.from_checkpoint(tiny_checkpoint, tiny_config)
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        tuple(int(end, 16) for end in fields[0].split("-"))
        for fields in mapped
        if fields[-1] == os.fspath(tiny_checkpoint)
    ]
    assert ranges, "the checkpoint is not memory-mapped"
    addresses = [p.data_ptr() for p in model.parameters()]
    assert all(any(low <= address < high for low, high in ranges) for address in addresses)


def test_missing_unknown_and_misshapen_entries_are_one_error(
    content: Content, rejected: Callable[[object], str]
) -> None:
    state: dict[str, Tensor] = content["state_dict"]
    del state["model_ema.diffusion_modelout2weight"]
    state["first_stage_model.extra.weight"] = torch.zeros(1)
    state["scale_factor"] = torch.zeros(3)
    message = rejected(content)
    for part in (
        "missing: model_ema.diffusion_modelout2weight",
        "unknown: first_stage_model.extra.weight",
        "of another shape: scale_factor is [3], not []",
    ):
        assert part in message


def test_the_wrong_configuration_is_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape("--config")):
        FlowSep.from_checkpoint(tiny_checkpoint)


class _Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("true",)


def test_a_pickle_that_runs_code_is_refused(content: Content, rejected: Callable[[object], str]) -> None:
    content["callbacks"] = {"surprise": _Malicious()}
    assert "refused" in rejected(content)


def test_a_bare_pickle_is_refused(tmp_path: Path, tiny_config: Path) -> None:
    path = tmp_path / "old.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": _Malicious()}))
    with pytest.raises(CheckpointError, match="refused"):
        FlowSep.from_checkpoint(path, tiny_config)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("is_bare", [True, False])
def test_a_bare_or_wrapped_state_dict_gives_the_same_model(
    tiny: FlowSep, content: Content, tmp_path: Path, tiny_config: Path, prefix: str, is_bare: bool
) -> None:
    state = {prefix + key: value for key, value in content["state_dict"].items()}
    torch.save(state if is_bare else content | {"state_dict": state}, tmp_path / "other.pt")
    _same(tiny, FlowSep.from_checkpoint(tmp_path / "other.pt", tiny_config))


def test_a_prefix_that_only_some_entries_have_is_no_prefix(content: Content, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in content["state_dict"].items()}
    state["scale_factor"] = state.pop("module.scale_factor")
    torch.save(state, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match="missing"):
        FlowSep.from_checkpoint(tmp_path / "mixed.pt")


def test_a_safetensors_file_is_read_by_itself_under_either_names(
    tiny: FlowSep, content: Content, tmp_path: Path, tiny_config: Path
) -> None:
    tiny.save(tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "mine.safetensors")
    _same(tiny, FlowSep.from_checkpoint(weights))
    (tmp_path / "model" / "config.yaml").unlink()
    _same(tiny, FlowSep.from_checkpoint(weights, tiny_config))
    published = {key: value.clone() for key, value in content["state_dict"].items()}
    save_file(published, tmp_path / "published.safetensors")
    _same(tiny, FlowSep.from_checkpoint(tmp_path / "published.safetensors", tiny_config))


def _same(model: FlowSep, other: FlowSep) -> None:
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("other", [{}, {"weights": {}}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_checkpoint_without_a_state_dict_is_refused(
    other: object, rejected: Callable[[object], str]
) -> None:
    assert "not a FlowSep checkpoint" in rejected(other)


def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, tiny_config: Path, tiny_checkpoint: Path
) -> None:
    text = tmp_path / "notes.ckpt"
    text.write_text("hello")
    half = tmp_path / "half.ckpt"
    half.write_bytes(tiny_checkpoint.read_bytes()[:100_000])
    for path in (text, half, tmp_path / "none.ckpt", tmp_path):
        with pytest.raises((CheckpointError, ConfigError), match=re.escape(str(path))):
            FlowSep.from_checkpoint(path, tiny_config)


def test_save_and_load(tiny: FlowSep, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    again = FlowSep.from_checkpoint(tmp_path / "model")
    assert again.config == tiny.config
    _same(tiny, again)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.yaml", "model.safetensors"]


def test_half_precision_storage_rounds_and_halves(tiny: FlowSep, tmp_path: Path) -> None:
    tiny.save(tmp_path / "half", torch.float16)
    tiny.save(tmp_path / "whole")
    again = FlowSep.from_checkpoint(tmp_path / "half")
    weight = tiny.vae.encoder.conv_in.weight
    assert again.vae.encoder.conv_in.weight.dtype == torch.float32
    assert torch.equal(again.vae.encoder.conv_in.weight, weight.half().float())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]


def test_impossible_configurations_are_refused(tmp_path: Path) -> None:
    for text, word in (("a: [", "YAML"), ("5", "not a FlowSep"), ("model: {}", "has no")):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=word):
            FlowSepConfig.from_yaml(path)
    with pytest.raises(ConfigError, match="cannot read"):
        FlowSepConfig.from_yaml(tmp_path / "none.yaml")
    path.write_text("flowsep: {unet: {context_dim: 7}}")
    with pytest.raises(ConfigError, match="width 7"):
        FlowSepConfig.from_yaml(path)
