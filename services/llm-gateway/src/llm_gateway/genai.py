"""Names of OpenTelemetry's GenAI conventions (status: development, November 2026), all in this one place."""

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"
REQUEST_STREAM: Final = "gen_ai.request.stream"
OUTPUT_TYPE: Final = "gen_ai.output.type"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_INPUT_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
MODALITY_TOKENS: Final = "gen_ai.usage.{modality}.{direction}_tokens"
MODALITY_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.{modality}.cache_read.input_tokens"
MODALITIES: Final = frozenset({"text", "image", "audio"})
"""Of which the conventions have counts, as gen_ai.usage.image.input_tokens; others count as UNKNOWN_MODALITY."""
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
ERROR_TYPE: Final = "error.type"

# Prometheus spelling of the long-standing metrics gen_ai.client.*.
OPERATION_DURATION: Final = "gen_ai_client_operation_duration_seconds"
TIME_TO_FIRST_CHUNK: Final = "gen_ai_client_operation_time_to_first_chunk_seconds"
TIME_PER_OUTPUT_TOKEN: Final = "gen_ai_server_time_per_output_token_seconds"
TIME_PER_OUTPUT_CHUNK: Final = "gen_ai_client_operation_time_per_output_chunk_seconds"
TOKEN_USAGE: Final = "gen_ai_client_token_usage"

# And of the counters gen_ai.client.inference.usage.*, which are newer. Each has the label `modality`.
USED_INPUT: Final = "gen_ai_client_inference_usage_input_tokens_total"
USED_OUTPUT: Final = "gen_ai_client_inference_usage_output_tokens_total"
USED_CACHE_READ: Final = "gen_ai_client_inference_usage_cache_read_input_tokens_total"
USED_CACHE_WRITE: Final = "gen_ai_client_inference_usage_cache_write_input_tokens_total"
USED_REASONING: Final = "gen_ai_client_inference_usage_reasoning_output_tokens_total"
UNKNOWN_MODALITY: Final = "unknown"
"""Of what has no modality of the conventions, and of an inference that failed and so used 0 of nobody knows what."""

DURATION_BUCKETS_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
OUTPUT_TOKEN_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))

PROVIDER_NAMES: Final = {
    "google": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "azure": "azure.ai.openai",
    "aws": "aws.bedrock",
}
"""Where the conventions call a provider otherwise than the catalogue does."""
