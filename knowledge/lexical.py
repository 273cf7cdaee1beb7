"""By words: BM25 over the words of the collections that are searched, and of no others.

How often a word occurs in a chunk is the number of its covers there, which `ts_rank_cd` counts; in how many chunks, the
statement finds on its way; how many chunks there are, and how long, the collections know.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connection
from django.db.backends.utils import CursorWrapper

from knowledge.queries import Scope, Search

K1, B = 1.2, 0.75  # Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009
MAX_TERMS = 100
MAX_MISTAKEN = 8  # words of a query that may be misspelt
ALTERNATIVES = 3


class Term(NamedTuple):
    """A word as the language's dictionary has it; `weight` is less than 1 for one that only resembles the query's."""

    lexeme: str
    weight: float = 1

    @property
    def query(self) -> str:
        """As a tsquery."""
        escaped = self.lexeme.replace("\\", "\\\\").replace("'", "''")
        return f"'{escaped}'"


def statement(search: Search) -> str:
    """`worded`: chunks with a word of the query, and their BM25 scores; empty where no word can be found."""
    parts, unions = [], []
    for language in sorted({corpus.language for corpus in search.scope.corpora}):
        terms = _terms(search, language)
        if terms:
            parts.append(_ranking(search, language, terms))
            unions.append(f"SELECT chunk_id, score FROM worded_{language}")
    if not parts:
        return ""
    worded = " UNION ALL ".join(unions)
    if search.conditions:
        worded = (
            f"SELECT chunk_id, score FROM ({worded}) AS found JOIN knowledge_chunk chunk ON chunk.id = chunk_id "
            f"WHERE {search.conditions}"
        )
    return ", ".join([*parts, f"worded AS MATERIALIZED ({worded})"])


def _ranking(search: Search, language: str, terms: Sequence[Term]) -> str:
    corpora = [corpus for corpus in search.scope.corpora if corpus.language == language]
    chunks, words = sum(corpus.chunks for corpus in corpora), sum(corpus.words for corpus in corpora)
    average = max(words / chunks, 1)
    columns, weights, scores = [], [], []
    for number, term in enumerate(terms):
        name = f"{language}_{number}"
        search.parameters[name] = term.query
        columns.append(  # to look first costs a quarter of ranking all words of each chunk
            f"CASE WHEN lexemes @@ %({name})s::tsquery "
            f"THEN ts_rank_cd('{{1,1,1,1}}', lexemes, %({name})s::tsquery)::float ELSE 0 END AS tf_{number}"
        )
        found = f"count(*) FILTER (WHERE tf_{number} > 0)"
        weights.append(
            f"{term.weight} * ln(1 + (greatest({chunks}, {found}) - {found} + 0.5) / ({found} + 0.5)) AS idf_{number}"
        )
        scores.append(f"idf_{number} * tf_{number} * {K1 + 1} / (tf_{number} + norm)")
    search.parameters[language] = " | ".join(term.query for term in terms)
    inside = f"SELECT collection.id FROM knowledge_collection collection WHERE {search.scope.sql}"
    return f"""
        hit_{language} AS MATERIALIZED (
          SELECT chunk_id, {K1} * ({1 - B} + {B} * length / {average}) AS norm, {", ".join(columns)}
          FROM knowledge_lexemes
          WHERE lexemes @@ %({language})s::tsquery AND language = '{language}'
            AND collection_id = ANY(ARRAY({inside}))
        ), weight_{language} AS MATERIALIZED (SELECT {", ".join(weights)} FROM hit_{language}),
        worded_{language} AS (
          SELECT chunk_id, {" + ".join(scores)} AS score FROM hit_{language}, weight_{language}
        )"""


def _terms(search: Search, language: str) -> list[Term]:
    """The query's words, without stop words; for one that nobody uses, those that resemble it most."""
    cursor, scope = search.cursor, search.scope
    parameters = scope.parameters() | {"configuration": f"opengate_{language}", "language": language}
    parameters["text"] = search.query.text
    cursor.execute(
        f"""
        SELECT lexeme, lexeme ~ '^[[:alpha:]]{{3,40}}$' AND NOT EXISTS (
          SELECT FROM knowledge_word word JOIN knowledge_collection collection ON collection.id = word.collection_id
          WHERE word.word = lexeme AND collection.language = %(language)s AND {scope.sql}
        )
        FROM unnest(tsvector_to_array(to_tsvector(%(configuration)s::regconfig, %(text)s))) AS lexeme
        LIMIT {MAX_TERMS}
        """,
        parameters,
    )
    found = cursor.fetchall()
    terms = [Term(lexeme) for lexeme, _ in found]
    for lexeme in [lexeme for lexeme, is_unknown in found if is_unknown][:MAX_MISTAKEN]:
        known = {term.lexeme for term in terms}
        terms += [term for term in _alike(cursor, lexeme, parameters, scope) if term.lexeme not in known]
    return terms


def words_meant(text: str, language: str, words: Sequence[str]) -> set[str]:
    """Those of the words that are a word of the text, as the language's dictionary has them: `asks` is for `asked`."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT word FROM unnest(%(words)s::text[]) AS word
            WHERE tsvector_to_array(to_tsvector(%(configuration)s::regconfig, word))
              && (SELECT tsvector_to_array(to_tsvector(%(configuration)s::regconfig, %(text)s)))
            """,
            {"words": list(words), "configuration": f"opengate_{language}", "text": text},
        )
        return {word for (word,) in cursor.fetchall()}


def _alike(cursor: CursorWrapper, lexeme: str, parameters: dict[str, Any], scope: Scope) -> list[Term]:
    """Words within one edit of a short word and two of a longer one, the nearest first."""
    edits = 1 if len(lexeme) <= 5 else 2
    cursor.execute(
        f"""
        SELECT word.word, min(levenshtein_less_equal(word.word, %(lexeme)s, {edits})) AS edits
        FROM knowledge_word word JOIN knowledge_collection collection ON collection.id = word.collection_id
        WHERE word.word %% %(lexeme)s AND length(word.word) BETWEEN {len(lexeme) - edits} AND {len(lexeme) + edits}
          AND levenshtein_less_equal(word.word, %(lexeme)s, {edits}) <= {edits}
          AND collection.language = %(language)s AND {scope.sql}
        GROUP BY word.word ORDER BY edits, word.word LIMIT {ALTERNATIVES}
        """,
        parameters | {"lexeme": lexeme},
    )
    return [Term(word, 1 - edits / len(lexeme)) for word, edits in cursor.fetchall()]
