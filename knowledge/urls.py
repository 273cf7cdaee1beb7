"""Paths of collections, documents and chunks, under /v1/."""

from django.urls import path

from knowledge import api

urlpatterns = [
    path("collections", api.Collections.as_view()),
    path("collections/<str:collection_id>", api.OneCollection.as_view()),
    path("documents", api.Documents.as_view()),
    path("documents/<str:document_id>", api.OneDocument.as_view()),
    path("documents/<str:document_id>/chunks", api.Chunks.as_view()),
    path("documents/<str:document_id>/chunks/<str:chunk_id>", api.OneChunk.as_view()),
    path("chunks/<str:document>", api.OldChunks.as_view()),
    path("chunks/<str:document>/<str:chunk>", api.OldChunk.as_view()),
]
