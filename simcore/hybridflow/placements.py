"""Every way to put roles on pools: set partitions, and sizes of pools that fill the zones (HybridFlow, section 6)."""

from collections.abc import Iterator, Sequence

Placement = tuple[tuple[str, ...], ...]
"""Sets of roles that share a pool each."""


def partitions(roles: Sequence[str]) -> list[Placement]:
    """All set partitions, Bell(len(roles)) of them; sets and roles in the order given, all roles together first."""
    found: list[list[list[str]]] = [[]]
    for role in roles:
        grown = []
        for sets in found:
            grown += [[[*s, role] if i == j else s for j, s in enumerate(sets)] for i in range(len(sets))]
            grown.append([*sets, [role]])
        found = grown
    return sorted((tuple(tuple(s) for s in sets) for sets in found), key=len)


def fillings(parts: int, total: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sizes of so many pools, each one of `sizes`, that add up to `total`; ascending by the first pool."""
    if parts == 1:
        if total in sizes:
            yield (total,)
        return
    for size in sizes:
        if size < total:
            for rest in fillings(parts - 1, total - size, sizes):
                yield (size, *rest)


def named(name: str, roles: Sequence[str]) -> Placement:
    """`colocate`: one pool. `split`: the actor with its reference (and who generates for it), the others. `standalone`: each."""
    if name == "colocate":
        return (tuple(roles),)
    if name == "standalone":
        return tuple((role,) for role in roles)
    assert name == "split"
    first = tuple(role for role in roles if role in ("actor", "reference", "rollout"))
    rest = tuple(role for role in roles if role not in first)
    return tuple(s for s in (first, rest) if s)
