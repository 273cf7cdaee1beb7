"""Another model for a collection, while it is searched."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from tqdm import tqdm

from knowledge import reembedding
from knowledge.errors import may_heal
from knowledge.models import Collection
from opengate.errors import APIError
from routing.models import ModelType, Router

PAUSE_SECONDS = 10.0


class Command(BaseCommand):
    help = (
        "Embeds collections anew, for another model or for one that changed, and switches each when it is done. "
        "They are searched as before until then. May be broken off and run again: it goes on where it was."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("collection", nargs="*", type=int, help="Ids; without any, those that are on their way.")
        parser.add_argument("--all", action="store_true", help="All collections.")
        parser.add_argument("--model", help="Name or alias of the model; without it, the one that they have.")
        parser.add_argument("--fresh", action="store_true", help="Embed all anew though the model has the same name.")

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Collection.objects.order_by("id")
        if options["collection"]:
            chosen = chosen.filter(id__in=options["collection"])
            missing = set(options["collection"]) - set(chosen.values_list("id", flat=True))
            if missing:
                raise CommandError(f"Collection {min(missing)} not found.")
        elif not options["all"]:
            if options["model"] or options["fresh"]:
                raise CommandError("Say which collections, or --all.")
            chosen = chosen.filter(next_space__isnull=False)
        router = self._router(options["model"])
        failed = [id for id in chosen.values_list("id", flat=True) if not self._reembed(id, router, options["fresh"])]
        if failed:
            raise CommandError(f"Not done: {', '.join(map(str, failed))}.")

    def _router(self, name: str | None) -> Router | None:
        if name is None:
            return None
        router = Router.objects.filter(names__value=name).first()
        if router is None or router.type != ModelType.TEXT_EMBEDDINGS_INFERENCE:
            raise CommandError(f"There is no model {name} that embeds.")
        return router

    def _reembed(self, id: int, router: Router | None, fresh: bool) -> bool:
        with transaction.atomic():
            collection = Collection.objects.locked(id)
            if collection is None:
                self.stdout.write(f"{id}: deleted meanwhile.")
                return True
            wanted = router or (collection.space.router if collection.space else None)
            if router or fresh:
                if wanted is None:
                    self.stderr.write(f"{id} {collection}: its model is gone; name another with --model.")
                    return False
                reembedding.begin(collection, wanted, fresh=fresh)
        if collection.next_space is None:
            self.stdout.write(f"{id} {collection}: nothing to do.")
            return True
        with tqdm(desc=f"{id} {collection}", unit=" chunks", disable=None) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return self._try(id, show)

    def _try(self, id: int, show: reembedding.Progress) -> bool:
        while True:
            try:
                if reembedding.reembed(id, show):
                    self.stdout.write(f"{id}: switched.")
                    return True
            except APIError as error:
                if not may_heal(error):
                    self.stderr.write(f"{id}: {error.detail}")
                    return False
                self.stderr.write(f"{id}: {error.detail} Trying again.")
            else:
                if not Collection.objects.filter(id=id, next_space__isnull=False).exists():
                    self.stdout.write(f"{id}: done by another.")
                    return True
            time.sleep(PAUSE_SECONDS)
