"""A registry as a client sees it: manifests and blobs by HTTP (OCI distribution-spec 1.1), over TLS unless it is on this machine."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from lamella.host.images import manifest
from lamella.host.images.authentication import Challenge, parse_challenge, read_token
from lamella.host.images.download import Arriving
from lamella.host.images.library import Credentials
from lamella.host.images.manifest import Descriptor
from lamella.host.images.reference import Reference, is_loopback
from lamella.host.images.thread import stoppable
from lamella.model.errors import Corrupt, Forbidden, LamellaError, NotFound, Unavailable
from lamella.version import __version__

_TIMEOUT = httpx.Timeout(60, connect=10)
_FIRST_ATTEMPTS = 3
_ATTEMPTS = 5  # once something came: then there is something to lose
_LARGEST_ANSWER = 64 << 10
_PIECE = 256 << 10
T = TypeVar("T")


class _Again(Exception):
    """This attempt failed in a way that the next may not."""


class Registry:
    """One repository of one registry, for one pull. Used as an async context."""

    def __init__(self, reference: Reference, credentials: Credentials | None, *, insecure: bool) -> None:
        self._reference = reference
        self._credentials = credentials
        self._plain = insecure or reference.loopback
        self._insecure = insecure
        self._base = f"https://{reference.host}"
        self._authorization: httpx.Auth | str | None = None
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(),
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_redirects=8,
            trust_env=not reference.loopback,
            event_hooks={"request": [self._check_address]},
            headers={"User-Agent": f"lamella/{__version__}", "Accept-Encoding": "identity"},
        )
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def _check_address(self, request: httpx.Request) -> None:
        """Every hop, redirects and token services too: plain HTTP only where it was allowed."""
        if request.url.scheme == "https" or self._insecure:
            return
        if not (self._reference.loopback and is_loopback(request.url.host)):
            raise Forbidden(
                f"{self._reference.host} leads to plain HTTP at {request.url.host}",
                hint="allow it for this pull with --insecure, if the network between is your own",
            )

    async def connect(self) -> None:
        """Find out whether it speaks TLS, and how it wants to be asked.

        :raise Unavailable: when nobody answers, or the certificate is not trusted.
        """
        try:
            await self._retry(self._greet)
        except ssl.SSLError as error:
            raise Unavailable(
                f"{self._reference.host} does not speak TLS: {error.reason}", hint="is it the right port?"
            ) from error

    async def _greet(self) -> None:
        try:
            answer, _ = await self._small(f"{self._base}/v2/")
        except httpx.ConnectError as error:
            tls = _cause(error, ssl.SSLError)
            if isinstance(tls, ssl.SSLCertVerificationError):
                raise Unavailable(
                    f"the certificate of {self._reference.host} is not trusted: {tls.verify_message}",
                    hint="add the registry's authority to this host's certificates (update-ca-certificates)",
                ) from error
            if tls is not None and self._plain and self._base.startswith("https:"):
                self._base = f"http://{self._reference.host}"
                answer, _ = await self._small(f"{self._base}/v2/")
            elif tls is not None:
                raise Unavailable(
                    f"{self._reference.host} does not speak TLS", hint="allow plain HTTP for this pull with --insecure"
                ) from error
            else:
                raise
        if answer.status_code == 401:
            await self._authenticate(answer)
        elif answer.status_code >= 500:
            raise _Again(f"it answered {answer.status_code}")

    async def manifest(self, version: str) -> bytes:
        """The bytes of the manifest or index that a tag or digest names.

        :raise NotFound: when there is none.
        """
        return await self._document(f"manifests/{version}", f"image {self._reference}", manifest.LARGEST_DOCUMENT)

    async def document(self, descriptor: Descriptor, what: str) -> bytes:
        """A small blob whole: a configuration."""
        if descriptor.size > manifest.LARGEST_DOCUMENT:
            raise Corrupt(f"the {what} is {descriptor.size} bytes", hint="no honest one is so big")
        return await self._document(f"blobs/{descriptor.digest}", what, descriptor.size)

    async def _document(self, path: str, what: str, limit: int) -> bytes:
        async def once() -> bytes:
            async with self._get(
                path, what, {"Accept": ", ".join(manifest.ACCEPTED)} if "manifests" in path else {}
            ) as answer:
                data = bytearray()
                async for piece in answer.aiter_raw(_PIECE):
                    data += piece
                    if len(data) > limit:
                        raise Corrupt(f"the {what} is longer than it says", hint="the registry is damaged or lies")
                return bytes(data)

        return await self._retry(once)

    async def download(self, descriptor: Descriptor, path: Path, progress: Callable[[int], None]) -> None:
        """Bring the blob to *path*, going on where an earlier attempt stopped. *progress* gets the bytes of each piece.

        :raise Corrupt: when what came is not what the descriptor says; *path* is gone then.
        :raise Unavailable: when the connection broke too often; *path* keeps what came.
        """
        for turn in range(2):
            arriving = await stoppable(lambda _stop: Arriving(path, descriptor))
            begun = arriving.size
            progress(begun)
            try:
                if arriving.size < descriptor.size or descriptor.size == 0:
                    await self._retry(
                        lambda a=arriving: self._continue(a, descriptor, progress), moved=lambda a=arriving: a.arrived
                    )
            finally:
                await stoppable(lambda _stop, a=arriving: a.close())
            try:
                arriving.check()
                return
            except Corrupt:
                if turn or not begun:  # what an earlier pull left may have been damaged since, by a power cut say
                    raise
                progress(-arriving.size)

    async def _continue(self, arriving: Arriving, descriptor: Descriptor, progress: Callable[[int], None]) -> None:
        headers = {"Range": f"bytes={arriving.size}-"} if arriving.size else {}
        async with self._get(f"blobs/{descriptor.digest}", f"layer {descriptor.digest[:19]}", headers) as answer:
            continues = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {arriving.size}-"
            )
            if arriving.size and not continues:
                progress(-arriving.size)
                await stoppable(lambda _stop: arriving.restart())
                if answer.status_code != 200:
                    raise _Again("it does not continue where it stopped")
            async for piece in answer.aiter_raw(_PIECE):
                await stoppable(lambda _stop, p=piece: arriving.take(p))
                progress(len(piece))
            if arriving.size < descriptor.size and "Content-Length" not in answer.headers:
                raise _Again("it stopped too early")

    @asynccontextmanager
    async def _get(self, path: str, what: str, headers: dict[str, str]) -> AsyncGenerator[httpx.Response, None]:
        url = f"{self._base}/v2/{self._reference.name}/{path}"
        for turn in range(2):
            sent = self._authorization
            marked = {**headers, "Authorization": sent} if isinstance(sent, str) else headers
            auth = sent if isinstance(sent, httpx.Auth) else None
            async with self._client.stream("GET", url, headers=marked, auth=auth) as answer:
                if answer.status_code == 401 and turn == 0:
                    async with self._asking:
                        if self._authorization is sent:  # else somebody beside us has asked already
                            await self._authenticate(answer)
                    continue
                await self._judge(answer, what)
                yield answer
                return

    async def _judge(self, answer: httpx.Response, what: str) -> None:
        host, status = self._reference.host, answer.status_code
        if status in (200, 206, 416):
            return
        if status in (401, 403):
            raise self._refused()
        if status == 404:
            raise NotFound(
                f"{host} has no {what}", hint="look at its name and tag; some registries hide what you may not read"
            )
        if status == 429 or status >= 500:
            raise _Again(f"it answered {status}")
        raise Unavailable(f"{host} answered {status} for {what}", hint="is it a registry?")

    def _refused(self) -> LamellaError:
        if self._credentials is None:
            return Forbidden(f"{self._reference.host} wants to know who asks", hint="give a user name and a password")
        return Forbidden(
            f"{self._reference.host} does not let {self._credentials.username!r} read {self._reference.name}",
            hint="look at the user name, the password and the repository",
        )

    async def _authenticate(self, answer: httpx.Response) -> None:
        challenge = parse_challenge(answer.headers.get("WWW-Authenticate", ""))
        if challenge.scheme == "bearer":
            self._authorization = f"Bearer {await self._token(challenge)}"
        elif self._credentials is None or isinstance(self._authorization, httpx.Auth):
            raise self._refused()
        else:
            self._authorization = httpx.BasicAuth(self._credentials.username, self._credentials.password)

    async def _token(self, challenge: Challenge) -> str:
        """A token to read this one repository."""
        parameters = {"scope": f"repository:{self._reference.name}:pull"}
        if challenge.service:
            parameters["service"] = challenge.service
        auth = httpx.BasicAuth(self._credentials.username, self._credentials.password) if self._credentials else None
        try:
            realm = httpx.URL(challenge.realm)
            answer, data = await self._small(str(realm.copy_merge_params(parameters)), auth)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unavailable(
                f"{self._reference.host} names no token service: {challenge.realm!r}", hint="is it a registry?"
            ) from error
        if answer.status_code in (400, 401, 403):
            raise self._refused()
        if answer.status_code != 200:
            raise _Again(f"its token service answered {answer.status_code}")
        return read_token(data)

    async def _small(self, url: str, auth: httpx.BasicAuth | None = None) -> tuple[httpx.Response, bytes]:
        """An answer of a few words; of a longer one only the beginning is read."""
        async with self._client.stream("GET", url, auth=auth, timeout=15) as answer:
            data = bytearray()
            async for piece in answer.aiter_raw():
                data += piece
                if len(data) > _LARGEST_ANSWER:
                    break
            return answer, bytes(data)

    async def _retry(self, attempt: Callable[[], Awaitable[T]], *, moved: Callable[[], int] = lambda: 0) -> T:
        """Try again what a network may cure, a little later each time. An attempt that brought something on counts as the first."""
        tries, before = 0, moved()
        while True:
            try:
                return await attempt()
            except (httpx.TransportError, _Again) as error:
                tries = 1 if moved() > before else tries + 1
                before = moved()
                if tries >= (_ATTEMPTS if before else _FIRST_ATTEMPTS):
                    told = str(error) or type(error).__name__
                    raise Unavailable(
                        f"{self._reference.host} does not answer: {told}",
                        hint="look at the network, and pull again: what came is kept",
                    ) from error
            except httpx.TooManyRedirects as error:
                raise Unavailable(f"{self._reference.host} leads in a circle", hint="is it a registry?") from error
            await asyncio.sleep(min(0.2 * 2**tries, 5))


def _cause(error: BaseException, type: type[T]) -> T | None:
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, type):
            return at
        at = at.__cause__ or at.__context__
    return None
