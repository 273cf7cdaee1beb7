"""What a chunk brings and takes is looked up by its key, however large the tables are.

How many chunks come or go no plan can know, nor how large a table has become since it was looked at last: left to
itself, Postgres may read all of it for each document.
"""

from django.db import migrations

FUNCTIONS = ("knowledge_chunks_came", "knowledge_chunks_went")


class Migration(migrations.Migration):
    dependencies = [("knowledge", "0007_words_in_larger_batches")]

    operations = [
        migrations.RunSQL(
            f"ALTER FUNCTION {function} SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off;",
            f"ALTER FUNCTION {function} RESET enable_hashjoin RESET enable_mergejoin RESET enable_seqscan;",
        )
        for function in FUNCTIONS
    ]
