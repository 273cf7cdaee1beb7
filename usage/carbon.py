"""Energy and carbon of a call, as ecologits computes them (https://ecologits.ai, method for LLM inference).

The library takes a quarter of a millisecond a call, more than the rest of a request. Its impacts are linear in the
number of output tokens and in the generation time, so each model (parameters, zone) is asked for a few points once,
and a call costs a multiplication.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ecologits.electricity_mix_repository import electricity_mixes
from ecologits.impacts.llm import compute_llm_impacts
from ecologits.utils.range_value import RangeValue

from opengate.quick_settings import settings

WORLD = "WOR"
_INSTANT_SECONDS = 1e-15
_FOREVER_SECONDS = 1e9


class Footprint(NamedTuple):
    """Least and most energy in kWh and carbon in kgCO2eq; equal where the method gives one figure."""

    kwh_min: float = 0.0
    kwh_max: float = 0.0
    kgco2eq_min: float = 0.0
    kgco2eq_max: float = 0.0

    def plus(self, other: "Footprint", times: float = 1.0) -> "Footprint":
        return Footprint(
            self.kwh_min + times * other.kwh_min,
            self.kwh_max + times * other.kwh_max,
            self.kgco2eq_min + times * other.kgco2eq_min,
            self.kgco2eq_max + times * other.kgco2eq_max,
        )

    @property
    def grams(self) -> float:
        """The middle, in grams of CO2eq."""
        return (self.kgco2eq_min + self.kgco2eq_max) / 2 * 1000

    def as_carbon(self) -> dict[str, dict[str, float]]:
        return {
            "kWh": {"min": self.kwh_min, "max": self.kwh_max},
            "kgCO2eq": {"min": self.kgco2eq_min, "max": self.kgco2eq_max},
        }

    def as_impacts(self) -> dict[str, float]:
        return {"kWh": (self.kwh_min + self.kwh_max) / 2, "kgCO2eq": (self.kgco2eq_min + self.kgco2eq_max) / 2}


NOTHING = Footprint()


def footprint(
    completion_tokens: int, latency_seconds: float, *, active_params: int, total_params: int, zone: str
) -> Footprint:
    """Footprint of one answer; parameters in billions, either standing for the other where that is 0.

    Nothing when both are 0 or no token came out (embeddings, rerank: not covered by the method). A zone that ecologits
    does not know counts as the world.
    """
    if completion_tokens <= 0 or not (active_params or total_params):
        return NOTHING
    rates = _rates(
        active_params or total_params,
        total_params or active_params,
        zone,
        settings.DATACENTER_PUE,
        settings.DATACENTER_WUE,
    )
    seconds = min(latency_seconds, completion_tokens * rates.seconds_a_token)
    seconds = max(seconds, 0.0)
    token, second = rates.a_token, rates.a_second
    return Footprint(
        completion_tokens * token.kwh_min + seconds * second.kwh_min,
        completion_tokens * token.kwh_max + seconds * second.kwh_max,
        completion_tokens * token.kgco2eq_min + seconds * second.kgco2eq_min,
        completion_tokens * token.kgco2eq_max + seconds * second.kgco2eq_max,
    )


def grams_a_token(*, active_params: int, total_params: int, zone: str) -> float | None:
    """Grams of CO2eq for a completion token at the model's own pace; None when its size is not known.

    The middle of the least and the most, from the carbon of the zone's electricity and the model's parameters.
    """
    if not (active_params or total_params):
        return None
    sizes = active_params or total_params, total_params or active_params
    rates = _rates(*sizes, zone, settings.DATACENTER_PUE, settings.DATACENTER_WUE)
    return rates.a_token.plus(rates.a_second, rates.seconds_a_token).grams


@dataclass(frozen=True, slots=True)
class _Rates:
    a_token: Footprint
    a_second: Footprint
    seconds_a_token: float


@lru_cache(maxsize=4096)
def _rates(active_params: int, total_params: int, zone: str, pue: float, wue: float) -> _Rates:
    """What a token and a second of generation add, and the longest a token can take, out of the library's answers."""
    instant = _computed(active_params, total_params, zone, pue, wue, tokens=1, latency=_INSTANT_SECONDS)
    unhurried = _computed(active_params, total_params, zone, pue, wue, tokens=1, latency=_FOREVER_SECONDS)
    # A thousand tokens take any model longer than two seconds, so the measured time counts: the difference is a second.
    many = 1000
    second = _computed(active_params, total_params, zone, pue, wue, tokens=many, latency=2.0).plus(
        _computed(active_params, total_params, zone, pue, wue, tokens=many, latency=1.0), -1.0
    )
    return _Rates(instant, second, unhurried.plus(instant, -1.0).kgco2eq_max / second.kgco2eq_max)


def _computed(
    active_params: int, total_params: int, zone: str, pue: float, wue: float, *, tokens: int, latency: float
) -> Footprint:
    mix = electricity_mixes.find_electricity_mix(zone) or electricity_mixes.find_electricity_mix(WORLD)
    assert mix is not None  # the world is always there
    impacts = compute_llm_impacts(
        model_active_parameter_count=active_params,
        model_total_parameter_count=total_params,
        output_token_count=tokens,
        request_latency=latency,
        if_electricity_mix_adpe=mix.adpe,
        if_electricity_mix_pe=mix.pe,
        if_electricity_mix_gwp=mix.gwp,
        if_electricity_mix_wue=mix.wue,
        datacenter_pue=pue,
        datacenter_wue=wue,
    )
    kwh, gwp = impacts.energy.value, impacts.gwp.value
    kwh_min, kwh_max = (kwh.min, kwh.max) if isinstance(kwh, RangeValue) else (kwh, kwh)
    gwp_min, gwp_max = (gwp.min, gwp.max) if isinstance(gwp, RangeValue) else (gwp, gwp)
    return Footprint(kwh_min, kwh_max, gwp_min, gwp_max)
