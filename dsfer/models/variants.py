"""The rows of Table III: Dsfer-Net, and what is left of it without one part or another."""

from typing import Literal, get_args

Variant = Literal["base+concat", "base+cf", "base+concat+dsfr", "base+cf+dsfr"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""Concatenation or comprehensive fusion (cf), without and with retrieval (dsfr); the last is
Dsfer-Net."""
