"""Words come into their index two MiB at a time: a search looks through what waits, in a millisecond."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("knowledge", "0006_vectors_outside_an_index")]

    operations = [
        migrations.RunSQL(
            "ALTER INDEX lexemes_words SET (gin_pending_list_limit = 2048);",
            "ALTER INDEX lexemes_words SET (gin_pending_list_limit = 512);",
        )
    ]
