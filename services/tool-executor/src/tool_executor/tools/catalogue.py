"""The list of all tools. A new tool is a new file beside this one and a line here."""

from tool_executor.tools import (
    calc,
    chart_render,
    csv_profile,
    date,
    file_read,
    file_write,
    http_fetch,
    json_query,
    python_exec,
    sql_query,
    text_stats,
)
from tool_executor.tools.tool import Tool

TOOLS: tuple[Tool, ...] = (
    calc.TOOL,
    chart_render.TOOL,
    csv_profile.TOOL,
    date.TOOL,
    file_read.TOOL,
    file_write.TOOL,
    http_fetch.TOOL,
    json_query.TOOL,
    python_exec.TOOL,
    sql_query.TOOL,
    text_stats.TOOL,
)


def catalogue() -> tuple[Tool, ...]:
    """Every tool of this executor, in order of name."""
    return TOOLS
