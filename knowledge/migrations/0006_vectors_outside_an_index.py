"""Vectors that are not in their space's index are found by this one."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("knowledge", "0005_what_costs_ingestion")]

    operations = [
        AddIndexConcurrently(
            model_name="embedding",
            index=models.Index(
                condition=models.Q(("in_index", False)), fields=["space", "chunk"], name="embedding_not_in_index"
            ),
        ),
    ]
