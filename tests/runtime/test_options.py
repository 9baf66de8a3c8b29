"""The options of a separation are declared once: every way to ask for one knows all of them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import click
import numpy as np
import pytest

from flowsep_batch import cli as batch_cli
from flowsep_eval import cli as eval_cli
from flowsep_runtime import OptionError, QueryError, Separator
from flowsep_runtime.app import cli
from flowsep_runtime.options import OptionFields, Options
from tests.runtime.toy_bundle import MODEL

COMMANDS = {
    "flowsep-run": cli.command,
    "flowsep-eval": eval_cli.run_command,
    "flowsep-batch": batch_cli.command,
}


def test_options_and_their_keyword_arguments_are_the_same() -> None:
    hints = get_type_hints(Options)
    assert get_type_hints(OptionFields) == {field.name: hints[field.name] for field in fields(Options)}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_option_is_one_of_the_command_line_with_the_same_default(command: click.Command) -> None:
    offered = {parameter.name: parameter for parameter in command.params}
    given = command.make_context("test", ["one", "--output", "two"]).params
    hints = get_type_hints(Options)
    for field in fields(Options):
        assert given[field.name] == field.default, field.name
        kind = offered[field.name].type
        if isinstance(kind, click.Choice):
            literals = (hints[field.name], *get_args(hints[field.name]))
            assert tuple(kind.choices) in [get_args(each) for each in literals]


@pytest.mark.parametrize("method", [Separator.separate, Separator.separate_all, Separator.stream])
def test_no_method_lists_an_option_again(method: Any) -> None:
    named = set(inspect.signature(method).parameters) - {"options"}
    assert not named & {field.name for field in fields(Options)}
    assert "options" in inspect.signature(method).parameters


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"seed": -1},
        {"solver": "guess"},
        {"guidance": float("inf")},
        {"guidance": 1e30},
        {"negative": "wind"},
        {"windows": "glued"},
        {"kind": "painted"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=name if name != "negative" else "negative query"):
        Options(**options)


@pytest.mark.parametrize("window", [0, -1.0, 11])
def test_a_window_that_the_model_does_not_take_is_refused(window: float) -> None:
    with pytest.raises(OptionError, match="window must be"):
        Options(window=window).resolved(MODEL, "exact")


def test_a_window_below_a_sample_is_the_shortest_there_is() -> None:
    """Without this, a recording had no end of windows."""
    multiple = MODEL.hop_length * MODEL.frame_multiple
    for window in (1e-300, 1e-9, 1e-3):
        assert Options(window=window).windowed(MODEL).clip_samples == multiple


def test_defaults_are_the_bundles() -> None:
    assert Options().resolved(MODEL, "exact").steps == MODEL.default_steps
    given = Options(steps=7, solver="midpoint", kind="masked")
    assert given.resolved(MODEL, "exact").fields() == given.fields()


def test_a_list_of_queries_for_one_separation_is_refused(separator: Separator) -> None:
    with pytest.raises(QueryError, match="separate_all"):
        separator.separate(np.zeros(10, np.float32), 16_000, ["rain"])  # type: ignore[arg-type]
