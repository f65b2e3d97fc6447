"""The sessions this node serves, and how a client finds back to one."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

from broker.domain.continuation import Parent
from broker.domain.credential import Credential
from broker.domain.session import Session, derive_sid
from broker.domain.transcript import TurnMeta
from broker.metrics import Metrics
from broker.store.connection import StoreUnavailable
from broker.store.journal import Journal
from broker.store.owners import Owner, OwnerStore
from broker.store.sessions import SessionStore

log = logging.getLogger(__name__)

REMEMBERED = 1024
"""Sessions whose last turn broke off that are kept in memory although nobody is connected."""

MINTED = "sess_"
"""What the name of a session begins with that the broker named itself."""


def is_minted(session: Session) -> bool:
    """Whether the broker named this session, so that its client may not know the name."""
    return session.name.startswith(MINTED)


class Unknown(Exception):
    """A turn names something of a vendor's that nobody here knows."""

    def __init__(self, thing: str) -> None:
        super().__init__("unknown")
        self.thing = thing


class Sessions:
    """One copy of a session for all sockets of this node, so that a pin one of them moves is seen by all.

    `shared`: several tenants use one pool.
    """

    def __init__(
        self, store: SessionStore, journal: Journal, owners: OwnerStore, metrics: Metrics, *, shared: bool
    ) -> None:
        self._shared = shared
        self._owners = owners
        self._store = store
        self._journal = journal
        self._metrics = metrics
        self._known: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._interrupted: OrderedDict[str, Session] = OrderedDict()

    def mint(self, tenant: str) -> Session:
        """A session with a name of its own; the store hears of it with its first turn."""
        name = MINTED + secrets.token_urlsafe(24)
        return self._keep(Session(derive_sid(tenant, name), name, tenant))

    async def claim(self, tenant: str, name: str) -> Session:
        """The session that a client calls by this name, old or new. Raises `StoreUnavailable`."""
        sid = derive_sid(tenant, name)
        self._metrics.round_trips.inc("load")
        return self._keep(await self._store.load(sid) or Session(sid, name, tenant))

    def interrupted(self, session: Session) -> None:
        """The client will come again with the turn that broke off, perhaps with another request: what its session
        knows of whom to avoid shall be there then."""
        self._interrupted[session.sid] = session
        while len(self._interrupted) > REMEMBERED or next(iter(self._interrupted.values())).avoided is None:
            self._interrupted.popitem(last=False)
            if not self._interrupted:
                break

    def _keep(self, session: Session) -> Session:
        """The node's copy of a session. The one in memory may be behind the store, so what was loaded is newer."""
        known = self._known.get(session.sid)
        if known is None:
            self._known[session.sid] = session
            return session
        if session.pin is not None and not session.pin.same(known.pin):
            known.adopt(session.pin, session.incremental_disabled)
        known.served_within(*session.boundaries)
        known.reuses_ids = known.reuses_ids or session.reuses_ids
        return known

    async def look_up(self, session: Session, response_id: str) -> tuple[Parent, Session] | None:
        """A response that a turn continues, unknown to its socket, and its session; None if the client gave it up.

        A response that nobody has heard of is the vendor's to refuse: its parent comes back without a record. Where
        several tenants share the credentials it is refused here, for it may be another tenant's, and the vendor would
        not know the difference. Raises `StoreUnavailable`.
        """
        self._metrics.round_trips.inc("resolve")
        if session.turns or not is_minted(session):
            meta = await self._journal.find(session.sid, response_id)
            if meta is not None:
                return Parent(response_id, meta), session
        sid = await self._journal.locate(session.tenant, response_id)
        other = await self._load(sid) if sid is not None and sid != session.sid else None
        meta = await self._journal.find(other.sid, response_id) if other is not None else None
        if other is None or meta is None:
            return await self._stored(session, response_id)
        if other.closed and not meta.store:
            return None
        return Parent(response_id, meta), other

    async def _stored(self, session: Session, response_id: str) -> tuple[Parent, Session] | None:
        """A response whose session is forgotten: the vendor may still have it, and its owner is remembered longer."""
        found = await self._owners.find(session.tenant, (response_id,))
        if (owner := found.get(response_id)) is None:
            return None if self._shared else (Parent(response_id, None, live=False), session)
        meta = TurnMeta("", None, response_id, owner.credential, owner.boundary, store=True, kept=False, rooted=False)
        return Parent(response_id, meta), session

    async def owner(self, tenant: str, things: Sequence[str]) -> Owner | None:
        """Who owns what a turn names. Raises `StoreUnavailable`, and `Unknown` where a conversation may be another
        tenant's: the vendor does not know our tenants."""
        self._metrics.round_trips.inc("owner")
        found = await self._owners.find(tenant, things)
        for thing in things:
            if self._shared and thing not in found and not thing.startswith("cmp:"):
                raise Unknown(thing)
        return next((found[thing] for thing in things if thing in found), None)

    async def owner_of(self, tenant: str, thing: str) -> Owner | None:
        """Who owns what this tenant has made; None if it has not, or nobody remembers. Raises `StoreUnavailable`."""
        self._metrics.round_trips.inc("owner")
        return (await self._owners.find(tenant, (thing,))).get(thing)

    async def note_owners(self, tenant: str, things: Sequence[str], credential: Credential) -> None:
        """These belong to `credential`, and everybody knows it from now on. Raises `StoreUnavailable`."""
        for thing in things:
            await self._owners.note(tenant, thing, Owner(credential.name, credential.boundary))

    async def forget(self, tenant: str, thing: str) -> None:
        """It was deleted at the vendor: nobody owns it, and nothing continues it. Raises `StoreUnavailable`."""
        await self._owners.forget(tenant, thing)
        await self._store.forget_response(tenant, thing)

    def note_owner(self, tenant: str, thing: str, credential: Credential) -> None:
        """From now on this belongs to `credential`; written in the background, for what is lost is merely unknown."""
        self._owners.submit(tenant, thing, Owner(credential.name, credential.boundary))

    async def _load(self, sid: str) -> Session | None:
        if (known := self._known.get(sid)) is not None:
            return known
        loaded = await self._store.load(sid)
        if loaded is not None:
            return self._keep(loaded)
        waiting = self._journal.pending(sid)
        return self._keep(Session(sid, waiting[0].name, waiting[0].tenant)) if waiting else None

    async def close_cleanly(self, sessions: Iterable[tuple[Session, str]]) -> None:
        """The client has closed its socket itself: what had no name of its own is over, as it would be at a vendor.

        A session that the client has named it may still reclaim, and one that another socket has gone on with (its last
        turn is no longer the one given here) lives on.
        """
        for session, last_turn in sessions:
            if is_minted(session):
                session.closed = True
                try:
                    await self._journal.close_cleanly(session.sid, last_turn)
                except StoreUnavailable as error:
                    self._metrics.store_errors.inc(error.reason)

    async def keep_alive(self, every: float) -> None:
        """Sessions with an open socket do not run out, however long their client thinks."""
        while True:
            await asyncio.sleep(every)
            try:
                await self._store.touch([session.sid for session in list(self._known.values()) if session.turns])
            except StoreUnavailable as error:
                self._metrics.store_errors.inc(error.reason)
