"""Settings of llm-gateway, read once from the environment.

Providers are configured by the variables their own tools use (OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY,
OLLAMA_HOST); all else is SYNOD_*.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)
from pydantic_settings import SettingsConfigDict
from servicekit.limits import Limits
from servicekit.settings import ServiceSettings

from llm_gateway.balancing import Strategy
from llm_gateway.domain import Abort
from llm_gateway.limits import LimitRule
from llm_gateway.providers.proxies import Proxies, read_proxies
from llm_gateway.renewals import TTL_S


def _by(variable: str, field: str) -> AliasChoices:
    """Read from the environment under the provider's own name, and given in code under the field's."""
    return AliasChoices(variable, field)


class EdgeLimits(BaseModel):
    """Every limit of the edge, named with its unit. Override one by SYNOD_EDGE__<NAME>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes_max: PositiveInt = 16 * 1024 * 1024
    """The largest body of a request, where a conversation may hold images and files; gRPC takes no more either."""
    call_s: PositiveFloat = 600
    """How long a call may take; the SDKs wait as long."""
    keys_cached_max: PositiveInt = 4_096


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(nested_model_default_partial_update=True)

    service: str = "llm-gateway"
    grpc_port: int = 7103
    http_port: int = 7203
    edge_host: str = "127.0.0.1"
    edge_port: int = Field(default=8081, ge=0, le=65535)
    """Where the APIs of OpenAI and Anthropic are served, under /v1."""
    edge_tls_certificate_file: Path | None = None
    """Certificate chain (PEM) that the edge shows; with the key below the edge speaks TLS, without both HTTP."""
    edge_tls_key_file: Path | None = None
    edge: EdgeLimits = EdgeLimits()
    # A model may think for minutes; the kit's default is meant for calls that only touch a database.
    limits: Limits = Limits(rpc_default_s=300, rpc_max_s=900)

    openai_api_key: SecretStr | None = Field(None, validation_alias=_by("OPENAI_API_KEY", "openai_api_key"))
    openai_base_url: str = Field(
        "https://api.openai.com/v1", validation_alias=_by("OPENAI_BASE_URL", "openai_base_url")
    )
    anthropic_api_key: SecretStr | None = Field(None, validation_alias=_by("ANTHROPIC_API_KEY", "anthropic_api_key"))
    anthropic_base_url: str = Field(
        "https://api.anthropic.com", validation_alias=_by("ANTHROPIC_BASE_URL", "anthropic_base_url")
    )
    openai_dialect: Literal["chat", "responses"] = "chat"
    """The API by which models of OpenAI are asked; responses keeps their reasoning from one call to the next."""
    gemini_api_key: SecretStr | None = Field(None, validation_alias=_by("GEMINI_API_KEY", "gemini_api_key"))
    gemini_base_url: str = Field(
        "https://generativelanguage.googleapis.com", validation_alias=_by("GEMINI_BASE_URL", "gemini_base_url")
    )
    azure_openai_endpoint: str = Field("", validation_alias=_by("AZURE_OPENAI_ENDPOINT", "azure_openai_endpoint"))
    azure_openai_api_key: SecretStr | None = Field(
        None, validation_alias=_by("AZURE_OPENAI_API_KEY", "azure_openai_api_key")
    )
    azure_openai_api_version: str = Field(
        "2026-10-01", validation_alias=_by("OPENAI_API_VERSION", "azure_openai_api_version")
    )
    vertex_project_id: str = Field("", validation_alias=_by("ANTHROPIC_VERTEX_PROJECT_ID", "vertex_project_id"))
    """Claude on Google's Vertex AI, signed in as the machine is; vertex/<model>."""
    vertex_region: str = Field("global", validation_alias=_by("CLOUD_ML_REGION", "vertex_region"))
    vertex_base_url: str = Field("", validation_alias=_by("ANTHROPIC_VERTEX_BASE_URL", "vertex_base_url"))
    vertex_access_token: SecretStr | None = None
    """Instead of what the machine is signed in as; it is not renewed."""
    bedrock_region: str = ""
    """Claude on Amazon Bedrock in this region, signed in as the machine is; aws/<inference profile>."""
    bedrock_api_key: SecretStr | None = Field(None, validation_alias=_by("AWS_BEARER_TOKEN_BEDROCK", "bedrock_api_key"))
    """Instead of what the machine is signed in as."""
    bedrock_base_url: str = Field("", validation_alias=_by("ANTHROPIC_BEDROCK_BASE_URL", "bedrock_base_url"))
    bedrock_control_url: str = ""
    """Where Bedrock lists its models, if not at the region's own address."""
    ollama_host: str = Field("", validation_alias=_by("OLLAMA_HOST", "ollama_host"))
    vllm_url: str = ""
    """Base URL of a vLLM server, with /v1; its models are called vllm/<name>."""
    vllm_api_key: SecretStr | None = None
    openai_compatible_url: str = ""
    """Base URL of any other server of the OpenAI chat format, with /v1; openai-compatible/<name>."""
    openai_compatible_api_key: SecretStr | None = None
    https_proxy: SecretStr = Field(SecretStr(""), validation_alias=_by("HTTPS_PROXY", "https_proxy"))
    """The HTTP proxy through which providers are reached, http://host:port; this machine itself is never."""
    http_proxy: SecretStr = Field(SecretStr(""), validation_alias=_by("HTTP_PROXY", "http_proxy"))
    """The same for addresses without TLS."""
    no_proxy: str = Field("", validation_alias=_by("NO_PROXY", "no_proxy"))
    """Domains, addresses and networks that are reached without: "example.com,10.0.0.0/8"; * for all."""
    simulator_url: str = ""
    """Origin of the provider simulator; simulator/sim-1."""

    model_aliases: dict[str, str] = Field(default_factory=dict)
    """Alias to "provider/model", for example {"small": "openai/gpt-5-mini"}."""

    roster_file: Path | None = None
    """JSON file of deployments (endpoints and keys) and of what differs of models; see roster.py."""
    roster_look_s: float = Field(default=5, gt=0)
    """Between two looks whether it, or a key in it, has changed."""
    balancing: Strategy = "affinity"
    """Which of the deployments of a model is asked first, unless a request says it."""

    output_tokens_default: int = Field(default=4096, ge=1, le=1_000_000)
    """Reserved and asked for when a request gives no max_output_tokens."""
    attempts_max: int = Field(default=3, ge=1, le=10)
    """Attempts at one model."""
    rate_limits: tuple[LimitRule, ...] = ()
    """As JSON: [{"per": "model", "models": "openai/*", "requests_per_min": 500, "input_tokens_per_min": 200000}]."""
    rate_limit_slice_s: float = Field(default=0.5, ge=0.2, le=1.0)
    """How long a process may use what it was handed of a limit that all processes share."""
    circuit_failures_max: int = Field(default=5, ge=1)
    """Failures in a row after which a model is left alone for a while; a repeat goes to the fallbacks at once."""
    circuit_open_s: float = Field(default=5, gt=0)
    """How long, the first time; then one call tries it, and each failure doubles the time."""
    call_max_s: float = Field(default=900, gt=0)
    """The longest a call may take, whatever its callers' deadlines."""
    drain_s: float = Field(default=120, gt=0)
    """How long a call goes on after its last caller has left, so that what was paid for is recorded."""
    abort_policies: dict[str, Abort] = Field(default_factory=dict)
    """Provider to drain, estimate or free, for example {"ollama": "free"}; drain where nothing is said."""
    drains_max: int = Field(default=100, ge=0)
    """Calls that go on without a caller at once; a further one is ended at once."""
    calls_max: int = Field(default=1000, ge=1)
    """Calls in flight at once."""
    cache_ttl_s: float = Field(default=3600, gt=0)
    """How long an answer may be given to others who ask the same, where their policy does not say."""
    cache_ttl_max_s: float = Field(default=86_400, gt=0)
    cache_entries_max: int = Field(default=10_000, ge=1)
    """Cached answers of a tenant; beyond, those that would expire first go."""
    cache_front_bytes: int = Field(default=16 * 1024 * 1024, ge=0)
    """Memory of each process for cached answers, besides the database."""
    similar_model: str = ""
    """The model whose vectors tell what means the same, as "openai/text-embedding-3-small"; empty: no semantic cache."""
    similar_dimensions: int = Field(default=256, ge=1)
    similar_likeness_min: float = Field(default=0.95, gt=0, le=1)
    """The least cosine of two texts that get the same answer; `model_cache_likeness` shows what there is."""
    orphans_s: float = Field(default=15, gt=0)
    """Between two looks for calls that a process which is gone has left running."""
    ledger_timeout_s: float = Field(default=5, gt=0)
    reservation_ttl_s: float = Field(default=TTL_S, ge=10, le=86_400)
    """How long money is held for a call whose process has died; for one that runs the hold is renewed."""
    reserve_ahead_s: float = Field(default=1.0, ge=0, le=5)
    """For callers who call often: how long a reservation made ahead of its call may wait for it; 0: none is made.

    A budget that is suspended or lowered counts for calls that begin so much later."""
    answers_kept_s: float = Field(default=86_400, gt=0)
    """How long an answer is kept for repeats of its request."""

    @property
    def proxies(self) -> Proxies:
        return read_proxies(self.https_proxy.get_secret_value(), self.http_proxy.get_secret_value(), self.no_proxy)

    @model_validator(mode="after")
    def _proxies_are_understood(self) -> Self:
        """Raises ValueError, which keeps the service from starting."""
        self.proxies  # noqa: B018 - read for its refusal
        return self
