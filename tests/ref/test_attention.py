"""Long attention takes PyTorch's fused kernel; it computes what the written-out form does."""

from __future__ import annotations

import pytest
import torch

from flowsep_ref import layers


@pytest.mark.slow
def test_the_fused_kernel_and_the_written_out_form_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 40, 8, generator=generator) for _ in range(3))
    written = layers.attend(q, k, v, scale=0.3)
    monkeypatch.setattr(layers, "LONG", 0)
    fused = layers.attend(q, k, v, scale=0.3)
    assert not torch.equal(fused, torch.zeros_like(fused))
    torch.testing.assert_close(fused, written, rtol=1e-5, atol=1e-6)
