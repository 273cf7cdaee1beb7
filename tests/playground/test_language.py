"""French and English, in the playground alone."""

from io import BytesIO

import pytest
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from django.test import Client

from opengate.environment import BASE_DIR

LOCALE = BASE_DIR / "opengate" / "locale"
FRENCH = LOCALE / "fr" / "LC_MESSAGES"
NBSP = "\u00a0"


@pytest.fixture(scope="module")
def catalogue():
    with (FRENCH / "django.po").open("rb") as file:
        return read_po(file)


@pytest.fixture(scope="module")
def said():
    """What pages and scripts of the playground say: context and text."""
    with (LOCALE / "babel.cfg").open() as file:
        methods, options = parse_mapping_cfg(file)
    keywords = DEFAULT_KEYWORDS | {"_": None, "gettext_lazy": None}
    found = extract_from_dir(BASE_DIR, methods, options, keywords, directory_filter=_is_ours)
    return {(context, message) for _, _, message, _, context in found}


def _is_ours(path):
    return path.rsplit("/", 1)[-1] not in {".venv", "var", "tests", "docs", ".git", "node_modules"}


def test_everything_that_is_said_has_a_french_translation(catalogue, said):
    assert len(said) > 150
    untranslated = []
    for context, message in said:
        entry = catalogue.get(message, context)
        texts = (
            [entry.string]
            if entry is not None and isinstance(entry.string, str)
            else list(entry.string if entry else [""])
        )
        if not all(texts) or entry.fuzzy:
            untranslated.append(message)
    assert untranslated == []


def test_nothing_is_translated_that_nobody_says(catalogue, said):
    assert {(entry.context, entry.id) for entry in catalogue if entry.id} == said


def test_the_compiled_catalogue_is_that_of_its_source(catalogue):
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    assert compiled.getvalue() == (FRENCH / "django.mo").read_bytes(), "run `make messages`"


def test_placeholders_are_the_same_in_french(catalogue):
    assert [error for message in catalogue for error in message.check(catalogue)] == []
    for message in catalogue:
        if message.id and isinstance(message.id, str) and "{" in message.id:
            assert sorted(_braces(message.id)) == sorted(_braces(message.string))


def _braces(text):
    return [part.split("}")[0] for part in text.split("{")[1:]]


def test_french_marks_stand_after_a_space_that_does_not_break(catalogue):
    for message in catalogue:
        texts = [message.string] if isinstance(message.string, str) else message.string
        for text in texts if message.id else ():
            assert not any(f" {mark}" in text for mark in ":;?!»"), text
            assert "« " not in text, text


def test_a_page_is_in_the_language_that_the_browser_asks_for(db):
    for accepted, language, word in (("fr-FR,fr;q=0.9", "fr", "Se connecter"), ("de, en;q=0.5", "en", "Sign in")):
        response = Client().get("/playground/login", headers={"Accept-Language": accepted})
        assert response.headers["Content-Language"] == language
        assert f'<html lang="{language}"' in response.text
        assert word in response.text
        assert {"Accept-Language", "Cookie"} <= set(response.headers["Vary"].split(", "))


def test_the_switch_remembers_the_language_and_keeps_the_page(db):
    client = Client(headers={"Accept-Language": "en"})
    response = client.get("/playground/login?next=%2Fplayground%2Fkeys&language=fr")
    assert (response.status_code, response.headers["location"]) == (302, "/playground/login?next=%2Fplayground%2Fkeys")
    cookie = response.cookies["playground_language"]
    assert (cookie.value, cookie["path"], cookie["httponly"]) == ("fr", "/playground", True)
    assert "Se connecter" in client.get(response.headers["location"]).text


@pytest.mark.parametrize("language", ["", "de", "../../etc", "%"])
def test_another_language_is_none(db, language):
    assert Client().get("/playground/login", {"language": language}).status_code == 200


def test_console_and_api_stay_english(page_of, admin):
    client = page_of(admin, headers={"Accept-Language": "fr"})
    client.cookies["playground_language"] = "fr"
    assert "Tableau" not in client.get("/admin/").text
    assert 'lang="en"' in client.get("/admin/").text
    assert client.get("/v1/me/info").json() == {"detail": "Not authenticated"}
    assert "Discussion" in client.get("/playground").text
    assert 'lang="en"' in client.get("/admin/").text


def test_forms_and_dates_are_french_too(page_of, ada):
    client = page_of(ada, headers={"Accept-Language": "fr"})
    text = client.post("/playground/password", {"old_password": "x", "new_password1": "", "new_password2": ""}).text
    assert "Ce champ est obligatoire." in text
    assert '<a href="/playground/search">Recherche</a>' in text  # not as the console's own catalogue has it
    assert f"Thème{NBSP}: automatique" in text
