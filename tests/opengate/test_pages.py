"""Refusals of pages are pages, those of the API stay JSON."""

import pytest
from django.test import Client

pytestmark = pytest.mark.usefixtures("transactional_db")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/admin/?organization=%00", 400, "This request cannot be read"),
        ("/playground/login?next=%00", 400, "This request cannot be read"),
        ("/playground/nothing", 404, "Nothing is here"),
    ],
)
def test_a_page_that_is_none_says_so_to_a_person(client, path, status, words):
    page = client.get(path)
    assert page.status_code == status
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert words in page.content.decode()


def test_a_page_of_the_playground_says_it_in_french(client):
    page = client.get("/playground/nothing", headers={"Accept-Language": "fr"}).content.decode()
    assert "Il n’y a rien ici" in page
    assert 'lang="fr"' in page
    console = client.get("/admin/?q=%00", headers={"Accept-Language": "fr"}).content.decode()
    assert "This request cannot be read" in console


def test_the_console_says_what_a_role_does_not_open_and_what_is_not_there(client, admin):
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    assert "Nothing is here" in client.get("/admin/nothing/").content.decode()


def test_a_form_of_a_former_session_is_refused_on_a_page():
    page = Client(enforce_csrf_checks=True).post("/playground/login", {"username": "ada"})
    assert page.status_code == 403
    assert "load it again" in page.content.decode()


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1/admin/nothing?x=%00"])
def test_the_api_answers_with_json(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Not Found"
