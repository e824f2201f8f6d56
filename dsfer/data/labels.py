"""Label rules: how the values stored in a label file become 0 (unchanged) and 1 (changed).

Published labels differ: {0, 255} in LEVIR-CD, {0, 1} in WHU-CD, JPEG with ringing around both ends
in CDD. Guessing turns one of them into an empty mask without a word, so each data set declares its
rule and every label is checked against it.
"""

from dataclasses import dataclass

import numpy as np

from dsfer.data.tars import Pixels
from dsfer.errors import ConfigError, LabelError
from dsfer.paths import AnyPath


@dataclass(frozen=True)
class LabelRule:
    """How label values are read.

    Attributes:
        meaning: the rule in words.
        allowed: values that may occur.
        threshold: lowest value that means changed.
        changed: value that a label of this rule stores for changed pixels (0 is unchanged).
    """

    meaning: str
    allowed: frozenset[int]
    threshold: int
    changed: int


LABEL_RULES = {
    "binary255": LabelRule("0 unchanged, 255 changed", frozenset({0, 255}), 255, 255),
    "binary01": LabelRule("0 unchanged, 1 changed", frozenset({0, 1}), 1, 1),
    "threshold128": LabelRule(
        "128 and above changed, any value allowed", frozenset(range(256)), 128, 255
    ),
    # Last: where values fit no other rule, `threshold128` is the likelier meaning.
    "only255": LabelRule("255 alone changed, any value allowed", frozenset(range(256)), 255, 255),
}


def label_rule(name: str) -> LabelRule:
    """Return the rule called `name`.

    Raises:
        ConfigError: there is no such rule.
    """
    if name not in LABEL_RULES:
        raise ConfigError(
            f"unknown label rule '{name}'",
            where="label_rule",
            mend=f"choose one of {', '.join(LABEL_RULES)}",
        )
    return LABEL_RULES[name]


def label_values(raw: Pixels) -> list[int]:
    """Values that occur in a label of any shape, ascending."""
    return [int(value) for value in np.flatnonzero(np.bincount(raw.ravel(), minlength=256))]


def decode_label(raw: Pixels, rule: str, where: str | AnyPath) -> Pixels:
    """Read a label by a declared rule.

    Args:
        raw: values as stored, uint8, any shape.
        rule: a key of `LABEL_RULES`.
        where: file (and window) that the values come from, for the message.

    Returns:
        uint8 array of the same shape: 0 unchanged, 1 changed.

    Raises:
        LabelError: `raw` is not uint8, or holds values that the rule does not allow; the message
            names them and the rule that would fit.
        ConfigError: there is no such rule.
    """
    declared = label_rule(rule)
    if raw.dtype != np.uint8:
        raise LabelError(
            f"label samples are {raw.dtype}, not 8 bit",
            where=where,
            mend="store the label as one 8-bit band",
        )
    found = label_values(raw)
    wrong = [value for value in found if value not in declared.allowed]
    if wrong:
        fitting = next(
            name for name, other in LABEL_RULES.items() if other.allowed.issuperset(found)
        )
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise LabelError(
            f"label holds the values {shown}, which the rule {rule} ({declared.meaning}) "
            "does not allow",
            where=where,
            mend=f"set label_rule: {fitting} ({LABEL_RULES[fitting].meaning}) if that is what "
            "this label means, or correct the file",
        )
    return (raw >= declared.threshold).astype(np.uint8)
