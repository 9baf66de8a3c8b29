"""The ways in which OpenVINO can run a graph, in the order of preference."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import NamedTuple

#: Version of all that is changed in a graph before it is compiled (`channels_last.py`, `weights.narrow`);
#: raise it with every change, because it is part of the key of compiled graphs.
REVISION = 2


class CompileSettings(NamedTuple):
    """One way to run a graph: messages and cache entries contain `name`."""

    name: str
    properties: Mapping[str, str]
    rewritten: bool = False

    @property
    def quick(self) -> bool:
        """True for an arithmetic other than float32."""
        return self.properties["INFERENCE_PRECISION_HINT"] != "f32"

    @property
    def identity(self) -> str:
        """Key of a compiled graph besides its file: the name, and the version of what is changed in it."""
        return f"{self.name}, revision {REVISION}"


_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
_UNFUSED = {"SNIPPETS_MODE": "DISABLE"}

#: In the order of the tests. The others are compared with the last two.
EXACT = (CompileSettings("float32", _FLOAT32), CompileSettings("float32 without fusion", _FLOAT32 | _UNFUSED))
EXACT_REWRITTEN = (
    CompileSettings("float32", _FLOAT32, rewritten=True),
    CompileSettings("float32 as exported", _FLOAT32),
    EXACT[1],
)
#: Tried before those.
FAST = (CompileSettings("bf16", _BF16), CompileSettings("bf16 without fusion", _BF16 | _UNFUSED))
FAST_REWRITTEN = (
    CompileSettings("bf16", _BF16, rewritten=True),
    CompileSettings("bf16 as exported", _BF16),
    FAST[1],
)

#: The graphs that take most of the time. The others run once for a window or a query and stay in float32:
#: their rounding would affect every step of the solver and save no time. A large text encoder is an
#: exception, if the export found that it bears bf16 (`ModelEntry.quick_text`).
QUICK_GRAPHS = ("encode_mixture", "velocity", "decode_latent", "vocode")
#: Those that work on images, and the processors on which rewriting them was measured to pay (not ARM's).
REWRITTEN_GRAPHS = ("encode_mixture", "velocity", "decode_latent")
REWRITTEN_ON = ("x86_64", "amd64")


def choices(graph: str, quick: bool) -> tuple[CompileSettings, ...]:
    """The settings of a graph in the order of preference; the last two compute it in float32 as exported.

    Args:
        graph: Its name.
        quick: With bf16 before float32.
    """
    rewritten = graph in REWRITTEN_GRAPHS and platform.machine().lower() in REWRITTEN_ON
    exact = EXACT_REWRITTEN if rewritten else EXACT
    if not quick:
        return exact
    return (FAST_REWRITTEN if rewritten else FAST) + exact
