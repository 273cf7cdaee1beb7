"""How numbers and charts look on a page."""

from decimal import Decimal
from typing import Any

from django import template
from django.utils import formats

from opengate.charts import Chart

register = template.Library()


@register.filter
def amount(value: Any) -> str:
    """A number with separators and up to six decimals, as many as it has; – for None."""
    if value is None:
        return "–"
    number = Decimal(str(value)).quantize(Decimal("0.000001")).normalize()
    places = max(-int(number.as_tuple().exponent), 0)
    return str(formats.number_format(number, decimal_pos=places, use_l10n=True, force_grouping=True))


@register.filter
def milliseconds(value: Any) -> str:
    """`850 ms`, `1.25 s`; – for None."""
    if value is None:
        return "–"
    if value < 1000:
        return f"{round(value)} ms"
    return f"{formats.number_format(Decimal(value) / 1000, decimal_pos=2)} s"


@register.inclusion_tag("console/chart.html")
def chart(drawn: Chart) -> dict[str, Any]:
    """The chart, with its figures in a table beneath; the page loads `vendor/chart.js` and `charts.js`."""
    return {"chart": drawn}


@register.filter
def percent(share: Any) -> str:
    """`2.5%` of 0.025; – for None."""
    return "–" if share is None else f"{formats.number_format(Decimal(str(share)) * 100, decimal_pos=1)}%"


@register.filter
def age(seconds: int) -> str:
    """`12 s`, `5 min`, `3 h`, `2 days`."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"
