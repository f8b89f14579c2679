"""Where the randomness of a sample comes from."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn; each has numbers of its own, so that one option never changes what another draws."""

    IMAGE = 1
    MIX = 2
    TEXT = 3
    TURN = 4
    WRONG_TEXT = 5


def generator(stream: Stream, *key: int) -> np.random.Generator:
    """A generator that is a function of the stream and ``key`` (seed, epoch, index; all ≥ 0)."""
    return np.random.Generator(np.random.PCG64([stream, *key]))
