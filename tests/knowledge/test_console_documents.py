"""Documents in the console: added, looked on, embedded anew, and searched by all methods at once."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from knowledge.console import excerpt
from knowledge.models import Chunk, Collection, Document, Space
from tests.knowledge.conftest import EMBEDDINGS, embeddings_router, ingest_all
from usage.models import Limit

ADD = "/admin/knowledge/document/add/"


@pytest.fixture
def console(admin, client: Client) -> Client:
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    return client


def file(content: str = "Leave is asked for in writing.", name: str = "leave.txt", type: str = "text/plain"):
    return SimpleUploadedFile(name, content.encode(), type)


@pytest.fixture
def send(console: Client, collection: Collection, redis_client) -> Callable[..., str]:
    """What the page says to files: `send(file(), chunk_size=10)`."""

    def sent(*files: SimpleUploadedFile, **fields: str) -> str:
        page = console.post(ADD, {"collection": collection.pk, "file": files, **fields}, follow=True)
        assert page.status_code == 200
        return page.content.decode()

    return sent


def test_files_are_added_to_the_collection_of_another_and_read(send, collection):
    said = send(file(), file("Travel is paid back.", "travel.md"), chunk_size="100", metadata='{"year": 2026}')
    assert "2 documents are on their way" in said
    assert "pending" in said
    assert "data-unfinished" in said
    ingest_all()
    assert set(Document.objects.values_list("name", "status")) == {("leave.txt", "ready"), ("travel.md", "ready")}
    assert Document.objects.get(name="leave.txt").options["chunk_size"] == 100
    assert Chunk.objects.filter(metadata__year=2026).count() == 2


def test_a_file_that_cannot_be_taken_does_not_lose_the_others(send, monkeypatch):
    monkeypatch.setattr(settings, "MAX_FILE_BYTES", 40)
    said = send(file(), file("", "empty.txt"), file("x" * 41, "large.txt"), file("x", "a.png", "image/png"), file())
    assert "2 documents are on their way" in said
    for told in (
        "“empty.txt”: The file is empty.",
        "“large.txt”: File size limit exceeded (max: 40 bytes).",
        "“a.png”: Unsupported file type.",
    ):
        assert told in said
    assert Document.objects.count() == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"chunk_size": "many"}, "Input should be a valid integer"),
        ({"chunk_size": "10", "chunk_overlap": "10"}, "chunk_overlap must be smaller than chunk_size."),
        ({"metadata": "year: 2026"}, "metadata must be a JSON object"),
        ({"separators": "(", "is_separator_regex": "on"}, "separators must be regular expressions"),
        ({"preset_separators": "klingon"}, "is not a valid choice"),
        ({"metadata": "\x00"}, "Null characters are not allowed."),
        ({"collection": "9" * 30}, "Select a valid choice"),
    ],
)
def test_options_that_cannot_be_followed_are_told_in_the_form(send, fields, told):
    assert told in send(file(), **fields)
    assert not Document.objects.exists()


def test_without_a_file_nothing_is_added(send):
    assert "Choose at least one file." in send()
    assert "“empty.txt”: The file is empty." in send(file("", "empty.txt"))


def test_separators_are_a_line_each(send):
    send(file("a|b\tc"), separators="|\n\\t", chunk_size="1")
    assert Document.objects.get().options["separators"] == ["|", "\t"]


def test_names_stay_text(console, send, collection):
    Collection.objects.update(name="<img src=x onerror=alert(1)>" + "\u202e" + "x" * 200)
    send(file("<b>Leave</b> is asked.", "<svg onload=alert(1)>.txt"))
    ingest_all()
    document, chunk = Document.objects.get(), Chunk.objects.get()
    for path in (
        f"collection/{collection.pk}/change/",
        f"collection/{collection.pk}/search/",
        f"collection/{collection.pk}/progress/",
        "collection/",
        "document/",
        f"document/{document.pk}/change/",
        f"document/{document.pk}/progress/",
        f"chunk/{chunk.pk}/change/",
        "chunk/",
    ):
        page = console.get(f"/admin/knowledge/{path}")
        assert page.status_code == 200, path
        for bad in ("<img src=x", "<svg onload", "<b>Leave"):
            assert bad not in page.content.decode(), path


def test_the_pages_of_progress_say_why_and_when(console, send, collection):
    send(file("\x00\x01", "binary.txt"))
    ingest_all()
    document = Document.objects.get()
    page = console.get(f"/admin/knowledge/document/{document.pk}/progress/").content.decode()
    assert "The file is not text." in page
    assert "data-unfinished" not in page
    answer = console.post(f"/admin/knowledge/document/{document.pk}/retry/", follow=True).content.decode()
    assert "The document begins anew." in answer
    Document.objects.update(tries=2, error="The model is away.", due="2999-01-01T10:00:00Z")
    page = console.get(f"/admin/knowledge/collection/{collection.pk}/progress/").content.decode()
    for told in ("The model is away.", "Tried 2 times, next at 10:00:00 UTC", "data-unfinished"):
        assert told in page


@pytest.fixture
def document(send) -> Document:
    send(file())
    ingest_all()
    return Document.objects.get()


@pytest.fixture
def browser(gateway, console: Client) -> Iterator[httpx.Client]:
    """A session in the web process itself."""
    cookies = {name: morsel.value for name, morsel in console.cookies.items()}
    with httpx.Client(base_url=gateway.url, cookies=cookies, timeout=30) as client:
        yield client


def sent_to(browser: httpx.Client, address: str, **form: object) -> str:
    token = browser.get(ADD).cookies.get("csrftoken") or browser.cookies["csrftoken"]
    page = browser.post(address, data={"csrfmiddlewaretoken": token, **form}, follow_redirects=True)
    assert page.status_code == 200, page.text
    return page.text


def test_another_model_is_chosen_there(browser, document, collection, role, upstream):
    other = embeddings_router(upstream, role, name="other")
    address = f"/admin/knowledge/collection/{collection.pk}"
    assert "is being embedded anew with other" in sent_to(browser, f"{address}/reembed/", model=other.pk)
    assert "Embedded anew with other: 0 of 1 chunks" in browser.get(f"{address}/progress/").text
    other.delete()
    assert "The model was deleted: choose another." in browser.get(f"{address}/progress/").text


def test_a_model_that_the_owner_may_not_use_is_not_begun(browser, document, collection, upstream):
    closed = embeddings_router(upstream, name="closed")
    address = f"/admin/knowledge/collection/{collection.pk}/reembed/"
    told = sent_to(browser, address, model=closed.pk)
    assert "The owner, ada@example.org, pays for it, and cannot: Model not found." in told
    assert "Choose a model that embeds." in sent_to(browser, address, model="x")
    assert not Collection.objects.exclude(next_space=None).exists()


def search(browser: httpx.Client, collection: Collection, query: str) -> str:
    return sent_to(browser, f"/admin/knowledge/collection/{collection.pk}/search/", query=query, limit=10)


def test_a_search_shows_three_methods_side_by_side_on_the_owners_account(browser, document, collection, records):
    page = search(browser, collection, "leaves in writing")
    assert page.count("<mark>Leave</mark> is asked for in <mark>writing</mark>") == 3
    assert "on the account of ada@example.org, who owns the collection" in page
    assert page.count("chunk 0</a>") == 3
    record = records(2)[-1]
    assert (record.user_email, record.key_name, record.endpoint) == ("ada@example.org", "console", "/v1/search")


def test_an_administrator_who_may_use_the_model_pays(browser, document, collection, admin, embeddings, records):
    Limit.objects.open_router(admin.role, embeddings)
    assert "on the account of" not in search(browser, collection, "leave")
    assert records(2)[-1].user_email == "admin@example.org"


def test_with_the_model_away_words_are_still_found(browser, document, collection, upstream):
    upstream.route(EMBEDDINGS, lambda request: (503, {"error": "no room"}))
    page = search(browser, collection, "leave")
    assert page.count("not searched") == 2
    assert page.count("chunk 0</a>") == 1


@pytest.mark.parametrize("fields", [{"limit": "0"}, {"score_threshold": "nan"}, {"rff_k": "-1"}, {"query": "\x00"}])
def test_a_search_that_cannot_be_made_is_told(console, collection, fields):
    form = {"query": "leave", "limit": "10", **fields}
    page = console.post(f"/admin/knowledge/collection/{collection.pk}/search/", form)
    assert page.status_code == 200
    assert "errorlist" in page.content.decode()


def test_an_excerpt_is_the_text_around_the_first_word():
    content = "x " * 500 + "the leave <b>is</b> asked " + "y " * 500
    parts = list(excerpt(content, {"leave", "asked"}))
    assert [part.text for part in parts if part.is_marked] == ["leave", "asked"]
    assert parts[0].text == "… "
    assert len("".join(part.text for part in parts)) < 450
    assert "".join(part.text for part in excerpt("short", {"x"})) == "short"
    assert "".join(part.text for part in excerpt("w" * 1000, {"w" * 1000})) == "w" * 420 + " …"


def test_only_administrators_come_in(client: Client, ada: User, collection):
    client.force_login(ada, backend="accounts.passwords.PasswordBackend")
    for path in (f"collection/{collection.pk}/search/", f"collection/{collection.pk}/progress/", "document/add/"):
        assert client.get(f"/admin/knowledge/{path}").status_code == 302
    for path in (f"collection/{collection.pk}/reembed/", "document/1/retry/"):
        assert client.post(f"/admin/knowledge/{path}").status_code == 302


def test_what_is_not_there_is_not_found(console, collection):
    for path in ("collection/999999/search/", f"collection/{'9' * 30}/progress/", "document/999999/progress/"):
        assert console.get(f"/admin/knowledge/{path}").status_code == 404


def test_pages_take_as_many_queries_for_many_rows_as_for_one(console, ada, embeddings, collection):
    pages = ("collection/", "document/", "chunk/", f"collection/{collection.pk}/change/")

    def queries() -> list[int]:
        counts = []
        for path in pages:
            with CaptureQueriesContext(connection) as captured:
                assert console.get(f"/admin/knowledge/{path}").status_code == 200
            counts.append(len(captured))
        return counts

    def fill(count: int) -> None:
        for number in range(count):
            space = Space.objects.create(router=embeddings)
            other = Collection.objects.create(
                name=f"c{number}", owner=ada, space=space, next_space=space, language="english"
            )
            for where in (other, collection):
                document = Document.objects.create(collection=where, name=f"d{number}")
                Chunk.objects.create(document=document, collection=where, number=0, content="text")

    fill(1)
    queries()  # content types
    few = queries()
    fill(5)
    assert queries() == few
    assert max(few) <= 14, few
