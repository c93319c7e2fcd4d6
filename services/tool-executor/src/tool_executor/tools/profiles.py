"""Which imports are warm when a tool starts. A profile is one zygote; it is started by the first call that needs it."""

from tool_executor.sandboxes.zygote_process import Profile

_ENTRY = "tool_executor.tools.entry"

PLAIN = Profile(
    "plain", (_ENTRY, "jmespath", "csv", "tool_executor.tools.csv_profile", "tool_executor.tools.json_query")
)
PYTHON = Profile(
    "python",
    (
        *(_ENTRY, "tool_executor.tools.python_exec", "numpy"),
        *("math", "cmath", "statistics", "decimal", "fractions", "random", "re", "string", "textwrap", "itertools"),
        *("functools", "collections", "datetime", "calendar", "json", "csv", "heapq", "bisect", "hashlib", "zoneinfo"),
    ),
)
# DuckDB looks up its control group, and takes a file that it can see but not open for a bug of its own.
DATA = Profile(
    "data",
    (_ENTRY, "duckdb", "sqlglot", "sqlglot.dialects.duckdb", "tool_executor.tools.sql_query"),
    readable=("/proc/self/cgroup", "/sys/fs/cgroup"),
)
CHART = Profile(
    "chart",
    (
        *(_ENTRY, "tool_executor.tools.chart_render"),
        *(
            "matplotlib.figure",
            "matplotlib.backends.backend_agg",
            "matplotlib.font_manager",
            "PIL.BmpImagePlugin",
            "PIL.GifImagePlugin",
            "PIL.JpegImagePlugin",
            "PIL.PpmImagePlugin",
            "PIL.PngImagePlugin",
        ),
    ),
)
