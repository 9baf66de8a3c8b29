"""CLAPScore and FAD, on a CLAP model of random weights: the numbers mean nothing, their arithmetic does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowsep_eval import evaluate, metrics, read_manifest
from flowsep_eval.clap import Clap
from flowsep_eval.scores import together
from flowsep_runtime import Separator
from flowsep_runtime.errors import OptionError
from tests.evaluation.conftest import tone

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "high", "low", "tone", "rain"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP checkpoint as transformers saves it, of tiny sizes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 40,
    }
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "hidden_size": 16,
        "window_size": 8,
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clap")
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(folder)
    ClapProcessor(
        feature_extractor=ClapFeatureExtractor(truncation="rand_trunc"),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=20
        ),
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_scores_are_cosines_of_embeddings_and_the_fad_their_distance(
    checkpoint: Path, toy_bundle: Path, test_set: Path
) -> None:
    clap = Clap(checkpoint)
    items = read_manifest(test_set)
    scores = evaluate(Separator.load(toy_bundle, threads=1), items, steps=1, ceiling=False, clap=clap)
    high = scores.scored[0]
    (target,) = clap.audio([tone(3000.0)])
    wanted = metrics.cosine_similarity(target, clap.text("a high tone"))
    assert high.values["clap_score_target"] == pytest.approx(wanted, abs=1e-4)
    assert -1 <= high.values["clap_score"] <= 1
    # the sound that is not there has a score, and no part in the distance
    assert "clap_score" in scores.scored[2].values and "clap_score_target" not in scores.scored[2].values
    total = scores.overall()
    assert total["fad"].count == 2 and total["fad"].low is None
    assert total["fad"].mean == metrics.frechet_distance(
        scores.embeddings["output"], scores.embeddings["target"]
    )
    assert total["fad_mixture"].mean > 0
    assert together([scores, scores]).overall()["fad"].count == 4


def test_long_recordings_have_one_embedding(checkpoint: Path) -> None:
    """The feature extractor takes ten seconds of them at random."""
    clap = Clap(checkpoint)
    noise = np.random.default_rng(0).standard_normal(12 * 16000).astype(np.float32)
    np.random.seed(1)
    first, again = clap.audio([noise]), clap.audio([noise])
    assert np.array_equal(first, again)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after  # the caller's generator is as it was


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is no CLAP checkpoint: give a folder"):
        Clap(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="is no CLAP checkpoint that transformers reads"):
        Clap(tmp_path)
