"""Times several functions in turn, so that other load on the machine affects all of them equally."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Timing:
    """Durations of single calls, seconds."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile."""
        if len(self.seconds) < 2:
            return self.median, self.median
        quarters = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return quarters[0], quarters[2]


def interleaved(
    calls: Mapping[str, Callable[[], object]], seconds: float = 10.0, rounds: int = 5, warm_up: int = 2
) -> dict[str, Timing]:
    """Times each function for about `seconds` in total, in `rounds` rounds with a different order in each.

    Args:
      calls: name -> function that returns when its work is done.
      seconds: total time per function.
      rounds: number of rounds.
      warm_up: number of untimed calls of each function before the first round.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            end = time.perf_counter() + seconds / rounds
            while True:
                start = time.perf_counter()
                calls[name]()
                found[name].append(time.perf_counter() - start)
                if time.perf_counter() >= end:
                    break
    return {name: Timing(durations) for name, durations in found.items()}
