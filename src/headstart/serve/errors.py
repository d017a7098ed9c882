"""How a request that cannot be answered is told so."""

from collections.abc import Mapping


class RequestError(Exception):
    """A request is not answered; the sentence says why, and what to do.

    Args:
        status: HTTP status, 4xx or 503.
        sentence: For the person who asked.
        headers: Of the response.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})
