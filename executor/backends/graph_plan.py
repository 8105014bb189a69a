"""Stored graphs made ready to run: what can be known of a step before its tensors are there is worked out once.

A graph of small models takes most of its time between them, with caches that others have used since: a step is one
function here, and a step that runs one model for one result does no more than that needs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keyside.executor.backends.base import Array, Member
from keyside.executor.backends.graph_condition import decide
from keyside.executor.backends.graph_rows import no_rows, together
from keyside.executor.members import call_member, find_member, run_checked, run_member
from keyside.tensorstore import graph
from keyside.tensorstore.errors import BadInput, KeysideError, RunFailed

__all__ = ["Plan", "follow", "plan"]

Env = dict[str, Array]
Members = Mapping[str, Member]
Action = Callable[[Env, Members], None]

Plan = Sequence[tuple[Action, str]]
"""What to do, one after the other, and how errors name it; empty where they say it themselves."""


def plan(steps: Sequence[graph.Step]) -> Plan:
    """Make steps ready to run, in their order."""
    return [_plan_step(step) for step in steps]


def follow(steps: Plan, env: Env, members: Members) -> None:
    """Run steps; what they assign goes into `env`.

    Raises:
        KeysideError: of a step; its text begins with which one.
    """
    for action, where in steps:
        try:
            action(env, members)
        except KeysideError as error:
            if not where:
                raise  # the step within has said so
            raise type(error)(f"{where}: {error.text}") from error


def _plan_step(step: graph.Step) -> tuple[Action, str]:
    match step:
        case graph.Run():
            return _run(step), f"run {step.target!r}"
        case graph.Script():
            return _script(step), f"script {step.target!r} {step.function!r}"
        case graph.Each():
            return _each(step), f"each {step.over!r}"
        case graph.If():
            return _if(step), ""
        case graph.Const():
            return _const(step), ""
        case graph.Let():
            return _let(step), ""


def _run(step: graph.Run) -> Action:
    target, names, outputs = step.target, step.inputs, step.outputs
    if isinstance(names, Mapping) or isinstance(outputs, Mapping) or len(outputs) != 1:
        return _run_bound(step)
    (gives,) = outputs

    def action(env: Env, members: Members) -> None:
        member = members.get(target) or find_member(members, target)
        results = run_checked(member, [env[name] for name in names], members)
        if len(results) != 1:
            raise BadInput(f"{member.title!r} gives {len(results)} outputs, not 1")
        env[gives] = results[0]

    return action


def _run_bound(step: graph.Run) -> Action:
    def action(env: Env, members: Members) -> None:
        env.update(run_member(members, step.target, _given(step.inputs, env), step.outputs))

    return action


def _script(step: graph.Script) -> Action:
    def action(env: Env, members: Members) -> None:
        given = [env[name] for name in step.inputs]
        env.update(call_member(members, step.target, step.function, given, step.outputs, step.keys, step.args))

    return action


def _const(step: graph.Const) -> Action:
    def action(env: Env, _: Members) -> None:
        env[step.output] = step.value

    return action


def _let(step: graph.Let) -> Action:
    def action(env: Env, _: Members) -> None:
        env[step.name] = env[step.source]

    return action


def _if(step: graph.If) -> Action:
    test, gives = step.test, step.gives
    tensor = test.tensor
    then, otherwise = plan(step.then), plan(step.otherwise)

    def action(env: Env, members: Members) -> None:
        try:
            holds = decide(test, env[tensor])
        except KeysideError as error:
            raise type(error)(f"if {tensor!r}: {error.text}") from error
        inner = dict(env)
        follow(then if holds else otherwise, inner, members)
        for name in gives:
            env[name] = inner[name]

    return action


def _given(names: tuple[str, ...] | Mapping[str, str], env: Mapping[str, Array]) -> list[Array] | dict[str, Array]:
    if isinstance(names, Mapping):
        return {theirs: env[local] for theirs, local in names.items()}
    return [env[local] for local in names]


def _each(step: graph.Each) -> Action:
    inner = plan(step.steps)

    def action(env: Env, members: Members) -> None:
        rows = env[step.over]
        if not rows.ndim:
            raise RunFailed(f"{step.over!r} has no dims, and so no rows")
        count = len(rows)
        if count > step.limit:
            raise RunFailed(f"{count:,} rows; the limit of this step is {step.limit:,}")
        if not count:
            for inside, outside in step.collect.items():
                env[outside] = no_rows(step, inside, env, members)
            return
        parts: dict[str, list[Array]] = {inside: [] for inside in step.collect}
        for n in range(count):
            local = dict(env)
            local[step.item] = rows[n : n + 1] if step.keep else rows[n]
            try:
                follow(inner, local, members)
            except KeysideError as error:
                raise type(error)(f"row {n}: {error.text}") from error
            for inside, found in parts.items():
                found.append(np.asarray(local[inside]))
        for inside, outside in step.collect.items():
            env[outside] = together(inside, parts[inside], keep=step.keep)

    return action
