"""What goes with what, words and their counts, and vectors inline: kept by the database, whoever writes."""

from django.db import migrations

CASCADES = """
ALTER TABLE knowledge_document ADD CONSTRAINT document_in_collection
  FOREIGN KEY (collection_id) REFERENCES knowledge_collection ON DELETE CASCADE;
ALTER TABLE knowledge_chunk ADD CONSTRAINT chunk_of_document
  FOREIGN KEY (document_id) REFERENCES knowledge_document ON DELETE CASCADE;
ALTER TABLE knowledge_draft ADD CONSTRAINT draft_of_document
  FOREIGN KEY (document_id) REFERENCES knowledge_document ON DELETE CASCADE;
ALTER TABLE knowledge_draftembedding ADD CONSTRAINT draft_embedding_of_document
  FOREIGN KEY (document_id) REFERENCES knowledge_document ON DELETE CASCADE;
ALTER TABLE knowledge_word ADD CONSTRAINT word_in_collection
  FOREIGN KEY (collection_id) REFERENCES knowledge_collection ON DELETE CASCADE;
"""
NO_CASCADES = """
ALTER TABLE knowledge_document DROP CONSTRAINT document_in_collection;
ALTER TABLE knowledge_chunk DROP CONSTRAINT chunk_of_document;
ALTER TABLE knowledge_draft DROP CONSTRAINT draft_of_document;
ALTER TABLE knowledge_draftembedding DROP CONSTRAINT draft_embedding_of_document;
ALTER TABLE knowledge_word DROP CONSTRAINT word_in_collection;
"""

# A vector beside its neighbours is read ten times quicker than one that is stored apart.
INLINE = """
ALTER TABLE knowledge_embedding ALTER embedding SET STORAGE MAIN, SET (toast_tuple_target = 8160);
ALTER TABLE knowledge_draftembedding ALTER embedding SET STORAGE MAIN, SET (toast_tuple_target = 8160);
ALTER TABLE knowledge_lexemes ALTER lexemes SET STORAGE MAIN, SET (toast_tuple_target = 8160);
"""

# Values compare as text, whatever they are in JSON. Of an index on arrays nothing need be looked at again.
FACETS = """
CREATE FUNCTION knowledge_facet(key text, value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT length(key) || ':' || key || value
$$;
CREATE FUNCTION knowledge_facets(metadata jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT array_agg(length(key) || ':' || key || (value #>> '{}')) FROM jsonb_each(metadata)
$$;
CREATE INDEX chunk_facets ON knowledge_chunk USING gin (knowledge_facets(metadata))
  WITH (fastupdate = off) WHERE metadata IS NOT NULL;
"""
NO_FACETS = "DROP INDEX chunk_facets; DROP FUNCTION knowledge_facets; DROP FUNCTION knowledge_facet;"

# A tsvector has a megabyte at most: of a longer text, the first words count.
LEXEMES = """
CREATE FUNCTION knowledge_lexemes(language text, content text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  configuration regconfig := ('opengate_' || language)::regconfig;
BEGIN
  IF length(content) <= 100000 THEN
    RETURN to_tsvector(configuration, content);
  END IF;
  BEGIN
    RETURN to_tsvector(configuration, content);
  EXCEPTION WHEN program_limit_exceeded THEN
    RETURN knowledge_lexemes(language, left(content, length(content) / 2));
  END;
END $$;
"""
NO_LEXEMES = "DROP FUNCTION knowledge_lexemes;"

TRIGGERS = """
CREATE FUNCTION knowledge_chunks_came() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM knowledge_collection WHERE id IN (SELECT collection_id FROM came) ORDER BY id FOR NO KEY UPDATE;
  WITH known AS (
    INSERT INTO knowledge_lexemes (chunk_id, collection_id, language, length, lexemes)
    SELECT came.id, came.collection_id, collection.language, counted.length, read.lexemes
    FROM came
    JOIN knowledge_collection collection ON collection.id = came.collection_id
    CROSS JOIN LATERAL (SELECT knowledge_lexemes(collection.language, came.content) AS lexemes OFFSET 0) read
    CROSS JOIN LATERAL (
      SELECT coalesce(sum(cardinality(positions)), 0) AS length FROM unnest(read.lexemes)
    ) counted
    RETURNING collection_id, length, lexemes
  ), learned AS (
    INSERT INTO knowledge_word (collection_id, word)
    SELECT DISTINCT collection_id, word FROM known, unnest(tsvector_to_array(lexemes)) AS word
    WHERE word ~ '^[[:alpha:]]{3,40}$' ORDER BY 1, 2
    ON CONFLICT DO NOTHING
  )
  UPDATE knowledge_collection SET chunks = chunks + sums.count, words = words + sums.length
  FROM (SELECT collection_id, count(*), sum(length) AS length FROM known GROUP BY collection_id) sums
  WHERE id = collection_id;
  RETURN NULL;
END $$;
CREATE TRIGGER chunks_came AFTER INSERT ON knowledge_chunk
  REFERENCING NEW TABLE AS came FOR EACH STATEMENT EXECUTE FUNCTION knowledge_chunks_came();

CREATE FUNCTION knowledge_chunks_went() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM knowledge_embedding WHERE chunk_id IN (SELECT id FROM went);
  WITH forgotten AS (
    DELETE FROM knowledge_lexemes WHERE chunk_id IN (SELECT id FROM went) RETURNING collection_id, length
  )
  UPDATE knowledge_collection
  SET chunks = chunks - sums.count, words = words - sums.length, has_stale_words = true
  FROM (SELECT collection_id, count(*), sum(length) AS length FROM forgotten GROUP BY collection_id) sums
  WHERE id = collection_id;
  RETURN NULL;
END $$;
CREATE TRIGGER chunks_went AFTER DELETE ON knowledge_chunk
  REFERENCING OLD TABLE AS went FOR EACH STATEMENT EXECUTE FUNCTION knowledge_chunks_went();

CREATE FUNCTION knowledge_document_went() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO knowledge_discardedfile (file) VALUES (OLD.file);
  RETURN NULL;
END $$;
CREATE TRIGGER document_went AFTER DELETE ON knowledge_document
  FOR EACH ROW WHEN (OLD.file <> '') EXECUTE FUNCTION knowledge_document_went();
"""
NO_TRIGGERS = """
DROP TRIGGER document_went ON knowledge_document;
DROP FUNCTION knowledge_document_went;
DROP TRIGGER chunks_went ON knowledge_chunk;
DROP FUNCTION knowledge_chunks_went;
DROP TRIGGER chunks_came ON knowledge_chunk;
DROP FUNCTION knowledge_chunks_came;
"""


class Migration(migrations.Migration):
    dependencies = [("knowledge", "0002_tables")]

    operations = [
        migrations.RunSQL(CASCADES, NO_CASCADES),
        migrations.RunSQL(INLINE, migrations.RunSQL.noop),
        migrations.RunSQL(FACETS, NO_FACETS),
        migrations.RunSQL(LEXEMES, NO_LEXEMES),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
