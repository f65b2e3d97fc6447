from typing import Any

from yarl import URL

from broker import __version__
from broker.domain.credential import Credential
from broker.domain.failure import Failure


class NoIdentity(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind.value)
        self.failure = failure


class Identity:
    def __init__(self, shelf: Any = None, **more: Any) -> None:
        pass

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def headers(self, credential: Credential) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {credential.secret.reveal()}",
            "User-Agent": f"session-broker/{__version__}",
        }

    async def renewed(self, credential: Credential, status: int, code: str) -> bool:
        return False

    def url(self, credential: Credential, path: str) -> URL:
        base, mark, query = credential.base_url.partition("?")
        return URL(f"{base.rstrip('/')}/{path}{mark}{query}", encoded=True)
