"""Settings as hot code reads them."""

from django.test import override_settings

from opengate.quick_settings import settings


def test_they_are_as_django_says_also_while_a_test_changes_them():
    before = settings.UNKNOWN_ANSWER_TOKENS
    with override_settings(UNKNOWN_ANSWER_TOKENS=before + 1):
        assert before + 1 == settings.UNKNOWN_ANSWER_TOKENS
    assert before == settings.UNKNOWN_ANSWER_TOKENS
