"""Keeps the catalog of a node equal to what the homes of the models say: pulls what is new, and compares all of it.

The home of a model is the node that owns the slot of its name: its record is the truth, all other nodes have copies.
Whatever was missed, while a node was away, restarted, flushed or took slots over, the comparison finds: it looks at
revisions alone, and fetches what differs. So whoever runs it, and however often, it ends in the same state.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from keyside.executor.peers import Peers
from keyside.executor.topology import Chart, Node
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, Unreachable

__all__ = ["Catalogs"]

PAGE = 50
"""Models with their records in one reply."""
REVS = 1000
"""Names with their revisions in one reply."""
REFRESH = 100
FEW = 20
AWAY_S = 2.0
AWAY_MAX_S = 16.0
"""How long a node that could not be reached is left alone: each look at one that hangs keeps news of others waiting."""
MARK_S = 4.0
"""How long the catalog is not called complete for the sake of nodes that cannot be reached."""
READY_S = 1.5
"""And of nodes whose own is not: one whose tag has changed begins with none, and first gathers what is at home."""

Record = tuple[bytes, int, bytes, list[bytes]]


class Catalogs:
    """The catalog of the own node, and those of the others. For one thread.

    Attributes:
        old_tags: tags under which this node, or one that has given slots to it, has kept its catalog before: their
            lists tell of models that may be here.
    """

    def __init__(self, peers: Peers, chart: Chart) -> None:
        self._peers = peers
        self._chart = chart
        self._since: dict[bytes, tuple[bytes, int]] = {}  # node -> its tag, and the last revision seen
        self._tags: dict[bytes, bytes] = {}  # tag -> node
        self._away: dict[bytes, tuple[float, float]] = {}  # node -> until when it is left alone, and for how long
        self._incomplete: float | None = None
        self.old_tags: set[bytes] = set()
        self._log = structlog.get_logger()

    def others(self) -> list[Node]:
        """Return the other primaries."""
        now = self._chart.now
        return [node for node in now.primaries.values() if node.id != now.my_id]

    def spoke(self, tag: bytes) -> Node | None:
        """Return the node that has a tag, as far as it has been heard of: it has said something, so it is not away."""
        node = self._chart.now.primaries.get(self._tags.get(tag, b""))
        if node is not None:
            self._away.pop(node.id, None)
        return node

    def forget(self) -> None:
        """Look at all nodes anew: the cluster, or the own node, is not what it was."""
        self._since.clear()
        self._tags.clear()
        self._away.clear()
        self._incomplete = None

    def is_away(self, node: Node) -> bool:
        """Whether a node could not be reached a moment ago."""
        return node.id in self._away and self._away[node.id][0] > time.monotonic()

    # --- what is new

    def pull(self, node: Node) -> list[bytes]:
        """Take over what has changed on a node since it was last asked; return the names of those models.

        Raises:
            KeysideError: one of the nodes refuses or is gone.
        """
        known, since = self._since.get(node.id, (b"", 0))
        names: list[bytes] = []
        while True:
            tag, _, further, page = self._ask(node, since, PAGE)
            if tag != known and since:
                known, since = tag, 0  # revisions of another list
                continue
            known = tag
            records = _records(page)
            self._merge("NEWER", records)
            names += [record[0] for record in records]
            since = max([since, *(record[1] for record in records)])
            if not further:
                break
            since = int(further)
        self._heard(node, tag, since)
        return names

    def _ask(self, node: Node, since: int, count: int, *words: bytes) -> tuple[bytes, bool, bytes, list[Any]]:
        if self.is_away(node):
            raise Unreachable(f"node {node.address} could not be reached a moment ago")
        try:
            (reply,) = self._peers.call_many(node, ((b"FCALL_RO", b"KS_CATALOG", 0, since, count, *words),))
        except Unreachable:
            pause = min(2 * self._away[node.id][1], AWAY_MAX_S) if node.id in self._away else AWAY_S
            self._away[node.id] = (time.monotonic() + pause, pause)
            raise
        self._away.pop(node.id, None)
        tag, complete, further, page = checked(reply)
        return bytes(tag), bool(complete), bytes(further), page

    def _heard(self, node: Node, tag: bytes, since: int) -> None:
        self._since[node.id] = (tag, since)
        self._tags[tag] = node.id

    # --- everything

    def check(self, tag: bytes, *, deep: bool) -> list[bytes]:
        """Compare the whole catalog with those of all other nodes; return the names of the models that differed.

        Args:
            tag: of the own node.
            deep: also look for models of this node of which only other nodes know: after anything happened to it.

        Raises:
            KeysideError: the own node refuses or is gone. Others that do are left out.
        """
        own = self._peers.own()
        mine = self._listed(own, tag)
        names = set(mine)
        changed: list[bytes] = []
        patience = 0.0
        for node in self.others():
            try:
                found, theirs, complete = self._compare(node, mine, tag)
                changed += found
                if not complete:
                    patience = max(patience, READY_S)
                if deep:
                    names.update(self._listed(self._peers.to(node), theirs))
            except KeysideError as error:
                patience = MARK_S
                self._log.debug("catalog not compared", node=node.address, error=str(error))
        for old in self.old_tags - {tag} if deep else ():
            names.update(self._names_of_old(old))
        changed += self._refresh(name for name in names if self._chart.now.is_mine(keys.slot(name)))
        self._mark(patience)
        return changed

    def _compare(self, node: Node, mine: dict[bytes, int], tag: bytes) -> tuple[list[bytes], bytes, bool]:
        """Compare with one home; return the names that differed, its tag, and whether it knows all that it has."""
        theirs: dict[bytes, int] = {}
        since, top, complete = 0, 0, True
        while True:
            their_tag, is_complete, further, page = self._ask(node, since, REVS, b"REVS")
            complete = complete and is_complete
            for name, raw in page:
                rev = _rev(raw)
                if rev:
                    theirs[bytes(name)] = rev
                    top = max(top, rev)
            if not further:
                break
            since = int(further)
        now = self._chart.now
        differing = {name: rev for name, rev in theirs.items() if mine.get(name) != rev}
        changed = self._fetch(node, {name: rev for name, rev in differing.items() if not now.is_mine(keys.slot(name))})
        if complete:
            changed += self._bury(node, mine, theirs, tag)
        self._heard(node, their_tag, max(top, since))
        return changed, their_tag, complete

    def _fetch(self, node: Node, wanted: dict[bytes, int]) -> list[bytes]:
        """Take models over from their home, whatever is known of them here."""
        if not wanted:
            return []
        starts = sorted(wanted.values())
        if len(starts) > FEW:
            since, count = starts[0] - 1, PAGE
            while True:
                _, _, further, page = self._ask(node, since, count)
                self._merge("FORCE", [record for record in _records(page) if record[0] in wanted])
                if not further:
                    break
                since = int(further)
        else:
            for rev in dict.fromkeys(starts):
                _, _, _, page = self._ask(node, rev - 1, 1)
                self._merge("FORCE", [record for record in _records(page) if record[0] in wanted])
        return list(wanted)

    def _bury(self, node: Node, mine: dict[bytes, int], theirs: dict[bytes, int], tag: bytes) -> list[bytes]:
        """Forget copies of models that their home, which knows all that it has, does not know."""
        now = self._chart.now
        candidates = [name for name in mine if name not in theirs and now.owner(keys.slot(name)) == node]
        if not candidates:
            return []
        own = keys.NodeKeys(tag)
        asked = [(b"HEXISTS", where, name) for name in candidates for where in (own.catalog, own.triggers)]
        found = self._peers.own().call_many(asked)
        copies = [name for name, *there in zip(candidates, found[::2], found[1::2], strict=True) if 1 in there]
        if not copies:
            return []
        # Only its home can say that a model has gone, and a node knows best whether it is: slots move.
        answers = self._peers.call_many(node, [(b"EXISTS", name) for name in copies])
        gone = [name for name, there in zip(copies, answers, strict=True) if there == 0]
        self._merge("FORCE", [(name, mine[name], b"", []) for name in gone])
        return gone

    def _listed(self, wire: Wire, tag: bytes) -> dict[bytes, int]:
        """Return all names that a node has in its list, with their revisions."""
        return self._read_list(keys.NodeKeys(tag).revs, wire.call)

    def _names_of_old(self, tag: bytes) -> Iterable[bytes]:
        revs = keys.NodeKeys(tag).revs
        owner = self._chart.now.owner(keys.slot(revs))
        if owner is not None and self.is_away(owner):
            return ()  # one wait for a node that hangs is enough: others have something to say
        try:
            return self._read_list(revs, lambda *command: self._peers.call(revs, *command))
        except KeysideError:
            return ()

    @staticmethod
    def _read_list(revs: bytes, call: Any) -> dict[bytes, int]:
        listed: dict[bytes, int] = {}
        start = 0
        while True:
            flat = call(b"ZRANGE", revs, start, start + REVS - 1, b"WITHSCORES")
            listed.update((bytes(name), _rev(raw)) for name, raw in zip(flat[::2], flat[1::2], strict=True))
            if len(flat) < 2 * REVS:
                return listed
            start += REVS

    def _refresh(self, names: Iterable[bytes]) -> list[bytes]:
        """Make the catalog agree with the model keys that are here."""
        todo = list(names)
        changed: list[bytes] = []
        own = self._peers.own()
        for start in range(0, len(todo), REFRESH):
            part = todo[start : start + REFRESH]
            count, _ = own.call(b"FCALL", b"KS_REFRESH", 0, *part)
            if count:
                changed += part
        return changed

    def _mark(self, patience: float) -> None:
        """Say that the catalog is complete, if it is.

        Nodes that cannot be reached keep it from that for a few seconds: then models of the others, and those of which
        this node has copies, are better served than none. What is lacking is answered NOMODEL until they are back.

        Args:
            patience: seconds for which others may keep it from that; 0: all of them have said what they have.
        """
        now = time.monotonic()
        if patience:
            self._incomplete = self._incomplete or now
            if now - self._incomplete < patience:
                return
        else:
            self._incomplete = None
        self._peers.own().call(b"FCALL", b"KS_MERGE", 0, b"NEWER", 1)

    def _merge(self, mode: str, records: Sequence[Record]) -> None:
        for start in range(0, len(records), PAGE):
            flat: list[Any] = []
            for name, rev, tag, fields in records[start : start + PAGE]:
                flat += (name, rev, tag, len(fields), *fields)
            self._peers.own().call(b"FCALL", b"KS_MERGE", 0, mode, 0, *flat)


def _records(page: Sequence[Any]) -> list[Record]:
    found = []
    for name, raw, tag, fields in page:
        rev = _rev(raw)
        if rev:
            found.append((bytes(name), rev, bytes(tag), fields))
    return found


def _rev(raw: bytes) -> int:
    """Return a revision; 0 where somebody has put something else there."""
    try:
        rev = int(float(raw))
    except (ValueError, OverflowError):
        return 0
    return rev if 0 < rev <= 2**53 - 1 else 0
