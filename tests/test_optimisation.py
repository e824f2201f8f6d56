"""Optimisers against their formulas, one step; the course of the learning rate."""

import itertools

import pytest
import torch
from torch import nn

from dsfer.optimisation import EXPONENTIAL_END, build_optimiser, rate_factor


def stepped(name, steps=1, **settings):
    """A weight of 2 whose gradient is 0.5, after some steps."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = build_optimiser(name, [weight], lr=0.1, **settings)
    for _ in range(steps):
        weight.grad = torch.full_like(weight, 0.5)
        optimiser.step()
    return weight.item()


def test_adam_decays_inside_the_gradient_and_adamw_beside_it():
    # A first step of Adam has the length of the rate, whatever the gradient.
    assert stepped("adam", weight_decay=0.3) == pytest.approx(2 - 0.1)
    assert stepped("adamw", weight_decay=0.3) == pytest.approx(2 - 0.1 * 0.3 * 2 - 0.1)


def test_momentum_is_that_of_sgd_and_the_first_beta_of_adam():
    first = 2 - 0.1 * (0.5 + 0.2 * 2)
    velocity = 0.9 * (0.5 + 0.2 * 2) + 0.5 + 0.2 * first
    assert stepped("sgd", weight_decay=0.2) == pytest.approx(first)
    assert stepped("sgd", steps=2, weight_decay=0.2) == pytest.approx(first - 0.1 * velocity)
    for name in ("adam", "adamw"):
        built = build_optimiser(
            name, [nn.Parameter(torch.zeros(1))], lr=1, weight_decay=0, momentum=0.5
        )
        assert built.defaults["betas"] == (0.5, 0.999)


def test_what_asks_for_no_gradient_is_left_alone():
    fixed, free = (nn.Parameter(torch.ones(1), requires_grad=r) for r in (False, True))
    built = build_optimiser("adamw", [fixed, free], lr=1, weight_decay=0.1)
    assert [p is free for group in built.param_groups for p in group["params"]] == [True]


def test_constant_stays_and_linear_may_be_held():
    assert {rate_factor("constant", k, 10) for k in range(20)} == {1}
    held = [rate_factor("linear", k, 200, hold=100) for k in (0, 100, 150, 200, 300)]
    assert held == pytest.approx([1, 1, 0.5, 0, 0])


def test_exponential_loses_five_percent_in_each_of_fifty_epochs():
    epoch = 20
    rates = [rate_factor("exponential", epoch * e, 50 * epoch) for e in range(51)]
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    assert ratios == pytest.approx([0.95] * 50)
    assert rate_factor("exponential", 10**6, 50 * epoch) == pytest.approx(EXPONENTIAL_END)


@pytest.mark.parametrize("schedule", ["constant", "linear", "poly", "cosine", "exponential"])
def test_every_schedule_rises_while_it_warms_up_and_never_leaves_0_to_1(schedule):
    factors = [rate_factor(schedule, k, 50, warmup=5) for k in range(60)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert all(0 <= f <= 1 for f in factors)
    assert factors[5:] == sorted(factors[5:], reverse=True)
