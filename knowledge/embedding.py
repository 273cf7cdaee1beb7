"""Texts to vectors, by the gateway's road: admitted, metered and paid like any other call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

from accounts.principals import Principal
from inference import gateway
from knowledge.errors import CollectionModelGone, ModelAnswersOtherSize, VectorizationFailed
from knowledge.models import Space
from opengate.request_id import new_request_id
from routing.models import Router
from usage.accounting import Call
from usage.models import Endpoint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH = 32  # texts a call
BATCH_CHARACTERS = 16_384  # of its texts together: some models take a second for two thousand
Vector = Union[Sequence[float], "npt.NDArray[np.float64]"]


def fitting(texts: Sequence[str]) -> int:
    """How many of the texts, from the first on, go into one call; a long one goes alone."""
    length = 0
    for number, text in enumerate(texts[:BATCH]):
        length += len(text)
        if number and length > BATCH_CHARACTERS:
            return number
    return min(len(texts), BATCH)


async def embed(principal: Principal, space: Space, texts: Sequence[str]) -> list[Vector]:
    """One vector of unit length for each text, in order; as many as are `fitting`. `space.router` must be loaded.

    Raises what stands in a call's way, CollectionModelGone when the space has no model any more, and
    ModelAnswersOtherSize when its vectors are not of this space. A space without dimensions takes these.
    """
    call = Call(principal, Endpoint.EMBEDDINGS, new_request_id())
    answer = await gateway.embed(call, {"model": model_of(space).name, "input": list(texts)})
    return vectors_in(answer, space)


def model_of(space: Space) -> Router:
    if space.router is None:
        raise CollectionModelGone
    return space.router


def vectors_in(answer: dict[str, Any], space: Space) -> list[Vector]:
    """The vectors of an answer of `gateway.embed`, of unit length; raises ModelAnswersOtherSize."""
    import numpy as np  # a process that has no documents to search does without its ten MiB

    rows = [row["embedding"] for row in answer["data"]]
    expected = space.dimensions or len(rows[0])
    for size in {len(row) for row in rows} - {expected}:
        raise ModelAnswersOtherSize(size, expected)
    vectors = np.array(rows, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise VectorizationFailed("The model answered a vector without a direction.")
    return list(vectors / lengths)
