"""An RLHF algorithm as data: calls of models with what they wait for (HybridFlow, figure 1 and section 2.1)."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from simcore.errors import InputError, Problem

Kind = Literal["generate", "forward", "train", "compute"]
"""`compute` is numbers only (advantages), and has no role. The controller does it in no time that counts; in plans of the engine
`transformers` it is a call of the pool that generates."""
Stage = Literal["generation", "preparation", "training"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STAGE_OF: dict[Kind, Stage] = {
    "generate": "generation",
    "forward": "preparation",
    "compute": "preparation",
    "train": "training",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A model asked to do something with the batch. `share` is the part of the batch that it works on."""

    name: str
    kind: Kind
    role: str = ""
    after: tuple[str, ...] = ()
    stage: Stage
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataflow:
    """Calls in an order that respects their dependencies; a call of the same role (and pool) follows those listed before it."""

    name: str
    calls: tuple[Call, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """In order of appearance."""
        return tuple(dict.fromkeys(c.role for c in self.calls if c.role))

    def calls_of(self, role: str) -> tuple[Call, ...]:
        return tuple(c for c in self.calls if c.role == role)

    def inputs(self, call: Call, known: Collection[str] | None = None) -> tuple[str, ...]:
        """The calls whose results a call needs, of those that are `known`, by default those of models: of another call, such as
        numbers that no model computes, what it is computed from."""
        by_name = {c.name: c for c in self.calls}
        known = {c.name for c in self.calls if c.role} if known is None else known
        found = [(name,) if name in known else self.inputs(by_name[name], known) for name in call.after]
        return tuple(dict.fromkeys(name for names in found for name in names))

    def kinds_of(self, role: str) -> frozenset[Kind]:
        return frozenset(c.kind for c in self.calls if c.role == role)

    def trains(self, role: str) -> bool:
        """Whether the role has gradients and an optimizer."""
        return "train" in self.kinds_of(role)

    def generates(self, role: str) -> bool:
        return "generate" in self.kinds_of(role)


def call(name: str, kind: Kind, role: str = "", *after: str, stage: Stage | None = None, share: float = 1.0) -> Call:
    """A call in the stage that calls of its kind usually belong to."""
    return Call(name=name, kind=kind, role=role, after=after, stage=stage or STAGE_OF[kind], share=share)


def ppo() -> Dataflow:
    """Proximal policy optimisation: actor, critic, reference and reward (Ouyang et al. 2022)."""
    return Dataflow(
        name="ppo",
        calls=(
            call("generate", "generate", "actor"),
            *_judged(),
            call("values", "forward", "critic", "generate"),
            call("advantages", "compute", "", "ref_log_prob", "reward", "values"),
            call("update_critic", "train", "critic", "advantages"),
            call("update_actor", "train", "actor", "advantages"),
        ),
    )


def remax() -> Dataflow:
    """ReMax (Li et al. 2023): the reward of a greedy response is the baseline, and there is no critic."""
    return Dataflow(
        name="remax",
        calls=(
            call("generate", "generate", "actor"),
            call("generate_greedy", "generate", "actor"),
            *_judged(),
            call("reward_greedy", "forward", "reward", "generate_greedy"),
            call("advantages", "compute", "", "ref_log_prob", "reward", "reward_greedy"),
            call("update_actor", "train", "actor", "advantages"),
        ),
    )


PRETRAIN_LOSS = "pretrain_loss"
PRETRAIN_SHARE = 1 / 8
"""Of the batch, that the pretraining loss of Safe-RLHF is computed on. Assumption: one of the paper's eight updates."""


def safe_rlhf() -> Dataflow:
    """Safe-RLHF (Dai et al. 2024) as HybridFlow has it: PPO with a cost model and a loss on pretraining data."""
    return Dataflow(
        name="safe_rlhf",
        calls=(
            call("generate", "generate", "actor"),
            *_judged(),
            call("cost", "forward", "cost", "generate"),
            call("values", "forward", "critic", "generate"),
            call("advantages", "compute", "", "ref_log_prob", "reward", "cost", "values"),
            call(PRETRAIN_LOSS, "forward", "actor", stage="training", share=PRETRAIN_SHARE),
            call("update_critic", "train", "critic", "advantages"),
            call("update_actor", "train", "actor", "advantages", PRETRAIN_LOSS),
        ),
    )


def grpo() -> Dataflow:
    """Group relative policy optimisation (Shao et al. 2024): several responses for each prompt, normalised within their group."""
    return Dataflow(
        name="grpo",
        calls=(
            call("generate", "generate", "actor"),
            *_judged(),
            call("advantages", "compute", "", "ref_log_prob", "reward"),
            call("update_actor", "train", "actor", "advantages"),
        ),
    )


def _judged() -> tuple[Call, ...]:
    return (
        call("ref_log_prob", "forward", "reference", "generate"),
        call("reward", "forward", "reward", "generate"),
    )


BUILT_IN = {"ppo": ppo, "remax": remax, "safe_rlhf": safe_rlhf, "grpo": grpo}


ROLLOUT = "rollout"
"""The role of a copy of the model that only generates, on GPUs of its own."""


def with_rollout(dataflow: Dataflow) -> Dataflow:
    """The dataflow with a second copy of the model that generates, which does all of the generation."""
    calls = tuple(replace(c, role=ROLLOUT) if c.kind == "generate" else c for c in dataflow.calls)
    return replace(dataflow, calls=calls)


def with_checks(dataflow: Dataflow, roles: Collection[str]) -> Dataflow:
    """The dataflow with scores of some roles computed by code: calls that have no model."""
    calls = tuple(replace(c, role="", kind="compute") if c.role in roles else c for c in dataflow.calls)
    return replace(dataflow, calls=calls)


LOG_PROB = "log_prob"


def with_log_prob(dataflow: Dataflow) -> Dataflow:
    """The dataflow with log-probabilities of responses by a forward pass of the model that generated them (table 4 of the paper:
    optional in PPO). Whatever is trained waits for them, or for numbers that are made of them."""
    found: list[Call] = []
    last = max(i for i, c in enumerate(dataflow.calls) if c.kind == "generate")
    numbers = {c.name for c in dataflow.calls[last:] if c.kind == "compute"}
    trained = [c for c in dataflow.calls if c.kind == "train"]
    waiting = {name for c in trained for name in numbers.intersection(c.after) or {c.name}}
    for i, c in enumerate(dataflow.calls):
        found.append(replace(c, after=(*c.after, LOG_PROB)) if c.name in waiting else c)
        if i == last:
            found.append(call(LOG_PROB, "forward", c.role, c.name))
    return replace(dataflow, calls=tuple(found))


def with_pretraining(dataflow: Dataflow) -> Dataflow:
    """The dataflow with its pretraining loss inside the updates: each learns from as many sequences of pretraining text as of the
    batch, as the code of Safe-RLHF has it, and there is no forward pass for it. A dataflow without that loss stays as it is."""
    learns = {c.role for c in dataflow.calls if c.name == PRETRAIN_LOSS}
    return replace(
        dataflow,
        calls=tuple(
            replace(
                c,
                after=tuple(name for name in c.after if name != PRETRAIN_LOSS),
                share=2 * c.share if c.kind == "train" and c.role in learns else c.share,
            )
            for c in dataflow.calls
            if c.name != PRETRAIN_LOSS
        ),
    )


def own(name: str, calls: Sequence[Call]) -> Dataflow:
    """A user's dataflow, sorted so that every call stands after what it waits for.

    Raises `InputError` with every call that names nothing, is named twice, waits for itself, or has too much or too little.
    """
    problems = [*_problems(calls)]
    if not problems:
        order = _sorted(calls)
        if len(order) < len(calls):
            circular = ", ".join(c.name for c in calls if c not in order)
            problems.append(Problem("calls.after", circular, "no circle", "Calls wait for each other."))
    if problems:
        raise InputError("a dataflow that contradicts itself", problems)
    return Dataflow(name=name, calls=tuple(order))


def _problems(calls: Sequence[Call]) -> Iterator[Problem]:
    names = [c.name for c in calls]
    for i, c in enumerate(calls):
        at = f"calls[{i}]"
        if names.index(c.name) < i:
            yield Problem(f"{at}.name", c.name, "a name of its own")
        if (c.kind == "compute") == bool(c.role):
            allowed = "none, for numbers that no model computes" if c.role else "the model that is called"
            yield Problem(f"{at}.role", repr(c.role), allowed)
        for other in c.after:
            if other not in names:
                yield Problem(f"{at}.after", other, ", ".join(names))
    roles = {c.role for c in calls if c.kind == "generate"}
    if len(roles) != 1:
        yield Problem("calls", f"{len(roles)} roles that generate", "one", "The dataflow starts with its responses.")
    if not any(c.kind == "train" for c in calls):
        yield Problem("calls", "no call that trains", "at least one")


def _sorted(calls: Sequence[Call]) -> list[Call]:
    """As given where that is possible."""
    left, order = list(calls), []
    done: set[str] = set()
    while ready := next((c for c in left if done.issuperset(c.after)), None):
        left.remove(ready)
        order.append(ready)
        done.add(ready.name)
    return order
