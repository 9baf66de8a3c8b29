"""A half-precision export is refused when float32 calibration meets numbers that half cannot hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowsep_export.errors import RangeError
from flowsep_export.graphs import graphs
from flowsep_export.ranges import graph_inputs, largest_activation
from flowsep_export.stage_inputs import random_inputs
from flowsep_ref import FlowSep
from flowsep_runtime.bundle.manifest import GRAPHS
from tests.export.conftest import Exported


class Product(nn.Module):
    """Half-precision linear layer between float32 ends, and an island that is larger than half's range."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.linear.weight, gain)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.linear(x.half())
        return 1e6 * product.float()


def traced(gain: float) -> torch.export.ExportedProgram:
    return torch.export.export(Product(gain), (torch.zeros(2, 4),))


def test_the_largest_half_tensor_is_found_and_named() -> None:
    entry = largest_activation("g", traced(100.0), [(torch.ones(2, 4),), (2 * torch.ones(2, 4),)])
    assert entry is not None
    assert entry.largest == pytest.approx(800.0)
    assert "linear" in entry.tensor


def test_a_value_beyond_the_limit_fails_and_names_its_tensor() -> None:
    with pytest.raises(RangeError, match=r"graph g: linear.* reaches 4e\+04"):
        largest_activation("g", traced(10000.0), [(torch.ones(2, 4),)])


def test_a_value_that_half_would_turn_to_infinity_is_measured_all_the_same() -> None:
    with pytest.raises(RangeError, match=r"reaches 2e\+05"):
        largest_activation("g", traced(50000.0), [(torch.ones(2, 4),)])


def test_a_nan_activation_fails_the_export() -> None:
    with pytest.raises(RangeError, match="nan"):
        largest_activation("g", traced(1.0), [(torch.full((2, 4), float("nan")),)])


def test_a_float32_graph_has_no_range() -> None:
    program = torch.export.export(nn.Linear(4, 4), (torch.zeros(2, 4),))
    assert largest_activation("g", program, [(torch.ones(2, 4),)]) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_calibration_feeds_every_graph_what_it_takes(tiny_model: FlowSep, name: str) -> None:
    table = graphs(tiny_model)
    case = random_inputs(tiny_model.config, 32, batch=2, seed=0)
    fed = list(graph_inputs(name, table, tiny_model, [case]))
    assert fed
    for tensors in fed:
        assert [len(tensor.shape) for tensor in tensors] == [len(spec.shape) for spec in table[name].inputs]
        with torch.inference_mode():
            table[name].module(*tensors)


def test_the_half_bundle_tells_its_ranges(tiny_half_bundle: Exported) -> None:
    ranges = tiny_half_bundle.answer["ranges"]
    assert set(ranges) == set(GRAPHS) - {"log_mel", "velocity_time"}
    assert all(0 < entry["largest"] <= entry["limit"] == 3e4 for entry in ranges.values())
