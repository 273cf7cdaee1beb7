"""What LiteLLM is given beside its configuration: who may call, and where usage goes. Runs in LiteLLM's environment."""

import os
from typing import Any

from fastapi import HTTPException, Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth

GENEROUS = 10**9  # a limit that is counted and never reached


def caller(name: str, requests_a_minute: int) -> dict[str, Any]:
    names = {"api_key": f"hashed-{name}", "user_id": f"{name}-user", "team_id": f"{name}-team"}
    limits = {f"{who}tpm_limit": GENEROUS for who in ("", "user_", "team_")}
    return names | limits | {f"{who}rpm_limit": requests_a_minute for who in ("", "user_", "team_")}


CALLERS = {
    os.environ["BENCH_KEY"]: caller("bench", GENEROUS),
    os.environ["BENCH_LIMITED_KEY"]: caller("limited", 2),  # proves that limits are enforced
}


async def authenticate(request: Request, api_key: str) -> UserAPIKeyAuth:
    if api_key not in CALLERS:
        raise HTTPException(401, "Unknown key.")
    return UserAPIKeyAuth(**CALLERS[api_key])


class Usage(CustomLogger):
    """Keeps usage in a list, written nowhere: what LiteLLM's own database would cost is not measured."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        usage = getattr(response_obj, "usage", None)
        self.records.append({"model": kwargs.get("model"), "cost": kwargs.get("response_cost"), "usage": usage})
        if len(self.records) >= 10_000:
            self.records.clear()


usage = Usage()
