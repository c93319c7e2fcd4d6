"""Counters, gauges and histograms for what happens with every call: plain numbers, shown as prometheus_client shows its own.

Its own take a lock for each number and four calls to get there, because threads may share them; a service counts in the
thread of its loop alone, which also answers a scrape, and twenty times for one model call. Names, series and exposition
are the same to the byte. For what changes seldom, or is counted in threads, use prometheus_client.
"""

import time
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_Sample = tuple[str, dict[str, str], float]
"""What is appended to the name of its metric, labels beside those of the series, and the value."""


class _Series:
    """One combination of labels. `samples` are what a scrape shows of it."""

    __slots__ = ("_created",)

    def __init__(self) -> None:
        self._created = time.time()

    @abstractmethod
    def samples(self) -> Iterator[_Sample]: ...


_S = TypeVar("_S", bound=_Series)


class _Family(Collector, Generic[_S]):
    """All series of a name. One without labels has its only series from the start."""

    kind: Literal["counter", "gauge", "histogram"]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._series: dict[tuple[str, ...], _S] = {}
        self._only = None if labelnames else self.labels()
        registry.register(self)

    def labels(self, *values: str) -> _S:
        """The series of these labels, in the order of their names. Raises ValueError for too few or too many."""
        series = self._series.get(values)
        return self._begun(values) if series is None else series

    def describe(self) -> Iterable[Metric]:
        """For the registry, which refuses a name that it has."""
        return [Metric(self._name, self._documentation, self.kind)]

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self._name, self._documentation, self.kind)
        for values, series in self._series.items():
            labels = dict(zip(self._labelnames, values, strict=True))
            for suffix, more, value in series.samples():
                metric.add_sample(self._name + suffix, labels | more, value)
        return [metric]

    def _begun(self, values: tuple[str, ...]) -> _S:
        if len(values) != len(self._labelnames):
            raise ValueError(f"{self._name} has the labels {self._labelnames}, not {len(values)}")
        series = self._series[values] = self._new()
        return series

    @abstractmethod
    def _new(self) -> _S: ...


class CounterSeries(_Series):
    __slots__ = ("_value",)

    def __init__(self) -> None:
        super().__init__()
        self._value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Raises ValueError for less than nothing."""
        if amount < 0:
            raise ValueError("a counter only grows")
        self._value += amount

    def samples(self) -> Iterator[_Sample]:
        yield "_total", {}, self._value
        yield "_created", {}, self._created


class Counter(_Family[CounterSeries]):
    """`name` may end in "_total", as it is shown."""

    kind = "counter"

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name.removesuffix("_total"), documentation, labelnames, registry=registry)

    def inc(self, amount: float = 1) -> None:
        """Of one without labels."""
        (self._only or self.labels()).inc(amount)

    def _new(self) -> CounterSeries:
        return CounterSeries()


class GaugeSeries(_Series):
    __slots__ = ("_value",)

    def __init__(self) -> None:
        super().__init__()
        self._value = 0.0

    def inc(self, amount: float = 1) -> None:
        self._value += amount

    def dec(self, amount: float = 1) -> None:
        self._value -= amount

    def set(self, value: float) -> None:
        self._value = value

    def samples(self) -> Iterator[_Sample]:
        yield "", {}, self._value


class Gauge(_Family[GaugeSeries]):
    kind = "gauge"

    def inc(self, amount: float = 1) -> None:
        """Of one without labels, as the others."""
        (self._only or self.labels()).inc(amount)

    def dec(self, amount: float = 1) -> None:
        (self._only or self.labels()).dec(amount)

    def set(self, value: float) -> None:
        (self._only or self.labels()).set(value)

    def _new(self) -> GaugeSeries:
        return GaugeSeries()


class Bounds(tuple[float, ...]):
    """The upper ends of a histogram's buckets, the last of which has none. Raises ValueError if they do not rise."""

    __slots__ = ()

    def __new__(cls, ends: Sequence[float]) -> "Bounds":
        bounds = [*map(float, ends), *([] if ends and ends[-1] == inf else [inf])]
        if bounds != sorted(bounds) or len(bounds) == 1:
            raise ValueError(f"buckets must be some, and rise: {ends}")
        return super().__new__(cls, bounds)


class HistogramSeries(_Series):
    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds: Final = bounds
        self._counts = [0.0] * len(bounds)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """A value belongs to the first bucket whose end is not below it."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def samples(self) -> Iterator[_Sample]:
        total = 0.0
        for bound, total in zip(self._bounds, accumulate(self._counts), strict=True):
            yield "_bucket", {"le": floatToGoString(bound)}, total  # type: ignore[no-untyped-call]
        yield "_count", {}, total
        if self._bounds[0] >= 0:
            yield "_sum", {}, self._sum
        yield "_created", {}, self._created


class Histogram(_Family[HistogramSeries]):
    kind = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._bounds = Bounds(buckets)
        super().__init__(name, documentation, labelnames, registry=registry)

    def observe(self, amount: float) -> None:
        """Of one without labels."""
        (self._only or self.labels()).observe(amount)

    def _new(self) -> HistogramSeries:
        return HistogramSeries(self._bounds)
