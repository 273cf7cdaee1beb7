"""What tokens cost, in exact decimals."""

from decimal import ROUND_HALF_UP, Decimal

MILLION = Decimal(1_000_000)
STEP = Decimal("0.000001")
FREE = Decimal(0)


def cost(prompt_tokens: int, completion_tokens: int, price_prompt: Decimal, price_completion: Decimal) -> Decimal:
    """Price of a call, six decimals; prices are of a million tokens."""
    if not price_prompt and not price_completion:
        return FREE
    exact = (prompt_tokens * price_prompt + completion_tokens * price_completion) / MILLION
    return exact.quantize(STEP, ROUND_HALF_UP)
