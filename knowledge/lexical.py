"""By words: BM25 over the words of the collections that are searched, and of no others.

How often a word occurs in a chunk is the number of its covers there, which `ts_rank_cd` counts; in how many chunks, the
statement finds on its way; how many chunks there are, and how long, the collections know.
"""

from collections.abc import Sequence
from typing import NamedTuple

from django.db import connection

from knowledge.queries import Scope, Search

K1, B = 1.2, 0.75  # Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009
MAX_TERMS = 100
MAX_MISTAKEN = 8  # words of a query that may be misspelt
ALTERNATIVES = 3
FEW = 1_500  # chunks: their words are read through in some milliseconds


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
    # Where few are searched they are read through, rather than all chunks that have a word, whoever's they are.
    there = f"language = '{language}' AND collection_id = ANY(ARRAY({inside(search.scope)}))"
    read = f"(SELECT * FROM knowledge_lexemes WHERE {there} OFFSET 0) AS few" if chunks <= FEW else "knowledge_lexemes"
    return f"""
        hit_{language} AS MATERIALIZED (
          SELECT chunk_id, {K1} * ({1 - B} + {B} * length / {average}) AS norm, {", ".join(columns)}
          FROM {read} WHERE lexemes @@ %({language})s::tsquery AND {there}
        ), weight_{language} AS MATERIALIZED (SELECT {", ".join(weights)} FROM hit_{language}),
        worded_{language} AS (
          SELECT chunk_id, {" + ".join(scores)} AS score FROM hit_{language}, weight_{language}
        )"""


def _terms(search: Search, language: str) -> list[Term]:
    """The query's words, without stop words; for one that nobody uses, those that resemble it most."""
    cursor = search.cursor
    cursor.execute(
        f"""
        SELECT lexeme, lexeme ~ '^[[:alpha:]]{{3,40}}$'
        FROM unnest(tsvector_to_array(to_tsvector(%s::regconfig, %s))) AS lexeme LIMIT {MAX_TERMS}
        """,
        [f"opengate_{language}", search.query.text],
    )
    found = cursor.fetchall()
    terms = [Term(lexeme) for lexeme, _ in found]
    for term in _unused(search, language, [Term(lexeme) for lexeme, is_word in found if is_word])[:MAX_MISTAKEN]:
        known = {term.lexeme for term in terms}
        terms += [alike for alike in _alike(search, language, term.lexeme) if alike.lexeme not in known]
    return terms


def _used(scope: Scope, language: str, query: str) -> str:
    """Whether a chunk that may be found has a word; only in statements can that be asked for all at once."""
    return (
        f"EXISTS (SELECT FROM knowledge_lexemes WHERE lexemes @@ {query}::tsquery AND language = '{language}' "
        f"AND collection_id = ANY(ARRAY({inside(scope)})))"
    )


def _unused(search: Search, language: str, terms: Sequence[Term]) -> list[Term]:
    """Those that no chunk has."""
    if not terms:
        return []
    parameters = search.scope.parameters() | {f"term_{number}": term.query for number, term in enumerate(terms)}
    used = ", ".join(_used(search.scope, language, f"%(term_{number})s") for number in range(len(terms)))
    search.cursor.execute(f"SELECT {used}", parameters)
    return [term for term, is_used in zip(terms, search.cursor.fetchone(), strict=True) if not is_used]


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


def _alike(search: Search, language: str, lexeme: str) -> list[Term]:
    """Words of the chunks within one edit of a short word and two of a longer one, the nearest first."""
    edits = 1 if len(lexeme) <= 5 else 2
    quoted = "quote_literal(word)"  # as a tsquery has it, too: a word is of letters
    search.cursor.execute(
        f"""
        SELECT word, edits FROM (
          SELECT word, levenshtein_less_equal(word, %(lexeme)s, {edits}) AS edits FROM knowledge_word
          WHERE word %% %(lexeme)s AND language = '{language}'
            AND length(word) BETWEEN {len(lexeme) - edits} AND {len(lexeme) + edits}
          ORDER BY 2, 1 OFFSET 0
        ) alike WHERE edits <= {edits} AND {_used(search.scope, language, quoted)} LIMIT {ALTERNATIVES}
        """,
        search.scope.parameters() | {"lexeme": lexeme},
    )
    return [Term(word, 1 - edits / len(lexeme)) for word, edits in search.cursor.fetchall()]


def inside(scope: Scope) -> str:
    """Ids of the collections that are searched."""
    return f"SELECT collection.id FROM knowledge_collection collection WHERE {scope.sql}"
