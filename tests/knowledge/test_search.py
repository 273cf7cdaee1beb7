"""Search by each method, with filters, paging and thresholds."""

from tests.knowledge.conftest import found


def test_each_method_finds_a_document(as_ada, add):
    document = add("Leave is asked for in writing.\n\nThe canteen opens at noon.", chunk_size="40")
    for method in ("semantic", "lexical", "hybrid"):
        first = found(as_ada, "When does the canteen open?", method=method)[0]
        assert first["method"] == method
        assert first["chunk"]["content"] == "The canteen opens at noon."
        assert first["chunk"]["document_id"] == document.pk
