"""E-mail messages: subject, sender, recipients, date, text; attachments by their names only."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage

from knowledge.readers import Options, Part, Refused
from knowledge.readers.markdown import blocks, heading

_SHOWN = ("From", "To", "Cc", "Date")


def read(document: bytes, options: Options) -> Iterator[Part]:
    message = email.message_from_bytes(document, policy=email.policy.default)
    if not any(name in message for name in ("From", "Date", "Subject", "Received")):
        raise Refused("The file is not an e-mail message.")
    lines = [f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))]
    names = [" ".join(name.split()) for part in message.iter_attachments() if (name := part.get_filename())]
    attached = f"Attachments: {', '.join(names)}" if names else ""
    yield Part(blocks([heading(_header(message, "Subject"), 1), "  \n".join(lines), _text(message), attached]))


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message[name] or "").split())
    except Exception:  # the library stumbles over some addresses that are none; the text is there all the same
        return ""


def _text(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    try:
        content = str(body.get_content())
    except LookupError:  # an encoding that nobody knows
        payload = body.get_payload(decode=True)
        content = payload.decode("latin-1") if isinstance(payload, bytes) else ""
    if body.get_content_subtype() != "html":
        return content
    from knowledge.readers.html import markdown_of  # most messages need none of its libraries

    return markdown_of(content)
