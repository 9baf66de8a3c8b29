"""`flowsep-export`: what it says and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowsep_export import cli
from flowsep_ref import FlowSep
from flowsep_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from tests.export.conftest import Exported, run_export


def test_a_bundle_names_its_origin(tiny_bundle: Exported, tiny_checkpoint: Path) -> None:
    manifest = Manifest.read(tiny_bundle.folder)
    assert manifest.name == tiny_checkpoint.stem
    assert manifest.precision == "float32"
    assert manifest.provenance.checkpoint == tiny_checkpoint.name
    assert {"flowsep", "torch", "onnx", "onnxscript", "onnxruntime"} <= set(manifest.provenance.versions)


def test_json_tells_every_stages_errors(tiny_bundle: Exported, tiny_half_bundle: Exported) -> None:
    for exported, tolerance in ((tiny_bundle, 5e-5), (tiny_half_bundle, 2e-2)):
        assert exported.answer["bundle"] == str(exported.folder)
        for stage, entry in exported.answer["stages"].items():
            error = entry["error"]
            assert 0 <= error["relative"] <= tolerance, stage
            assert 0 <= error["real_relative"] <= tolerance, stage


def test_half_precision_takes_about_half_the_space(tiny_bundle: Exported, tiny_half_bundle: Exported) -> None:
    for graph in ("velocity", "decode_latent", "encode_mixture"):
        whole, half = ((e.folder / f"{graph}.onnx").stat().st_size for e in (tiny_bundle, tiny_half_bundle))
        assert half < 0.55 * whole


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_a_table_of_errors_is_printed(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run_export(capsys, monkeypatch, *options, f"--output={tmp_path / 'bundle'}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[0] == "stage"
    assert [line.split()[0] for line in lines[1:9]] == list(Manifest.read(tmp_path / "bundle").stages)
    assert lines[-1].startswith(str(tmp_path / "bundle"))


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_without_verification_no_error_is_claimed(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "captions.tsv"
    table.write_text(
        "label\tcaption\tuse\nowl\tThe owl's hoot\ttrain\nowl\ttu-whoo\theld-out\n", encoding="utf-8"
    )
    code, out, _ = run_export(
        capsys,
        monkeypatch,
        *options,
        "--no-verify",
        f"--captions={table}",
        "--steps=7",
        "--fast-steps=3",
        "--fast-solver=ab2",
        "--kind=masked",
        "--complement=all but {query}",
        "--masked-solver=mean",
        "--mask-exponent=0.8",
        f"--output={tmp_path / 'bundle'}",
    )
    assert code == 0 and "not verified" in out
    model = Manifest.read(tmp_path / "bundle").model
    assert model.schedule("exact", None, None) == (7, "euler")
    assert model.schedule("fast", None, None) == (3, "ab2")
    assert model.schedule("fast", None, None, "masked") == (1, "mean")
    assert (model.default_kind, model.complement) == ("masked", "all but {query}")
    assert model.mask_exponent == 0.8
    assert model.unknown_words("the OWL'S hoot, tu-whoo hoot tu-whoo") == ["tu-whoo"]
    errors = [entry.error for entry in Manifest.read(tmp_path / "bundle").stages.values()]
    assert {error.relative for error in errors} == {error.real_relative for error in errors} == {None}


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_the_default_is_the_bundled_model_and_is_named(
    tiny_model: FlowSep,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundled = tmp_path / "assets" / "small"
    tiny_model.save(bundled)
    (bundled / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    monkeypatch.setattr(FlowSep, "bundled_path", staticmethod(lambda: bundled))
    monkeypatch.chdir(tmp_path)
    code, out, err = run_export(capsys, monkeypatch, "--json")
    assert code == 0
    assert f"the model that ships with the package, {bundled}" in err
    assert "synthetic mixture" in err
    assert json.loads(out)["bundle"] == "bundles/small"
    assert Manifest.read(tmp_path / "bundles" / "small").name == "small"


def test_the_published_checkpoint_is_the_default_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.PUBLISHED_PLACE.parent.mkdir(parents=True)
    cli.PUBLISHED_PLACE.write_bytes(b"no checkpoint")
    code, _, err = run_export(capsys, monkeypatch)
    assert code == 2
    assert "exporting the published checkpoint" in err
    assert "v2_100k.ckpt is refused" in err


@pytest.mark.parametrize(
    "changes, code, said",
    [
        (["--checkpoint=nowhere.ckpt"], 2, "There is no checkpoint nowhere.ckpt"),
        (["--config=nowhere.yaml"], 2, "nowhere.yaml"),
        (["--tokenizer=./nowhere.json"], 2, "There is no tokenizer at"),
        (["--recording=nowhere.wav"], 2, "There is no file nowhere.wav"),
        (["--precision=int3"], 2, "No such option"),
    ],
)
def test_misuse_gets_one_sentence(
    options: list[str],
    changes: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run_export(capsys, monkeypatch, *options, *changes)
    assert found == code
    assert said in err
    assert out == "" and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_sizes_is_named(
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = f"--output={tmp_path / 'bundle'}"
    code, _, err = run_export(capsys, monkeypatch, f"--checkpoint={tiny_checkpoint}", output)
    assert code == 2
    assert "does not fit the configuration" in err and len(err.splitlines()) == 1


def test_an_existing_bundle_is_kept_without_force(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MANIFEST_NAME).write_text("old")
    code, _, err = run_export(capsys, monkeypatch, *options, f"--output={tmp_path}")
    assert code == 2 and "--force" in err
    assert (tmp_path / MANIFEST_NAME).read_text() == "old"


def test_a_checkpoint_that_cannot_be_downloaded_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # nothing listens on the discard port
    monkeypatch.setattr("flowsep_export.download.ZENODO", "http://127.0.0.1:9")
    code, _, err = run_export(
        capsys, monkeypatch, "--checkpoint=published", f"--output={tmp_path / 'bundle'}"
    )
    assert code == 1
    assert str(tmp_path / "cache" / "flowsep" / "checkpoints" / "v2_100k.ckpt") in err
    assert len(err.splitlines()) == 1


def test_an_export_without_onnx_runtime_ends_before_it_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowsep_runtime.backends.onnxruntime import cpu

    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    code, _, err = run_export(capsys, monkeypatch, "--checkpoint=nowhere.ckpt")
    assert code == 2 and "flowsep-engine[cpu]" in err and "or give --no-verify" in err
    code, _, err = run_export(capsys, monkeypatch, "--checkpoint=nowhere.ckpt", "--no-verify")
    assert code == 2 and "There is no checkpoint nowhere.ckpt" in err


def test_a_published_yaml_names_the_checkpoint(
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key from which the published evaluation takes its weights; the path starts above the YAML."""
    (tmp_path / "lass_config").mkdir()
    config, wanted = tmp_path / "lass_config" / "flow.yaml", tmp_path / "logs" / "mine.ckpt"
    config.write_text((data / "configs" / "tiny.yaml").read_text() + "\npretrained_ckpt: logs/mine.ckpt\n")
    arguments = [f"--config={config}", "--no-verify", f"--output={tmp_path / 'bundle'}"]
    code, _, err = run_export(capsys, monkeypatch, *arguments)
    assert code == 2 and len(err.splitlines()) == 1
    assert "has pretrained_ckpt: logs/mine.ckpt, which is not there: give --checkpoint." in err
    wanted.parent.mkdir()
    wanted.write_bytes(tiny_checkpoint.read_bytes()[:1000])
    code, _, err = run_export(capsys, monkeypatch, *arguments)
    said, error = err.splitlines()
    assert said == f"flowsep-export: exporting {wanted}, pretrained_ckpt of {config}"
    assert code == 2 and f"{wanted} is not a PyTorch checkpoint" in error
