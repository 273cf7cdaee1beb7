"""Words are kept once for a language, not for each collection; drafts have theirs, and the database reads the others."""

import uuid

import django.contrib.postgres.indexes
import django.contrib.postgres.search
from django.db import migrations, models

LANGUAGES = [(name, name) for name in ("english", "french", "german", "italian", "portuguese", "spanish", "swedish")]

KNOWN = """
INSERT INTO knowledge_word (language, word)
  SELECT DISTINCT language, word FROM knowledge_lexemes, unnest(tsvector_to_array(lexemes)) AS word
  WHERE word ~ '^[[:alpha:]]{3,40}$';
"""

INLINE = """
ALTER TABLE knowledge_draft ALTER content SET STORAGE MAIN, ALTER lexemes SET STORAGE MAIN,
  SET (toast_tuple_target = 8160);
"""

TRIGGERS = """
CREATE OR REPLACE FUNCTION knowledge_chunks_came() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM knowledge_collection WHERE id IN (SELECT collection_id FROM came) ORDER BY id FOR NO KEY UPDATE;
  IF EXISTS (SELECT FROM came WHERE NOT EXISTS (SELECT FROM knowledge_lexemes WHERE chunk_id = came.id)) THEN
    PERFORM knowledge_vocabulary_kept(language) FROM (
      SELECT DISTINCT language FROM knowledge_collection WHERE id IN (SELECT collection_id FROM came) ORDER BY language
    ) languages;
    WITH known AS (
      INSERT INTO knowledge_lexemes (chunk_id, collection_id, language, length, lexemes)
      SELECT came.id, came.collection_id, collection.language, counted.length, read.lexemes
      FROM came
      JOIN knowledge_collection collection ON collection.id = came.collection_id
      CROSS JOIN LATERAL (SELECT knowledge_lexemes(collection.language, came.content) AS lexemes OFFSET 0) read
      CROSS JOIN LATERAL (
        SELECT coalesce(sum(cardinality(positions)), 0) AS length FROM unnest(read.lexemes)
      ) counted
      WHERE NOT EXISTS (SELECT FROM knowledge_lexemes lexemes WHERE lexemes.chunk_id = came.id)
      RETURNING language, lexemes
    )
    INSERT INTO knowledge_word (language, word)
    SELECT language, word FROM (
      SELECT DISTINCT language, word FROM known, unnest(tsvector_to_array(lexemes)) AS word
    ) words
    WHERE word ~ '^[[:alpha:]]{3,40}$' ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
  END IF;
  UPDATE knowledge_collection SET chunks = chunks + sums.count, words = words + sums.length
  FROM (
    SELECT collection_id, count(*), sum(length) AS length FROM knowledge_lexemes
    WHERE chunk_id IN (SELECT id FROM came) GROUP BY collection_id
  ) sums
  WHERE id = collection_id;
  RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION knowledge_chunks_went() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM knowledge_embedding WHERE chunk_id IN (SELECT id FROM went);
  WITH forgotten AS (
    DELETE FROM knowledge_lexemes WHERE chunk_id IN (SELECT id FROM went) RETURNING collection_id, language, length
  ), noted AS (
    INSERT INTO knowledge_lostwords (language) SELECT DISTINCT language FROM forgotten
  )
  UPDATE knowledge_collection SET chunks = chunks - sums.count, words = words - sums.length
  FROM (SELECT collection_id, count(*), sum(length) AS length FROM forgotten GROUP BY collection_id) sums
  WHERE id = collection_id;
  RETURN NULL;
END $$;
"""

# Of a document that came to nothing.
DRAFTS = """
CREATE FUNCTION knowledge_drafts_went() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO knowledge_lostwords (language) SELECT DISTINCT language FROM went WHERE language IS NOT NULL
    AND NOT EXISTS (SELECT FROM knowledge_chunk chunk WHERE chunk.document_id = went.document_id);
  RETURN NULL;
END $$;
CREATE TRIGGER drafts_went AFTER DELETE ON knowledge_draft
  REFERENCING OLD TABLE AS went FOR EACH STATEMENT EXECUTE FUNCTION knowledge_drafts_went();
"""
NO_DRAFTS = """
DROP TRIGGER drafts_went ON knowledge_draft;
DROP FUNCTION knowledge_drafts_went;
"""

# Until the transaction ends nobody takes words away. The edition tells whether somebody did before.
VOCABULARY = """
CREATE FUNCTION knowledge_vocabulary_kept(kept text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
  found uuid;
BEGIN
  SELECT edition INTO found FROM knowledge_vocabulary WHERE language = kept FOR SHARE;
  IF found IS NULL THEN
    INSERT INTO knowledge_vocabulary (language, edition) VALUES (kept, gen_random_uuid()) ON CONFLICT DO NOTHING;
    SELECT edition INTO found FROM knowledge_vocabulary WHERE language = kept FOR SHARE;
  END IF;
  RETURN found;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("knowledge", "0003_what_the_database_keeps")]

    operations = [
        migrations.DeleteModel(name="Word"),
        migrations.RemoveField(model_name="collection", name="has_stale_words"),
        migrations.CreateModel(
            name="Vocabulary",
            fields=[
                ("language", models.CharField(choices=LANGUAGES, max_length=16, primary_key=True, serialize=False)),
                ("edition", models.UUIDField(default=uuid.uuid4)),
            ],
            options={"verbose_name_plural": "vocabularies"},
        ),
        migrations.CreateModel(
            name="LostWords",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("language", models.CharField(choices=LANGUAGES, max_length=16)),
            ],
            options={"verbose_name_plural": "lost words"},
        ),
        migrations.CreateModel(
            name="Word",
            fields=[
                ("pk", models.CompositePrimaryKey("language", "word", blank=True, editable=False, primary_key=True, serialize=False)),
                ("language", models.CharField(choices=LANGUAGES, max_length=16)),
                ("word", models.TextField()),
            ],
            options={
                "indexes": [
                    django.contrib.postgres.indexes.GinIndex(
                        django.contrib.postgres.indexes.OpClass("word", "gin_trgm_ops"), name="word_alike"
                    )
                ]
            },
        ),
        migrations.AddField(
            model_name="draft", name="language", field=models.CharField(choices=LANGUAGES, max_length=16, null=True)
        ),
        migrations.AddField(model_name="draft", name="length", field=models.PositiveIntegerField(null=True)),
        migrations.AddField(
            model_name="draft", name="lexemes", field=django.contrib.postgres.search.SearchVectorField(null=True)
        ),
        migrations.RunSQL(INLINE, migrations.RunSQL.noop),
        migrations.RunSQL(VOCABULARY, "DROP FUNCTION knowledge_vocabulary_kept;"),
        migrations.RunSQL(DRAFTS, NO_DRAFTS),
        migrations.RunSQL(TRIGGERS, migrations.RunSQL.noop),
        migrations.RunSQL(KNOWN, migrations.RunSQL.noop),
    ]
