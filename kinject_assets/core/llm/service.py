"""A service that speaks OpenAI's API: its address and key, what goes wrong with it, its answers."""

import os
import random
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from kinject_assets import config
from kinject_assets.core.errors import LLMError
from kinject_assets.core.llm.prices import cost

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

FIRST_PAUSE = 0.5
"""Seconds before the second try when the service names no time; doubled with every try."""

LONGEST_PAUSE = 60.0
"""Seconds that a pause of our own choosing may last."""

LONGEST_RETRY_AFTER = 600.0
"""Seconds that a service may ask us to wait; with more we stop and say so."""


def address_of(profile: config.Profile) -> str | None:
    """Address of the service that a profile names; `None` for OpenAI's own.

    For `lab` that of the embedded lab's server, which this process starts and keeps.
    """
    address = profile.llm.base_url or os.environ.get("OPENAI_BASE_URL")
    if address == "lab":
        from kinject_assets.lab.server import address_of as lab_address

        return f"{lab_address(profile)}/v1"
    return address


@dataclass(frozen=True)
class Trouble:
    """Why a request brought no answer.

    Attributes:
        status: HTTP status; `None` when there was none.
        final: Trying again would bring the same.
        retry_after: Seconds to wait, where the service named them.
    """

    why: str
    status: int | None = None
    possibly_paid: bool = False
    final: bool = False
    retry_after: float | None = None


class Pauses:
    """How long to wait between the tries of one request."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def after(self, trouble: Trouble) -> float:
        """Seconds before the next try."""
        pause, self._next = min(self._next, LONGEST_PAUSE), self._next * 2
        if trouble.retry_after is None:
            return pause * random.uniform(0.5, 1.0)
        return trouble.retry_after * random.uniform(1.0, 1.1)


class Service:
    """The service that a profile names.

    Args:
        settings: The profile's `llm`.
        base_url: Its address; `None` for `OPENAI_BASE_URL`, then OpenAI's own.

    Attributes:
        url: Its address as it may be shown.

    Raises:
        LLMError: If OpenAI's own service is to be used and `OPENAI_API_KEY` is not set, or a budget
            is set for a model without a price.
    """

    def __init__(self, settings: config.LLM, base_url: str | None) -> None:
        self.settings = settings
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._base_url = base_url
        parts = urlsplit(base_url.rstrip("/"))
        # For messages and the ledger: without a password that somebody put into the address.
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        host = parts.hostname or ""
        self._openai = host == "openai.com" or host.endswith(".openai.com")
        # Keys that are read from files often end in a newline, which no header may hold.
        key = os.environ.get("OPENAI_API_KEY", "").strip() or ("" if self._openai else "none")
        if not (key.isascii() and key.isprintable()):
            raise LLMError(
                "OPENAI_API_KEY holds characters that no request can carry: line breaks, spaces of "
                "other scripts, or the like. Export it anew."
            )
        if not key:
            raise LLMError(
                "OPENAI_API_KEY is not set. Export it (it is never written anywhere), or set "
                "llm.base_url to a service that needs none."
            )
        self._key = key
        if settings.budget_usd is not None and self.cost(0, 0) is None:
            raise LLMError(
                f"llm.budget_usd is set, but no price is known for `{settings.model}`. Add it to "
                f"llm.prices, e.g. `prices: {{{settings.model}: [2.5, 10.0]}}` (USD per million "
                "input and output tokens; 0 for a model of your own)."
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """What tokens cost without any discount, in USD; `None` without a price."""
        settings = self.settings
        return cost(settings.model, input_tokens, output_tokens, settings.prices)

    def connect(self) -> "AsyncOpenAI":
        """A client of its API, which tries nothing again by itself."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._key, base_url=self._base_url, timeout=self.settings.timeout, max_retries=0
        )

    def limit(self) -> dict[str, Any]:
        """The limit on output tokens, as a field of a request."""
        # OpenAI's newer models refuse the old name; most other services know only the old one.
        name = "max_completion_tokens" if self._openai else "max_tokens"
        return {name: self.settings.max_output_tokens}

    def redacted(self, text: str) -> str:
        """A text of the service's without our key, and of characters that can be written."""
        text = writable(text)
        if self._key == "none":
            return text
        for form in {self._key, quote(self._key, safe=""), " ".join(self._key.split())}:
            text = text.replace(form, "***")
        return text

    def trouble(self, error: "OpenAIError | ValueError | RecursionError") -> Trouble:
        """What an error of the client means."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APIStatusError):
            wait = _retry_after(error.response.headers)
            return self.refusal(error.status_code, error.code, error.message, wait)
        if isinstance(error, APITimeoutError):
            return Trouble(f"no answer within {self.settings.timeout:g} s", possibly_paid=True)
        if isinstance(error, APIConnectionError):
            cause = type(error.__cause__).__name__
            why = self.redacted(f"connection failed ({cause}: {error.__cause__})")
            return Trouble(why, possibly_paid=cause not in {"ConnectError", "ConnectTimeout"})
        why = self.redacted(f"the answer is not of OpenAI's form ({error})")
        return Trouble(why, possibly_paid=True)

    def refusal(
        self, status: int, code: str | None, message: str, wait: float | None = None
    ) -> Trouble:
        """What an answer with an error status means.

        Args:
            status: HTTP status.
            code: The service's own, e.g. `insufficient_quota`.
            message: The service's words.
            wait: Seconds that it asks to wait, if it does.
        """
        said = self.said(message)
        passing = status in {408, 409, 429} or status >= 500
        quota = code == "insufficient_quota"
        if not passing or quota:
            return Trouble(
                f"{self.url} refused the request with {status}: {said}. "
                f"{_mend(status, quota, self.settings)}",
                status=status,
                final=True,
            )
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return Trouble(
                f"{self.url} answered {status} and asks to wait {wait:.0f} s: {said}. Run "
                "again after that; answers received are kept.",
                status=status,
                final=True,
            )
        return Trouble(f"status {status}: {said}", status=status, retry_after=wait)

    def said(self, text: str) -> str:
        """Words of the service's for an error: one line, not too long, without our key."""
        return self.redacted(" ".join(text.split()))[:500]

    def no_answer(self, why: str) -> LLMError:
        """The error when a request was sent as often as the settings allow."""
        # Some servers fail with 500 on a response_format that they do not know.
        structure = "status 500" in why and self.settings.structure != "prompt"
        return LLMError(
            f"{self.url} did not answer in {self.settings.attempts} tries; the last time: {why}. "
            "Run again to go on from here (answers received are kept), or raise llm.attempts or "
            "llm.timeout."
            + (
                f" If it does not know the response_format `{self.settings.structure}`, set "
                "llm.structure to another one, or to `prompt`."
                if structure
                else ""
            )
        )


def writable(text: str) -> str:
    """A text in which half characters, which no file can hold, are marks of their own."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_completion(completion: Any) -> bool:
    """Whether a body with status 200 is an answer: some gateways send errors and pages so."""
    choices = getattr(completion, "choices", None)
    return isinstance(choices, list) and bool(choices)


def read_completion(completion: Any, input_estimate: int) -> dict[str, Any]:
    """What the ledger keeps of an answer, whatever parts of OpenAI's form it lacks."""
    choices = completion.choices if is_completion(completion) else []
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    text = writable(text) if isinstance(text, str) else ""
    usage = getattr(completion, "usage", None)
    return {
        "text": text,
        "finish_reason": str(getattr(choices[0], "finish_reason", None) or "") if choices else "",
        "refusal": writable(str(getattr(message, "refusal", None) or "")),
        "input_tokens": _count(getattr(usage, "prompt_tokens", None), input_estimate),
        "output_tokens": _count(getattr(usage, "completion_tokens", None), len(text) // 3 + 1),
    }


def _count(value: Any, estimate: int) -> int:
    return value if isinstance(value, int) and value > 0 else estimate


def _retry_after(headers: Any) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or a date) asks to wait."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        text = headers["retry-after"]
        if re.fullmatch(r"\s*[\d.]+\s*", text):
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _mend(status: int, quota: bool, settings: config.LLM) -> str:
    if quota:
        return "The account has no credit left: top it up and run again."
    if status in {401, 403}:
        return "Check OPENAI_API_KEY, and that it may use the model."
    if status == 404:
        return f"Check llm.model (`{settings.model}`) and llm.base_url."
    if settings.structure != "prompt":
        return "If the service does not know response_format, set llm.structure to `prompt`."
    return "Check llm.model, llm.max_output_tokens and llm.temperature."
