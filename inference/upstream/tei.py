"""Hugging Face Text Embeddings Inference: one model a server, which tells about itself at /info."""

from typing import Any

from inference.errors import ModelUnknown
from inference.upstream import answers, http
from inference.upstream.openai import OpenAI, encoded

_WHOLE = {"raw_scores": False, "return_text": False, "truncate": False, "truncation_direction": "right"}


class TEI(OpenAI):
    CONTEXT_LENGTH = "max_input_length"

    async def describe(self) -> dict[str, Any]:
        info = await self._get("info")
        if info.get("model_id") != self.provider.model_name:
            raise ModelUnknown(self.provider.model_name)
        return info

    async def rerank(self, payload: dict[str, Any]) -> dict[str, Any]:
        """It ranks all documents and answers with a list; the best of them where only some are wanted."""
        body = {"query": payload["query"], "texts": payload["documents"], **_WHOLE}
        scores = answers.objects(answers.parsed(await http.post(self.provider, "rerank", encoded(body))))
        rows = [{"index": score.get("index"), "relevance_score": score.get("score")} for score in scores]
        results = answers.ranks(rows, len(payload["documents"]))
        if payload.get("top_n"):
            results = sorted(results, key=lambda row: row["relevance_score"], reverse=True)[: payload["top_n"]]
        return {"results": results}
