"""How words are known: a text search configuration a language, with accents folded after the stop words went."""

from django.contrib.postgres.operations import CreateExtension, TrigramExtension, UnaccentExtension
from django.db import migrations
from pgvector.django import VectorExtension

LANGUAGES = ("english", "french", "german", "italian", "portuguese", "spanish", "swedish")

MADE = """
CREATE TEXT SEARCH DICTIONARY opengate_{0}_stop (TEMPLATE = pg_catalog.simple, STOPWORDS = {0}, ACCEPT = false);
CREATE TEXT SEARCH CONFIGURATION opengate_{0} (COPY = pg_catalog.{0});
ALTER TEXT SEARCH CONFIGURATION opengate_{0}
  ALTER MAPPING FOR asciiword, word, asciihword, hword, hword_asciipart, hword_part
  WITH opengate_{0}_stop, unaccent, {0}_stem;
"""
GONE = """
DROP TEXT SEARCH CONFIGURATION opengate_{0};
DROP TEXT SEARCH DICTIONARY opengate_{0}_stop;
"""


class Migration(migrations.Migration):
    initial = True

    dependencies = [("routing", "0003_strategies_and_upstream_costs")]

    operations = [
        VectorExtension(),
        TrigramExtension(),
        UnaccentExtension(),
        CreateExtension("fuzzystrmatch"),
        *(migrations.RunSQL(MADE.format(language), GONE.format(language)) for language in LANGUAGES),
    ]
