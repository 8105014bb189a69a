"""Watches the cluster, keeps the node's catalog, and has models loaded before they are asked for.

Every executor listens to what is said of models, and watches its node's view of the cluster. One of those of a node at
a time, who has the lease, keeps the catalog. A standalone server has no other homes: there it is about loading ahead.
"""

import random
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import hiredis

from keyside.executor.catalogs import Catalogs
from keyside.executor.preloader import Preloader, Version
from keyside.executor.strays import find
from keyside.executor.topology import Topology
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable
from keyside.tensorstore.resp import NOT_READY

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Replicator"]

CHANNEL = b"ks:catalog"
LOOK_S = 0.4
SOON_S = 0.02
LEASE_MS = 3000
PING_S = 10.0
DEAF_S = 25.0
HEARD_S = 3.0
"""How long to wait for what was said of a model to be in the own catalog."""
DEEP_EVERY = 6
LATEST = 8
"""Versions of a model that are looked at, besides its default."""
PAGE = 500


class Replicator(threading.Thread):
    """Follows the cluster for one worker until it is stopped."""

    def __init__(self, worker: "Worker") -> None:
        super().__init__(name="replicator", daemon=True)
        self._worker = worker
        self._settings = worker.settings
        self._peers = worker.new_peers("catalog", readonly=True)
        self._ear = worker.new_wire("ear")
        self._catalogs = Catalogs(self._peers, worker.chart)
        self._preloader = Preloader(self._settings.devices, worker.cache, self._size_of, self._helpless)
        self._over = threading.Event()
        self._deaf = False
        self._last_heard = self._last_ping = 0.0
        self._next_look = self._next_check = self._next_rescan = 0.0
        self._checks = self._rescans = 0
        self._deep = True
        self._tag = b""
        self._topology: Topology | None = None
        self._ranges: list[tuple[int, int]] = []
        self._slots: frozenset[int] | None = None
        self._leads = False
        self._heard: dict[bytes, tuple[int, float]] = {}
        self._seen_rev = 0
        self._foreign: set[bytes] = set()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()

    def run(self) -> None:
        """Follow until stopped."""
        pause = 0.05
        while not self._over.is_set():
            try:
                self._begin()
                while not self._over.is_set():
                    self._turn(time.monotonic())
                    pause = 0.05
            except (KeysideError, OSError) as error:
                self._worker.log.debug("not following the cluster", error=str(error))
            except Exception:
                self._worker.log.exception("not following the cluster")
            else:
                break
            self._ear.close()
            self._peers.close()
            self._over.wait(pause)
            pause = min(pause * 2, 1.0)
        self._resign()
        self._ear.close()
        self._peers.close()

    def _begin(self) -> None:
        """Listen first, then look: so nothing is missed in between."""
        self._ear.connect()
        self._ear.send(((b"SUBSCRIBE", CHANNEL),))
        said = self._ear.poll(5.0)
        self._deaf = isinstance(said, hiredis.ReplyError)
        if self._deaf:
            self._worker.log.warning("cannot listen for changes of models: looking now and then", error=str(said))
        self._last_heard = self._last_ping = time.monotonic()
        own = self._peers.own()
        self._worker.chart.look(own)
        self._catalogs.forget()
        self._preloader.forget()
        self._next_look = self._next_check = 0.0
        self._tag, self._slots = b"", None
        self._leads = False

    def _turn(self, now: float) -> None:
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._look(now)
        if self._leads and now >= self._next_check:
            self._check(now)
        if self._tag and now >= self._next_rescan:
            self._next_rescan = now + self._settings.catalog_check_s
            self._rescans += 1
            if self._rescans % DEEP_EVERY == 0:
                self._slots = None  # one may have gone and come back between two looks
            self._rescan()
            self._preloader.look_after()
        self._preloader.go_on()
        busy = self._heard or not self._preloader.idle
        self._listen(SOON_S if busy else max(0.0, self._next_look - now))
        self._consider_heard()

    # --- the node and the cluster

    def _look(self, now: float) -> None:
        worker = self._worker
        own = self._peers.own()
        if worker.chart.now.clustered:
            worker.chart.look(own)
        if worker.chart.now != self._topology:  # whichever thread has noticed
            if self._topology is not None:
                worker.log.info("the cluster has changed")
            self._topology = worker.chart.now
            self._next_check, self._deep = 0.0, True
        tag = self._my_tag()
        if tag != self._tag:
            if self._tag:
                self._catalogs.old_tags.add(self._tag)
            self._tag, self._slots, self._seen_rev = tag, None, 0
            self._next_check, self._deep = 0.0, True
            self._leads = False
            self._next_rescan = now
            if tag:
                self._scan()
        if not worker.chart.now.clustered or worker.standby or not tag:
            self._leads = False
            self._slots = None  # whatever is there is to be looked for, once it serves
            return
        self._look_for_strays(own)
        led, self._leads = self._leads, self._lead(own)
        if self._leads and (not led or not own.call(b"HGET", keys.NodeKeys(tag).catalog, b"@")):
            # Its keeper has gone, or all that was there: FLUSHALL, or a start from nothing.
            self._next_check, self._deep = min(self._next_check, now), True
        if self._leads and self._deaf:
            self._pull(self._catalogs.others())

    def _my_tag(self) -> bytes:
        worker = self._worker
        if not worker.standby:
            return worker.node.tag if worker.serves else b""
        now = worker.chart.now
        if not now.clustered:
            return keys.STANDALONE_TAG
        # Of the node that it is a replica of. That may have kept an older tag: then models are loaded after promotion.
        return now.tag_of(now.primary.id) if now.primary else b""

    def _look_for_strays(self, own: Wire) -> None:
        """Serve what others have left in slots that are new here."""
        worker = self._worker
        now = worker.chart.now
        ranges = now.slots_of(now.my_id)
        if ranges == self._ranges and self._slots is not None:
            return
        mine = frozenset(slot for first, last in ranges for slot in range(first, last + 1))
        fresh = mine if self._slots is None else mine - self._slots
        words, catalogs = find(own, sorted(fresh), self._tag, self._settings.devices)
        self._ranges, self._slots = ranges, mine
        self._foreign.update(catalogs)
        self._catalogs.old_tags.update(catalogs)
        if words:
            worker.strays.serve(words)

    def _lead(self, own: Wire) -> bool:
        lease = keys.NodeKeys(self._tag).replicator
        me = self._worker.consumer
        holder = own.call(b"GET", lease)
        if holder is None:
            return own.call(b"SET", lease, me, b"NX", b"PX", LEASE_MS) is not None
        return bytes(holder) == me and own.call(b"PEXPIRE", lease, LEASE_MS) == 1

    def _resign(self) -> None:
        """Let another executor of the node go on at once."""
        if not self._leads or not self._tag:
            return
        lease = keys.NodeKeys(self._tag).replicator
        try:
            own = self._peers.own()
            if own.call(b"GET", lease) == self._worker.consumer:
                own.call(b"UNLINK", lease)
        except KeysideError as error:
            self._worker.log.debug("lease left to end", error=str(error))

    # --- the catalog

    def _check(self, now: float) -> None:
        interval = self._settings.catalog_check_s
        self._next_check = now + min(interval, 1.0)  # should this fail
        self._checks += 1
        deep = self._deep or self._checks % DEEP_EVERY == 0
        changed = self._catalogs.check(self._tag, deep=deep)
        if self._peers.own().call(b"HGET", keys.NodeKeys(self._tag).catalog, b"@"):
            self._deep = False
            self._next_check = time.monotonic() + interval * random.uniform(0.8, 1.2)  # noqa: S311  # not all at once
            self._tidy()
        self._consider(changed)

    def _tidy(self) -> None:
        """Take away the catalogs of tags that nobody uses: should one be used again, it must not say what was once."""
        if not self._foreign:
            return
        flat = self._peers.own().call(b"FCALL_RO", b"AI_NODE", 0)
        if flat[1] != self._tag:
            return
        for tag in self._foreign - {self._tag}:
            names = keys.NodeKeys(tag)
            for name in (names.catalog, names.revs, names.models, names.dropped, names.executors, names.replicator):
                self._peers.own().call_many(((b"UNLINK", name),))
        self._foreign.clear()

    def _pull(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            try:
                names = self._catalogs.pull(node)
            except (TryAgain, Unreachable) as error:
                self._worker.log.debug("catalog not pulled", node=node.address, error=str(error))
                self._next_check = min(self._next_check, time.monotonic() + 1.0)
            else:
                if self._deaf:
                    self._consider(names)

    # --- what is said

    def _listen(self, seconds: float) -> None:
        now = time.monotonic()
        if now - self._last_ping > PING_S:
            self._ear.send(((b"PING",),))
            self._last_ping = now
        tags: set[bytes] = set()
        said = self._ear.poll(seconds)
        while said is not NOT_READY:
            self._last_heard = time.monotonic()
            if isinstance(said, list) and len(said) == 3 and said[0] == b"message":
                tag, _, rest = bytes(said[2]).partition(b" ")
                rev, _, name = rest.partition(b" ")
                if name and rev.isdigit():
                    tags.add(tag)
                    self._heard[name] = (int(rev), self._last_heard + HEARD_S)
            said = self._ear.poll(0.0)
        if time.monotonic() - self._last_heard > DEAF_S:
            raise Unreachable("nothing has been heard from the server for long")
        tags.discard(self._tag)
        if tags and self._leads:
            nodes = {tag: self._catalogs.spoke(tag) for tag in tags}
            self._pull(node for node in nodes.values() if node is not None)
            if None in nodes.values():
                self._next_check = 0.0  # a node that has not been heard of

    # --- loading ahead

    def _consider_heard(self) -> None:
        """Look at models of which something was said, once the own catalog has it."""
        if not self._heard or not self._tag:
            return
        names = list(self._heard)
        revs = keys.NodeKeys(self._tag).revs
        found = self._peers.own().call_many([(b"ZSCORE", revs, name) for name in names])
        now = time.monotonic()
        ready = []
        for name, score in zip(names, found, strict=True):
            rev, until = self._heard[name]
            if isinstance(score, bytes) and float(score) >= rev:
                ready.append(name)
                del self._heard[name]
            elif now > until:
                del self._heard[name]
        self._consider(ready)

    def _rescan(self) -> None:
        """Look at what has become newer in the own catalog without a word."""
        revs = keys.NodeKeys(self._tag).revs
        flat = self._peers.own().call(
            b"ZRANGE", revs, f"({self._seen_rev}", b"+inf", b"BYSCORE", b"LIMIT", 0, PAGE, b"WITHSCORES"
        )
        if flat:
            self._seen_rev = int(float(flat[-1]))
            self._consider([bytes(name) for name in flat[::2]])

    def _scan(self) -> None:
        """Look at the defaults of all models."""
        catalog = keys.NodeKeys(self._tag).catalog
        top = self._peers.own().call(b"ZRANGE", keys.NodeKeys(self._tag).revs, 0, 0, b"REV", b"WITHSCORES")
        self._seen_rev = int(float(top[1])) if top else 0
        cursor: Any = b"0"
        while not self._over.is_set():
            cursor, flat = self._peers.own().call(b"HSCAN", catalog, cursor, b"COUNT", PAGE)
            for field, raw in zip(flat[::2], flat[1::2], strict=True):
                if b"@" not in field:
                    self._preloader.consider(Version.read(bytes(field), bytes(raw)), (), first=True)
            if bytes(cursor) == b"0":
                return

    def _consider(self, names: Iterable[bytes]) -> None:
        """Look at models that have changed."""
        if not self._tag:
            return
        catalog = keys.NodeKeys(self._tag).catalog
        own = self._peers.own()
        for name in names:
            bare = Version.read(name, own.call(b"HGET", catalog, name))
            if bare is None:
                continue
            numbers = range(max(1, bare.last - LATEST + 1), bare.last + 1)
            raws = own.call(b"HMGET", catalog, *(b"%b@%d" % (name, n) for n in numbers)) if numbers else ()
            versions = [version for raw in raws if (version := Version.read(name, raw)) is not None]
            self._preloader.consider(bare, versions)

    def _size_of(self, version: Version) -> int:
        key = version.key.encode("utf-8", "surrogateescape")
        return int(self._peers.call(key, b"HGET", key, f"{version.version}:size") or 0)

    def _helpless(self, version: Version) -> bool:
        """Whether the home of a version has no executor for it. On this node there is at least this one."""
        slot = keys.slot(version.key.encode("utf-8", "surrogateescape"))
        now = self._worker.chart.now
        home = now.owner(slot)
        if home is None or now.is_mine(slot):
            return False
        (flat,) = self._peers.call_many(home, ((b"FCALL_RO", b"AI_NODE", 0),))
        about = dict(zip(checked(flat)[::2], flat[1::2], strict=True))
        return not any(bytes(device).decode() == version.device and count for device, count, *_ in about[b"devices"])
