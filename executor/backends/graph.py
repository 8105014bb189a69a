"""The GRAPH backend: stored graphs, whose steps run other models and scripts, all in the memory of one executor."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from keyside.executor.backends.base import Array, Member, contiguous
from keyside.executor.backends.graph_plan import follow, plan
from keyside.tensorstore import graph
from keyside.tensorstore.errors import BadModel, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

__all__ = ["GraphBackend", "GraphModel"]

_OPTIONS: Final = ("uses",)
_STEP_BYTES: Final = 4 << 10


class GraphBackend:
    """Loads stored graphs: reads and checks their program, no more, since their members load by themselves."""

    name = "GRAPH"

    def available(self) -> str:
        """Return why it cannot be used here: it always can."""
        return ""

    def load(
        self,
        blob: bytes | memoryview,
        *,
        device: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        options: Mapping[str, Any],
        allow_code: bool,
        threads: int,
    ) -> "GraphModel":
        """Load a graph; see `base.Backend.load`."""
        del device, allow_code, threads
        for name in options:
            if name not in _OPTIONS:
                raise BadModel(f"no option {name[:80]!r} for GRAPH; there is uses")
        if inputs or outputs:
            raise BadModel("INPUTS and OUTPUTS stand in the program of a graph, not in the call that stores it")
        program = graph.parse(blob)
        _check_uses(program, options.get("uses", []))
        return GraphModel(program, len(blob))


def _check_uses(program: graph.Program, given: object) -> None:
    """What may be run was decided by what OPTIONS names, at submit: the program must run that and nothing else."""
    if not isinstance(given, list) or not all(isinstance(target, str) for target in given):
        raise BadModel('option uses is not a list of targets, such as {"uses": ["detector", "plates@2"]}')
    used = set(program.uses)
    if len(given) == len(used) and set(given) == used:
        return
    missing = [target for target in program.uses if target not in set(given)]
    extra = [target for target in given if target not in used]
    what = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    if extra:
        what.append(f"has {', '.join(map(repr, extra))}, which the graph does not use")
    raise BadModel(f"option uses {' and '.join(what) or 'has a target twice'}: name each target of the graph once")


class GraphModel:
    """One graph.

    Attributes:
        signature: inputs as its program has them; outputs by name, their dtypes and shapes not known.
        nbytes: an estimate of the memory that it holds; its members hold their own.
        stackable: never: what the members make of rows is not known.
    """

    stackable = False

    def __init__(self, program: graph.Program, size: int) -> None:
        self.program = program
        self._plan = plan(program.steps)
        self.nbytes = size + _STEP_BYTES * (1 + len(program.steps))
        self.signature = Signature(program.inputs, tuple(TensorSpec(name, "", None) for name in program.outputs))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run a graph that runs no other; see `run_with`."""
        return self.run_with(inputs, {})

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, Member]) -> list[Array]:
        """Run the graph.

        Args:
            inputs: in the order of its signature.
            members: what its steps run, by the targets that they name.

        Returns:
            Its outputs, C-contiguous.

        Raises:
            BadInput: number or names of a member's inputs or outputs do not fit. Likewise BadDtype, BadShape.
            RunFailed: a member fails, a condition cannot be decided, or rows cannot be put together.
        """
        if len(inputs) != len(self.program.inputs):
            raise RunFailed(f"the graph takes {len(self.program.inputs)} inputs, got {len(inputs)}")
        env = {spec.name: array for spec, array in zip(self.program.inputs, inputs, strict=True)}
        follow(self._plan, env, members)
        return [contiguous(env[name]) for name in self.program.outputs]

    def close(self) -> None:
        """Nothing: the memory goes with the last reference."""
