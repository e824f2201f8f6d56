"""Enlarging maps: torch's own operator, in either direction."""

import pytest
import torch
from torch.nn import functional as F

from dsfer.models.resize import _enlarge, enlarge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("factor", [2, 3])
def test_values_and_gradients_are_those_of_interpolate(dtype, layout, factor):
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 5, 7, dtype=dtype).to(memory_format=layout).requires_grad_()
    ours = enlarge(maps, factor)
    theirs = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(ours)
    mine, its = (torch.autograd.grad(x, maps, gradient)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, its)
    with torch.no_grad():
        assert torch.equal(enlarge(maps, factor), theirs)


def test_the_type_stays_under_autocast():
    maps = torch.randn(1, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert enlarge(maps, 2).dtype == torch.bfloat16
        assert enlarge(maps.detach(), 2).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torch_can_compile_and_trace_it(layout):
    maps = torch.randn(2, 3, 4, 4).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(_enlarge, (maps, 2))
