"""What goes back to a provider as it came, in a Reasoning of its dialect: the edge carries it, llm-gateway lets it through."""

from typing import Final

ANTHROPIC_BLOCKS: Final = (
    "thinking",
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "web_fetch_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "compaction",
)
"""Types of content blocks that only models of Anthropic make."""
