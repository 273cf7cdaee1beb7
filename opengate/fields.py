"""JSON as it is: serializer fields that take no text for a number, with the fault types that pydantic's have."""

import re
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn

from django.core.validators import RegexValidator
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

# The largest key of a row, the last second that a datetime knows, and the largest integer and amount of the tables.
MAX_ID = 2**63 - 1
MAX_TIMESTAMP = 253_402_300_799
MAX_INTEGER = 2**31 - 1
MAX_AMOUNT = 999_999_999_999
MAX_FAULTS = 20

# No NUL, which Postgres keeps nowhere; of TEXT, something that is no white space.
ANY_TEXT = r"^[^\x00]*$"
TEXT = r"^[^\x00]*[^\s\x00\x1c-\x1f][^\x00]*$"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
_INTEGER = re.compile(r"[+-]?[0-9]+")


def invalid(type: str, message: str) -> NoReturn:
    """Raise a fault; `type` is the machine's word for it."""
    raise ValidationError([ErrorDetail(message, code=type)])


def value_error(text: str) -> NoReturn:
    """Raise a fault of a rule of ours."""
    invalid("value_error", f"Value error, {text}")


def _matches(pattern: str) -> RegexValidator:
    return RegexValidator(
        pattern, f"String should match pattern '{pattern}'", "string_pattern_mismatch", flags=re.DOTALL
    )


class Text(serializers.CharField):
    """A string with something in it, less the white space around it."""

    def __init__(
        self, *, min_length: int | None = 1, max_length: int = 255, pattern: str = TEXT, **options: Any
    ) -> None:
        super().__init__(min_length=min_length, max_length=max_length, **options)
        self.longest = max_length
        self.validators.append(_matches(pattern))

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            invalid("string_type", "Input should be a valid string")
        if len(data) > self.longest:  # as it was sent: white space counts
            invalid("string_too_long", f"String should have at most {self.longest} characters")
        return super().to_internal_value(data)


class Secret(Text):
    """A string that is kept as it is: spaces around it are part of it. A blank one is none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        if isinstance(data, str) and not data.strip():
            self.fail("blank")
        return super().run_validation(data)


class FreeText(Text):
    """A string that may be empty, kept as it is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(min_length=None, pattern=ANY_TEXT, trim_whitespace=False, **options)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        return "" if data == "" else super().run_validation(data)


class List(serializers.ListField):
    """A list of `max_length` items at most. It is read no further than to the MAX_FAULTS-th faulty item."""

    def __init__(self, *, max_length: int, **options: Any) -> None:
        super().__init__(max_length=max_length, **options)
        self.longest = max_length

    def to_internal_value(self, data: Any) -> list[Any]:
        if isinstance(data, list) and len(data) > self.longest:
            invalid("too_long", f"List should have at most {self.longest} items")
        return super().to_internal_value(data)

    def run_child_validation(self, data: Any) -> list[Any]:
        result: list[Any] = []
        faults: dict[Any, Any] = {}
        for index, item in enumerate(data):
            try:
                result.append(self.child.run_validation(item))
            except ValidationError as error:
                faults[index] = error.detail
                if len(faults) == MAX_FAULTS:
                    break
        if faults:
            raise ValidationError(faults)
        return result


class Integer(serializers.IntegerField):
    """A JSON integer; 1.0 is one, true and "1" are none."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int | float) or (isinstance(data, float) and data % 1):
            invalid("int_type", "Input should be a valid integer")
        return int(data)


class Id(Integer):
    """The id of a row; whether there is one is another question."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_value=MAX_ID, **options)


class QueryInteger(serializers.IntegerField):
    """An integer as an address spells it."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, str) or len(data) > 100 or not _INTEGER.fullmatch(data):
            invalid("int_parsing", NO_INTEGER)
        return int(data)


def _number(data: Any) -> int | float:
    """A JSON number that a float can hold."""
    if isinstance(data, bool) or not isinstance(data, int | float) or not abs(data) <= sys.float_info.max:
        invalid("float_type", "Input should be a valid number")
    return data


@extend_schema_field({"type": "number", "format": "double"})
class Number(serializers.FloatField):
    """A finite JSON number."""

    def to_internal_value(self, data: Any) -> float:
        return float(_number(data))


@extend_schema_field({"type": "number", "format": "double", "minimum": 0, "maximum": MAX_AMOUNT})
class Amount(serializers.Field):
    """An amount of money: a JSON number outside, a Decimal with six decimals inside; from 0 to MAX_AMOUNT."""

    def to_internal_value(self, data: Any) -> Decimal:
        number = _number(data)
        if number < 0:
            invalid("greater_than_equal", "Input should be greater than or equal to 0")
        if number > MAX_AMOUNT:
            invalid("less_than_equal", f"Input should be less than or equal to {MAX_AMOUNT}")
        return round(Decimal(str(number)), 6)

    def to_representation(self, value: Decimal) -> float:
        return float(value)


@extend_schema_field({"type": "integer", "format": "int64", "maximum": MAX_TIMESTAMP})
class Timestamp(serializers.Field):
    """A moment: Unix seconds outside, a datetime inside."""

    def to_internal_value(self, data: Any) -> datetime:
        if isinstance(data, bool) or not isinstance(data, int | float) or (isinstance(data, float) and data % 1):
            invalid("int_type", "Input should be a valid integer")
        if data > MAX_TIMESTAMP:
            invalid("less_than_equal", f"Input should be less than or equal to {MAX_TIMESTAMP}")
        return datetime.fromtimestamp(max(int(data), 0), UTC)

    def to_representation(self, value: datetime) -> int:
        return int(value.timestamp())


class FutureTimestamp(Timestamp):
    """A moment to come."""

    def to_internal_value(self, data: Any) -> datetime:
        value = super().to_internal_value(data)
        if value <= timezone.now():
            value_error("Wrong timestamp, must be in the future.")
        return value


class Constant(serializers.Field):
    """A field that is the same for every row: what kind of object it is."""

    def __init__(self, value: str) -> None:
        super().__init__(read_only=True, source="*", help_text=f"Always `{value}`.")
        self.value = value

    def to_representation(self, value: Any) -> str:
        return self.value
