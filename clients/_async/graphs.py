"""Stored graphs, and DAGs that are run once."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

from collections.abc import Awaitable, Callable
from typing import Any

from numpy.typing import NDArray

from keyside.clients._async.inference import AsyncInference, Priority
from keyside.clients._async.models import AsyncModels
from keyside.clients.dag import DagPlan, staged_of, values_of
from keyside.clients.graph import Graph
from keyside.clients.versions import ModelVersion
from keyside.tensorstore.commands import terms
from keyside.tensorstore.commands_graphs import read_results
from keyside.tensorstore.errors import BadArg, KeysideError

__all__ = ["AsyncDag", "AsyncGraphs"]

Results = list[NDArray[Any] | KeysideError | str | None]


class AsyncDag(DagPlan):
    """Operations that are run as one job: `await client.dag().load("x").modelexecute(...).tensorget("y").execute()`."""

    def __init__(self, run: "Callable[[AsyncDag], Awaitable[Results]]", *, readonly: bool) -> None:
        super().__init__(readonly=readonly)
        self._run = run

    async def execute(self) -> list[NDArray[Any] | None]:
        """Run it.

        Returns:
            One entry for each operation: its tensor for a `tensorget`, None for others.

        Raises:
            KeysideError: an operation failed; nothing was persisted. Or the job was refused, or not answered.
        """
        found: list[NDArray[Any] | None] = []
        for one in await self._run(self):
            if isinstance(one, KeysideError):
                raise one
            found.append(None if isinstance(one, str) else one)
        return found

    async def results(self) -> list[NDArray[Any] | KeysideError | str | None]:
        """Run it, and say of each operation what became of it.

        Returns:
            One entry for each operation: as of `execute`; the error of the one that failed; "NA" for those behind it.

        Raises:
            KeysideError: the job was refused, or not answered.
        """
        return await self._run(self)


class AsyncGraphs(AsyncModels, AsyncInference):
    """Stores graphs, which are targets like any model, and runs DAGs."""

    def graph(self, name: str = "") -> Graph:
        """Begin a graph; `store_graph` stores it."""
        return Graph(name)

    async def store_graph(
        self,
        name: str | Graph,
        graph: Graph | None = None,
        *,
        device: str = "CPU",
        tag: str = "",
        run_limit_ms: int | None = None,
        wait: bool = True,
        timeout: float = 120.0,
    ) -> ModelVersion:
        """Add a version to a stored graph. The same program gives the version that is there already.

        Args:
            name: of the graph, without @; or the graph itself, which has a name.
            graph: what it does.
            device: the queue whose executors shall run it; they run all its models.
            tag: any text.
            run_limit_ms: a run that takes longer is given up; 0: none is; None: as the executor is set.
            wait: return only once an executor has loaded it.
            timeout: seconds to wait for that.

        Returns:
            The version; its `target` names it to `predict`.

        Raises:
            BadArg: it cannot run, or has no name.
            WrongType: the name is that of a script.
            TimedOut: no executor has loaded it in time.
        """
        if isinstance(name, Graph):
            graph = name
            name = graph.name
        if graph is None or not name:
            raise BadArg("a graph is stored under a name: store_graph(name, graph)")
        blob, uses = graph.to_json()
        options: dict[str, Any] = {"uses": uses} if uses else {}
        if run_limit_ms is not None:
            options["run_limit_ms"] = run_limit_ms
        return await self.store(
            name, blob, backend="GRAPH", device=device, tag=tag, options=options, wait=wait, timeout=timeout
        )

    def dag(
        self,
        *,
        readonly: bool = False,
        timeout: float | None = None,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> AsyncDag:
        """Begin operations that are run once, as one job; see `AsyncDag`.

        Args:
            readonly: it persists nothing and calls no script.
            timeout: seconds until its deadline; None: the client's.
            priority: as for `predict`.
            user: as for `predict`.
        """
        words = terms(priority, user)

        async def run(dag: AsyncDag) -> Results:
            await self._functions()
            transport = self._transport
            seconds = self._timeout if timeout is None else timeout
            request = dag.request(seconds, transport.identity, transport.node, words)
            results = read_results(await transport.run(request))
            staged = staged_of(results)
            fetched = dict(zip(staged, await transport.collect(staged), strict=True)) if staged else {}
            return values_of(results, fetched)

        return AsyncDag(run, readonly=readonly)
