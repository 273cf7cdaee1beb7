"""Prints the variables that compose.yaml asks for, with secrets made now: `make_env.py gateway.example.org > .env`.

It needs Python alone, so that it runs before anything is installed. Keep what it prints: without the secrets neither
API keys open nor providers' keys can be read (docs/backup.md).
"""

import secrets
import sys
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parent.parent / ".env.example"


def filled(template: str, host: str) -> str:
    """Every empty value gets a secret of its own; `example.org` becomes the host."""
    lines = template.replace("gateway.example.org", host).splitlines()
    return "\n".join(line + secrets.token_urlsafe(48) if line.endswith("=") else line for line in lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say by which name people reach it: make_env.py gateway.example.org > .env")
    sys.stdout.write(filled(TEMPLATE.read_text(), sys.argv[1]))
