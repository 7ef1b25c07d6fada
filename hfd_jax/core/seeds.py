"""Seeds of any size for libraries that take 32 bits."""

import numpy as np


def word(seed: int) -> int:
    """Maps a seed of 0 or more to a number below 2**32: itself if it fits, otherwise a hash of all its bits.

    JAX would ignore the higher bits, and grain refuses them. A date and time (20261126102413) is a common seed.
    """
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])
