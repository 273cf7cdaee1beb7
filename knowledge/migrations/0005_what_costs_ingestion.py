"""Indexes that others make needless go; words come into theirs in batches; vectors need not be in theirs at once."""

import django.contrib.postgres.indexes
import django.db.models.deletion
from django.db import migrations, models

# Every vector that came had to be in these at once: workers build the new ones.
OLD_INDEXES = """
DO $$
DECLARE
  name text;
BEGIN
  FOR name IN SELECT relname FROM pg_class WHERE relkind = 'i' AND relname ~ '^knowledge_embedding_space_[0-9]+$' LOOP
    EXECUTE format('DROP INDEX %I', name);
  END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("knowledge", "0004_words_of_a_language")]

    operations = [
        migrations.AddField(
            model_name="embedding", name="in_index", field=models.BooleanField(db_default=False, default=False)
        ),
        migrations.AlterField(
            model_name="chunk",
            name="document",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="chunks",
                to="knowledge.document",
            ),
        ),
        migrations.AlterField(
            model_name="embedding",
            name="chunk",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="embeddings",
                to="knowledge.chunk",
            ),
        ),
        migrations.SeparateDatabaseAndState(
            [migrations.RunSQL("ALTER INDEX lexemes_words SET (fastupdate = on, gin_pending_list_limit = 512);", "ALTER INDEX lexemes_words SET (fastupdate = off);")],
            [
                migrations.RemoveIndex(model_name="lexemes", name="lexemes_words"),
                migrations.AddIndex(
                    model_name="lexemes",
                    index=django.contrib.postgres.indexes.GinIndex(fields=["lexemes"], name="lexemes_words"),
                ),
            ],
        ),
        migrations.RunSQL(OLD_INDEXES, migrations.RunSQL.noop),
    ]
