"""HTTP with cookies, the proxies of the environment, and a login form."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from http.cookiejar import CookieJar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener

from datamodules.download import AcquisitionError

TIMEOUT = 30.0  # seconds without an answer or a byte


class Session:
    """Requests that share cookies; http_proxy, https_proxy and no_proxy are honoured."""

    def __init__(self) -> None:
        self.opener = build_opener(HTTPCookieProcessor(CookieJar()))
        # Some data-set servers refuse the default name of urllib.
        self.opener.addheaders = [("User-Agent", "palimpsest-download"), ("Accept-Encoding", "identity")]

    def open(
        self, url: str, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
    ) -> HTTPResponse:
        """GET, or POST where a form is given; redirects are followed.

        Raises:
            AcquisitionError: that is no address.
            ValueError: the server redirects to what is none.
        """
        check_address(url)
        data = None if form is None else urlencode(form).encode()
        response: HTTPResponse = self.opener.open(Request(url, data, dict(headers or {})), timeout=TIMEOUT)
        return response

    def login(self, page: str, username: str, password: str) -> None:
        """Fill in the form of a login page.

        A site that accepts redirects away from the page; one that refuses shows it again. No message of an error
        holds the name or the password.

        Raises:
            AcquisitionError: refused, or the site cannot be reached.
        """
        try:
            with self.open(page) as response:
                hidden = _hidden_fields(response.read().decode("utf-8", "replace"))
            fields = {**hidden, "username": username, "password": password, "submit": "Login"}
            with self.open(page, form=fields) as response:
                landed = response.geturl()
        except (OSError, HTTPException, ValueError) as error:
            raise AcquisitionError(f"the login page {page} cannot be used: {explain(error)}") from None
        if urlsplit(urljoin(page, landed)).path.rstrip("/") == urlsplit(page).path.rstrip("/"):
            raise AcquisitionError(
                f"{page} refused the user name or the password; CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD "
                "must be those of an account that was made there and confirmed by mail"
            )


def check_address(url: str) -> None:
    """Raise AcquisitionError unless it is an address of a web server."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        good = False
    if not good or not all("!" <= letter <= "~" for letter in url):
        name = url if url.strip() else "an empty name"
        raise AcquisitionError(f"{name} is no http or https address; a file on disk is given with --archive")


def explain(error: BaseException) -> str:
    """One line that says what went wrong on the way to a server."""
    told: object = error
    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        told = error.reason
    if isinstance(told, OSError) and told.strerror and not isinstance(told, HTTPError):
        told = told.strerror
    text = " ".join(str(told).split())
    return text or type(error).__name__


def _hidden_fields(page: str) -> dict[str, str]:
    """Hidden inputs of a form (tokens against forged requests)."""
    fields: dict[str, str] = {}

    class Inputs(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = dict(attrs)
            if tag == "input" and values.get("type") == "hidden" and values.get("name"):
                fields[str(values["name"])] = values.get("value") or ""

    Inputs().feed(page)
    return fields
