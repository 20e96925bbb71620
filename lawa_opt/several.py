"""Several optimizers over one model, such as Muon for matrices and AdamW for the rest, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WHOLE = "optimizers"


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that one stands for: those of `Several`, or itself."""
    return optimizer.optimizers if isinstance(optimizer, Several) else [optimizer]


class Several(Optimizer):
    """Optimizers that are stepped one after the other, with the groups of all of them.

    Args:
        optimizers: of different parameters, in the order in which they step.

    Raises:
        ValueError: two have the same parameter, or there is none.
        TypeError: one is no optimizer, or LBFGS, or of two steps as SAM.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        # Optimizer.__init__ is not called: it would make param_groups and state of its own.
        self.__setstate__({"optimizers": list(optimizers)})
        if not optimizers:
            raise ValueError("LAWA wraps at least one optimizer: got an empty list")
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise TypeError(
                    "LBFGS calls its closure again and again, which moves the weights of the "
                    "others: wrap it alone"
                )
            if hasattr(optimizer, "first_step"):
                raise TypeError(
                    f"{type(optimizer).__name__} takes two steps an update, and step() of a list "
                    "one: wrap it alone, and the others in a LAWA of their own"
                )
        owners: dict[int, Optimizer] = {}
        for optimizer in self.optimizers:
            for parameter in _parameters(optimizer):
                other = owners.setdefault(id(parameter), optimizer)
                if other is not optimizer:
                    raise ValueError(
                        f"{type(other).__name__} and {type(optimizer).__name__} have a parameter "
                        f"of shape {tuple(parameter.shape)} in common: give each to one of them"
                    )

    optimizers: list[Optimizer]

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.optimizers))

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all, each the very dict of its optimizer."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> MutableMapping[Any, Any]:  # type: ignore[override]
        """The state of all by parameter, which writes to that of the parameter's optimizer."""
        return _States(self.optimizers)

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults that all have, as the first has them."""
        first, *others = [optimizer.defaults for optimizer in self.optimizers]
        return {name: first[name] for name in first if all(name in each for each in others)}

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Reset the gradients of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse a group, of which nothing says whose it is.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "add a group to the optimizer that is to train it, as by "
            "opt.base.optimizers[1].add_param_group(group)"
        )

    def eval(self) -> None:
        """Tell it to those that want to know."""
        self._tell("eval")

    def train(self) -> None:
        """Tell it to those that want to know."""
        self._tell("train")

    def _tell(self, name: str) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, name):
                getattr(optimizer, name)()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step of each, in their order; a closure is called once, before the first."""
        return self.in_turn(lambda optimizer, *a, **k: optimizer.step(*a, **k), *args, **kwargs)

    def in_turn(
        self,
        step: Callable[..., Any],
        closure: Callable[[], Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Take a step of each by this function of an optimizer, and return what a closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            step(optimizer, *args, **kwargs)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return one state dict, with the parameters numbered through.

        Where one of them has a form of its own, it is the list of theirs.
        """
        own = [optimizer.state_dict() for optimizer in self.optimizers]
        if not all(map(_can_be_numbered, own)):
            return {WHOLE: own}
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for each in own:
            first = len(_numbers(groups))
            state |= {first + number: entry for number, entry in each["state"].items()}
            groups += [
                {**group, "params": [first + number for number in group["params"]]}
                for group in each["param_groups"]
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or {"optimizers": [the state dict of each]}.

        Raises:
            ValueError: it has another number of optimizers or groups.
        """
        lists = state_dict.get(WHOLE)
        given = self._parts(state_dict) if lists is None else lists
        if len(given) != len(self.optimizers):
            raise ValueError(
                f"it holds the state of {len(given)} optimizers, and there are "
                f"{len(self.optimizers)}"
            )
        for optimizer, part in zip(self.optimizers, given, strict=True):
            optimizer.load_state_dict(part)

    def _parts(self, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the state dict of each, numbered from zero again."""
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise ValueError(f"it has {len(groups)} groups, and there are {len(self.param_groups)}")
        parts = []
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            own, groups = groups[:count], groups[count:]
            places = {number: place for place, number in enumerate(_numbers(own))}
            state = state_dict["state"]
            parts.append(
                {
                    "state": {place: state[n] for n, place in places.items() if n in state},
                    "param_groups": [
                        {**group, "params": [places[number] for number in group["params"]]}
                        for group in own
                    ],
                }
            )
        return parts


class _States(MutableMapping[Any, Any]):
    """The states of several optimizers, each entry where its parameter is trained."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers

    def _owner(self, key: Any) -> MutableMapping[Any, Any]:
        for optimizer in self.optimizers:
            if any(key is parameter for parameter in _parameters(optimizer)):
                return optimizer.state
        return next((o.state for o in self.optimizers if key in o.state), self.optimizers[0].state)

    def __getitem__(self, key: Any) -> Any:
        return self._owner(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._owner(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._owner(key)[key]

    def __contains__(self, key: object) -> bool:
        return any(key in optimizer.state for optimizer in self.optimizers)

    def __iter__(self) -> Iterator[Any]:
        return (key for optimizer in self.optimizers for key in list(optimizer.state))

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self.optimizers)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _numbers(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [number for group in groups for number in group["params"]]


def _can_be_numbered(state_dict: dict[str, Any]) -> bool:
    """Return whether a state dict is torch's, with nothing but the state of each parameter."""
    if state_dict.keys() != {"state", "param_groups"}:
        return False
    numbers = set(_numbers(state_dict["param_groups"]))
    return numbers == set(range(len(numbers))) and state_dict["state"].keys() <= numbers
