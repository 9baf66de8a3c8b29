"""The published project's way of training, on stand-ins of its files, through to a model that separates."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from flowsep_ref import FlowSep, FlowSepConfig
from flowsep_train.parts import digest
from tests.end_to_end.hub import serving
from tests.train.published_files import text_folder, vae_file
from tests.train.training import write_sounds

pytestmark = pytest.mark.slow

TEXT = "google/flan-t5-tiny"


def test_the_published_files_train_a_model_that_separates(
    scripts: Path, tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    sounds, project = write_sounds(tmp_path), tmp_path / "project"
    for place in ("lass_config", "model_logs/pretrained"):
        (project / place).mkdir(parents=True)
    vae_file(project / "model_logs" / "pretrained" / "vae.ckpt")
    config = project / "lass_config" / "2channel_flow.yaml"
    values = yaml.safe_load((data / "configs" / "tiny.yaml").read_text())
    # short clips, for the sake of time
    values["preprocessing"]["audio"]["duration"] = 1.28
    values["step"] = {"max_steps": 2, "save_checkpoint_every_n_steps": 100000}
    params = values["model"]["params"]
    params["first_stage_config"]["params"]["reload_from_ckpt"] = "model_logs/pretrained/vae.ckpt"
    params["unconditional_prob_cfg"] = 0.3
    config.write_text(yaml.safe_dump(values))
    sizes = asdict(FlowSepConfig.from_yaml(config).text)
    folder = text_folder(tmp_path / "t5", {key: sizes[key] for key in sizes if key != "max_length"})
    work, latents, model = (tmp_path / name for name in ("work", "latents", "model"))
    with serving({TEXT: folder}) as (address, seen):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }

        def call(*arguments: str | Path) -> str:
            name, *others = arguments
            answer = subprocess.run(
                [scripts / name, *others],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                cwd=tmp_path,
            )
            assert answer.returncode == 0, (arguments, answer.stderr)
            return answer.stderr

        common: list[str | Path] = ["--work", work, "--config", config]
        said = call(
            "flowsep-train", "latents", *common, "--sounds", sounds, "--output", latents, "--shards", "1"
        )
        assert "2channel_flow.yaml: model.params.unconditional_prob_cfg is 0.3, here it is always 0.1" in said
        flow: list[str | Path] = [*common, "--sounds", sounds, "--latents", latents, "--text", TEXT]
        said = call("flowsep-train", "fit", "flow", *flow, "--batch", "1", "--workers", "0")
        assert "flow: 2 of 2" in said  # max_steps
        fetched = [line for line in seen if "/resolve/" in line]
        assert sum(line.startswith("GET") for line in fetched) == 3
        # from now on nothing is asked of the network, even where the text encoder is named again
        environment["HF_HUB_OFFLINE"] = "1"
        call("flowsep-train", "collect", *common, "--text", TEXT, "--output", model, "--float32")
        assert [line for line in seen if "/resolve/" in line] == fetched
    collected, published = FlowSep.from_checkpoint(model), FlowSep.from_checkpoint(tiny_checkpoint, config)
    for part in ("vae", "vocoder", "text_encoder"):
        assert digest(getattr(collected, part)) == digest(getattr(published, part))
    assert (model / "tokenizer.json").read_bytes() == (data / "tokenizer.json").read_bytes()
    flow_state = torch.load(work / "flow" / "last.ckpt", weights_only=False)
    assert flow_state["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 5e-5  # base_learning_rate
    # test_fine_tuning.py exports such a model and runs it
    ids = torch.ones(1, 50, dtype=torch.long)
    separated = collected.separate(torch.randn(1, 16000), ids, ids, steps=2)
    assert separated.shape == (1, 20480 + 32) and torch.isfinite(separated).all()


@pytest.mark.parametrize("served", [False, True])
def test_a_text_encoder_that_the_hub_has_not_is_one_sentence(
    served: bool, scripts: Path, data: Path, tmp_path: Path
) -> None:
    """A repository that is not there, and one without a configuration."""
    (tmp_path / "empty").mkdir()
    with serving({TEXT: tmp_path / "empty"} if served else {}) as (address, _):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }
        command: list[str | Path] = [
            scripts / "flowsep-train",
            "collect",
            "--work",
            tmp_path / "w",
            "--text",
            TEXT,
        ]
        command += ["--config", data / "configs" / "tiny.yaml", "--output", tmp_path / "model"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 2
    message = answer.stderr.splitlines()[-1]
    assert message.startswith(f"flowsep-train: {TEXT} cannot be fetched from the Hugging Face hub")
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "w").exists()
