"""What the log says of mistakes: a traceback is for those that are ours."""

import logging


class NoTracebackOfCallers(logging.Filter):
    """Django tells where it refused a request; of those that the caller is to blame for, a line says enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("django.") and getattr(record, "status_code", 500) < 500:
            record.exc_info = record.exc_text = None
        return True
