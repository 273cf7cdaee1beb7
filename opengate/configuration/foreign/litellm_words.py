"""The words of LiteLLM's configuration: what they are here, and why some are nothing."""

import re
from collections.abc import Mapping

from routing.models import ModelType

MODES = {
    "chat": ModelType.TEXT_GENERATION,
    "embedding": ModelType.TEXT_EMBEDDINGS_INFERENCE,
    "rerank": ModelType.TEXT_CLASSIFICATION,
    "audio_transcription": ModelType.AUTOMATIC_SPEECH_RECOGNITION,
    "ocr": ModelType.IMAGE_TO_TEXT,
}
# Type of provider, and the address where none is given.
DIALECTS: Mapping[str, tuple[str, str]] = {
    "openai": ("openai", "https://api.openai.com/"),
    "mistral": ("mistral", "https://api.mistral.ai/"),
    "hosted_vllm": ("vllm", ""),
    "vllm": ("vllm", ""),
}
# Those that speak OpenAI's dialect at an address of theirs, or of one's own.
ALIKE: Mapping[str, str] = {
    "cerebras": "https://api.cerebras.ai/",
    "custom_openai": "",
    "deepseek": "https://api.deepseek.com/",
    "fireworks_ai": "https://api.fireworks.ai/inference/",
    "groq": "https://api.groq.com/openai/",
    "infinity": "",
    "litellm_proxy": "",
    "llamafile": "",
    "lm_studio": "",
    "nvidia_nim": "https://integrate.api.nvidia.com/",
    "ollama": "http://localhost:11434/",
    "ollama_chat": "http://localhost:11434/",
    "openai_like": "",
    "openrouter": "https://openrouter.ai/api/",
    "sambanova": "https://api.sambanova.ai/",
    "together_ai": "https://api.together.xyz/",
    "xai": "https://api.x.ai/",
    "xinference": "",
}
OPENAI_NAMES = re.compile(r"(ft:)?(gpt-|chatgpt-|o[1-9]([-.]|$)|text-embedding-|whisper-)")

STRATEGIES: Mapping[str, tuple[str, str]] = {
    "simple-shuffle": ("shuffle", "All providers are as likely: weight, rpm and tpm do not weigh."),
    "least-busy": ("least_busy", "There the fewest calls in flight come first, here the quickest first token."),
    "latency-based-routing": ("lowest_latency", "Here the quicker of two by chance comes first."),
    "usage-based-routing": ("shuffle", "Providers are not chosen by tokens of a minute: any comes first."),
    "usage-based-routing-v2": ("shuffle", "Providers are not chosen by tokens of a minute: any comes first."),
    "cost-based-routing": ("cheapest", "Costs are those of this file: there is no table of prices."),
}

MINUTE = "A provider has no limit of a minute: roles have limits, and a provider's calls at a time can be bounded."
FALLBACK = "A call stays with its model: give the router more providers."
CALLER = "Callers say that themselves."
CIRCUIT = "A call goes on to the next provider, and providers that fail are left alone for a while: docs/routing.md."
RIGHTS = "Roles say who may use which router."
ACCOUNT = "The provider's dialect has no such account."
LOGS = "See the docs for logs, metrics and traces."

WHY_PARAMETER: Mapping[str, str] = {
    **dict.fromkeys(("rpm", "tpm"), MINUTE),
    **dict.fromkeys(("weight", "order"), "The strategy does not weigh providers."),
    **dict.fromkeys(("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "n"), CALLER),
    **dict.fromkeys(("max_retries", "num_retries", "cooldown_time", "allowed_fails"), CIRCUIT),
    **dict.fromkeys(("organization", "extra_headers", "headers", "extra_body"), "Upstreams get a key, and no headers."),
    "stream_timeout": "timeout is for streams, too.",
    "tags": RIGHTS,
    "drop_params": "Callers' fields are passed on as they are.",
    "api_version": ACCOUNT,
    "mock_response": "There are no made-up answers.",
    "max_budget": "Budgets are of users.",
    "budget_duration": "Budgets are of users.",
}
WHY_INFO: Mapping[str, str] = {
    "id": "Rows have ids of their own.",
    "access_groups": RIGHTS,
    "team_id": RIGHTS,
    "base_model": "It is for LiteLLM's table of prices: write the prices.",
    **dict.fromkeys(("max_tokens", "max_input_tokens", "max_output_tokens"), "Providers are asked for it."),
    "output_vector_size": "Providers are asked for it.",
    "supported_environments": "An entry is imported for every environment.",
    "litellm_provider": "It is information only.",
    "description": "Routers have no description.",
    "health_check_model": "Providers are asked for their models.",
}
WHY_ROUTER: Mapping[str, str] = {
    **dict.fromkeys(("redis_host", "redis_port", "redis_password", "redis_url", "redis_db"), "Set REDIS_URL."),
    **dict.fromkeys(
        ("fallbacks", "default_fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "max_fallbacks"),
        FALLBACK,
    ),
    **dict.fromkeys(
        (
            "num_retries",
            "retry_after",
            "allowed_fails",
            "allowed_fails_policy",
            "cooldown_time",
            "retry_policy",
            "model_group_retry_policy",
            "disable_cooldowns",
        ),
        CIRCUIT,
    ),
    "routing_strategy_args": "Strategies take no arguments.",
    "enable_tag_filtering": RIGHTS,
    "enable_pre_call_checks": "The upstream says when a prompt is too long.",
    "stream_timeout": "timeout is for streams, too.",
    "provider_budget_config": "Budgets are of users.",
}
WHY_LITELLM: Mapping[str, str] = {
    **WHY_ROUTER,
    **dict.fromkeys(
        ("callbacks", "success_callback", "failure_callback", "service_callbacks", "callback_settings", "json_logs"),
        LOGS,
    ),
    **dict.fromkeys(("turn_off_message_logging", "redact_user_api_key_info"), "Prompts are never logged."),
    "set_verbose": "Set OPENGATE_LOG_LEVEL.",
    "drop_params": "Callers' fields are passed on as they are.",
    **dict.fromkeys(("cache", "cache_params"), "Answers are not cached."),
    **dict.fromkeys(("max_budget", "budget_duration", "max_internal_user_budget"), "Budgets are of users."),
}
WHY_GENERAL: Mapping[str, str] = {
    "master_key": "There is no master key: manage.py createadmin makes a user who administers.",
    "salt_key": "Set OPENGATE_ENCRYPTION_SECRETS.",
    "database_url": "Set DATABASE_URL.",
    "database_connection_pool_limit": "Set OPENGATE_DATABASE_POOL.",
    "database_connection_timeout": "Set OPENGATE_DATABASE_TIMEOUT_SECONDS.",
    "store_model_in_db": "Models are always rows of the database.",
    "alerting": LOGS,
    "alerting_threshold": LOGS,
    **dict.fromkeys(("max_parallel_requests", "global_max_parallel_requests"), "Set OPENGATE_UPSTREAM_MAX_CALLS."),
    "max_request_size_mb": "Set OPENGATE_MAX_BODY_BYTES.",
    "maximum_spend_logs_retention_period": "Set OPENGATE_USAGE_RETENTION_DAYS.",
    "background_health_checks": "manage.py checkproviders and /health/models ask.",
    "health_check_interval": "manage.py checkproviders and /health/models ask.",
    "enable_jwt_auth": "Callers have keys.",
    "custom_auth": "Callers have keys.",
}
WHY_SECTION: Mapping[str, str] = {
    "include": "Import each of those files by itself.",
    "guardrails": "There are no guardrails.",
    "mcp_servers": "Tools are the callers' business.",
    "callback_settings": LOGS,
    "general_settings": "It must be a mapping.",
    "router_settings": "It must be a mapping.",
    "litellm_settings": "It must be a mapping.",
}
