"""Kubernetes quantities (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).

Invariant: ``canonical_quantity`` writes an amount as the API server would write it back, so that an object that is read
again equals what was sent. Amounts are exact fractions; no float ever stands for one.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache

from finetune_api.base import QUANTITY

_DECIMAL = {name: Fraction(1000) ** power for power, name in enumerate(("n", "u", "m", "", "k", "M", "G", "T"), -3)}
_BINARY = {name: Fraction(1024) ** power for power, name in enumerate(("", "Ki", "Mi", "Gi", "Ti"))}
_SUFFIXES = _BINARY | _DECIMAL
_REMEMBERED = 1024
"""Jobs ask for the same few amounts again and again."""


@lru_cache(_REMEMBERED)
def parse_quantity(text: str) -> Fraction:
    """The amount that a quantity stands for: cores, bytes.

    Raises:
        ValueError: It is not a quantity as ``finetune_api.base.QUANTITY`` has it.
    """
    if not re.fullmatch(QUANTITY, text):
        raise ValueError(f"{text!r} is not a quantity such as 500m or 16Gi")
    number = text.rstrip("mkKMGTi")
    return Fraction(number) * _SUFFIXES[text.removeprefix(number)]


@lru_cache(_REMEMBERED)
def canonical_quantity(text: str) -> str:
    """The same amount with the largest suffix that leaves a whole number: 1024Mi is 1Gi, 0.5 is 500m.

    It keeps a binary suffix if it is a whole number of 1,024 bytes or more, and is rounded up to a billionth
    (CanonicalizeBytes in k8s.io/apimachinery/pkg/api/resource).
    """
    amount = parse_quantity(text)
    is_binary = text.endswith("i") and amount >= _BINARY["Ki"] and amount.denominator == 1
    units = _BINARY if is_binary else _DECIMAL
    amount = math.ceil(amount / _DECIMAL["n"]) * _DECIMAL["n"]
    suffix = next(name for name in reversed(units) if (amount / units[name]).denominator == 1)
    return f"{amount / units[suffix]}{suffix if amount else ''}"
