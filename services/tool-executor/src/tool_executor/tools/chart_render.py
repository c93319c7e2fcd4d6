"""chart_render: draw a chart as a PNG file into the run's workspace."""

import hashlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from tool_executor.sandboxes.sandbox import MIB, Access, Level, Limits
from tool_executor.tools.profiles import CHART
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
POINTS_MAX = 10_000
LABELS_SHOWN_MAX = 60
BAR_GROUP_WIDTH = 0.8


class Series(Arguments):
    name: str = Field(max_length=100)
    values: tuple[float | None, ...] = Field(min_length=1, max_length=POINTS_MAX, description="null leaves a gap.")


class ChartArguments(Arguments):
    kind: Literal["bar", "line", "scatter"]
    x: tuple[str | float, ...] = Field(
        min_length=1, max_length=POINTS_MAX, description="Labels, or numbers for line and scatter."
    )
    series: tuple[Series, ...] = Field(min_length=1, max_length=20)
    path: str = Field(pattern=r"\.png$", description="Relative path in the workspace, ending in .png.")
    title: str = Field(default="", max_length=200)
    x_label: str = Field(default="", max_length=100)
    y_label: str = Field(default="", max_length=100)
    log_y: bool = Field(default=False, description="Logarithmic y axis, for values over many magnitudes.")
    width: int = Field(default=900, ge=200, le=2400, description="Pixels.")
    height: int = Field(default=540, ge=150, le=1600, description="Pixels.")

    @model_validator(mode="after")
    def series_fit_x(self) -> Self:
        for series in self.series:
            if len(series.values) != len(self.x):
                count = f"has {len(series.values)} values, x has {len(self.x)}"
                raise ValueError(f"series {series.name!r} {count}; give one value (or null) for each x")
        if self.kind == "scatter" and not all(isinstance(value, float) for value in self.x):
            raise ValueError("scatter needs numbers in x; use bar or line for labels")
        return self


class ChartResult(Result):
    path: str
    sha256: str
    width: int
    height: int
    size_bytes: int

    def artefacts(self) -> tuple[str, ...]:
        return (self.path,)


def run(arguments: ChartArguments, workspace: Workspace) -> ChartResult:
    """ToolError INVALID_PATH, TOO_LARGE. Equal arguments give equal bytes with the same version of matplotlib."""
    png = _png(arguments)
    workspace.write_bytes(arguments.path, png)
    return ChartResult(
        path=arguments.path,
        sha256=hashlib.sha256(png).hexdigest(),
        width=arguments.width,
        height=arguments.height,
        size_bytes=len(png),
    )


def _png(arguments: ChartArguments) -> bytes:
    # Imported here, because the executor reads the manifests of all tools and must stay small.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (arguments.width / DOTS_PER_INCH, arguments.height / DOTS_PER_INCH)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, arguments)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw(figure: "Figure", arguments: ChartArguments) -> None:
    axes = figure.subplots()
    match arguments.kind:
        case "bar":
            _bars(axes, arguments)
        case "line":
            _lines(axes, arguments)
        case "scatter":
            _points(axes, arguments)
    axes.set(title=_plain(arguments.title), xlabel=_plain(arguments.x_label), ylabel=_plain(arguments.y_label))
    axes.set_yscale("log" if arguments.log_y else "linear")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(arguments.series) > 1:
        axes.legend(frameon=False)


def _bars(axes: "Axes", arguments: ChartArguments) -> None:
    width = BAR_GROUP_WIDTH / len(arguments.series)
    for index, series in enumerate(arguments.series):
        shift = (index + 0.5) * width - BAR_GROUP_WIDTH / 2
        places = [place + shift for place in range(len(arguments.x))]
        axes.bar(places, _numbers(series.values), width, label=_plain(series.name))
    _name_ticks(axes, arguments.x)


def _lines(axes: "Axes", arguments: ChartArguments) -> None:
    numeric = all(isinstance(value, float) for value in arguments.x)
    places = list(arguments.x) if numeric else list(range(len(arguments.x)))
    marker = "o" if len(places) <= LABELS_SHOWN_MAX else ""
    for series in arguments.series:
        axes.plot(places, _numbers(series.values), marker=marker, markersize=4, label=_plain(series.name))
    if not numeric:
        _name_ticks(axes, arguments.x)


def _points(axes: "Axes", arguments: ChartArguments) -> None:
    for series in arguments.series:
        axes.scatter(list(arguments.x), _numbers(series.values), s=16, alpha=0.7, label=_plain(series.name))


def _name_ticks(axes: "Axes", x: Sequence[str | float]) -> None:
    """Every label as long as they fit; then every second, third, ..."""
    step = math.ceil(len(x) / LABELS_SHOWN_MAX)
    labels = [_plain(value if isinstance(value, str) else f"{value:g}") for value in x[::step]]
    crowded = sum(map(len, labels)) > 80
    axes.set_xticks(range(0, len(x), step), labels, rotation=45 if crowded else 0, ha="right" if crowded else "center")


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _plain(text: str) -> str:
    """A dollar sign is a price here, not the beginning of a formula."""
    return text.replace("$", r"\$")


TOOL = PureTool(
    name="chart_render",
    version="1.0.0",
    title="Draw a chart",
    description="Draws a bar, line or scatter chart and stores it as a PNG file in this run's workspace.",
    arguments=ChartArguments,
    result=ChartResult,
    effect=Effect.IDEMPOTENT,
    min_level=Level.L1,
    profile=CHART,
    access=Access.WRITE,
    limits=Limits(memory_bytes=1024 * MIB, cpu_s=20),
    run=run,
    self_tests=(
        SelfTest(
            arguments={
                "kind": "bar",
                "x": ["a", "b"],
                "series": [{"name": "cost $", "values": [1, 2.5]}],
                "path": "chart.png",
                "width": 400,
                "height": 300,
            },
            expected={"path": "chart.png", "width": 400, "height": 300},
        ),
        SelfTest(
            arguments={"kind": "line", "x": [1], "series": [{"name": "s", "values": [1, 2]}], "path": "chart.png"},
            error="INVALID_ARGUMENTS",
        ),
        SelfTest(
            arguments={"kind": "bar", "x": ["a"], "series": [{"name": "s", "values": [1]}], "path": "../a.png"},
            error="INVALID_PATH",
        ),
    ),
)
