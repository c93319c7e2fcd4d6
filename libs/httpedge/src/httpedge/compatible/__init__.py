"""The edge for programs written for OpenAI or Anthropic: their wire formats in front of llm-gateway, with Synod's keys."""
