"""What models have in common: their modules, and the rule that they share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

from torch import Tensor, nn

from ..rules import Rule
from .layer import DEFAULT_RULE, Layer, check_rule
from .online import Online, Part
from .stateless import Stateless
from .streaming import Call, TapeKeeper, stale, structure_changed


class Container(Online, nn.Sequential):
    """Base of models: modules by name, one rule for those that have none of their own."""

    def __init__(
        self,
        *modules: nn.Module | OrderedDict[str, nn.Module],
        rule: Rule | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__()
        self._adapters: dict[str, Stateless] = {}
        self._known_parts: tuple[list[nn.Module], list[tuple[str, Part]]] | None = None
        only = modules[0] if len(modules) == 1 else None
        for name, module in only.items() if isinstance(only, dict) else enumerate(modules):
            super().add_module(str(name), module)  # type: ignore[arg-type]
        if rule is not None:
            check_rule(type(self).__name__, rule)
        self._own_rule = rule
        self._model_rule: Rule | None = None
        self._run: tuple[Call, list[nn.Module]] | None = None  # the latest call, and the modules that it ran
        self.horizon = horizon
        self._check()
        self._share_rule(self)

    # -- the rule --------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Rule:
        """The learning rule of the layers that have none of their own. Setting it drops their traces."""
        return self._given_rule or DEFAULT_RULE

    @rule.setter
    def rule(self, rule: Rule) -> None:
        check_rule(type(self).__name__, rule)
        before, self._own_rule = self._own_rule, rule
        try:
            self._check()
        except Exception:
            self._own_rule = before
            raise
        self._share_rule(self)

    @property
    def _given_rule(self) -> Rule | None:
        """The rule that this model, or the one that it stands in, was given."""
        return self._own_rule or self._model_rule

    def _check(self) -> None:
        """Raise where the modules cannot make up a model, or the rule cannot serve a layer."""
        layers = self._layers()
        if not layers:
            raise ValueError(
                f"{type(self).__name__}: expected at least one layer of tracetorch, got none. "
                "Use torch.nn.Sequential for a model without state."
            )
        if len(set(map(id, layers.values()))) < len(layers):
            raise ValueError(
                f"{type(self).__name__}: expected each layer once, got one that stands in several places, "
                "sharing its state. Make a layer for each place."
            )
        for name, part in self._named_parts():
            if isinstance(part, Stateless):
                part.check(f"{type(self).__name__}, module {name}")
        self._check_rule(self._model_rule)

    def _check_rule(self, rule: Rule | None) -> None:
        rule = self._own_rule or rule
        for name, child in self._modules.items():
            with named(self, name):
                if isinstance(child, Container):
                    child._check_rule(rule)
                elif isinstance(child, Layer) and child._own_rule is None and rule is not None:
                    rule.check(child)

    def _share_rule(self, children: Iterable[nn.Module]) -> None:
        """Give the children the rule; without one they keep what they have from the model that they come from."""
        rule = self._given_rule
        for child in children:
            if isinstance(child, Layer | Container) and rule is not None:
                child._inherit(rule)

    def _inherit(self, rule: Rule) -> None:
        self._model_rule = rule
        self._share_rule(self)

    # -- the modules -----------------------------------------------------------------------------------------------

    def __getitem__(self, index: slice | int) -> Any:
        """A module, or for a slice a model of the same modules with the same rule and mode."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        modules = OrderedDict(list(self._modules.items())[index])
        part = self._part(modules)
        part.training, part.check_finite, part.state_limit = self.training, self.check_finite, self.state_limit
        part.compact = self.compact
        return part

    def _part(self, modules: OrderedDict[str, nn.Module]) -> Container:
        """A model of its kind, of some of its modules."""
        return type(self)(modules, rule=self._given_rule, horizon=self.horizon)

    def __setitem__(self, index: int, module: nn.Module) -> None:
        """Put a module in the place of another."""
        with self._changing():
            super().__setitem__(index, module)

    def __delitem__(self, index: slice | int) -> None:
        """Take out modules."""
        with self._changing():
            super().__delitem__(index)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module at the end; `append` is the usual way."""
        with self._changing():
            super().add_module(name, module)

    def insert(self, index: int, module: nn.Module) -> Self:
        """Add a module before another."""
        with self._changing():
            super().insert(index, module)
        return self

    def extend(self, sequential: Iterable[nn.Module]) -> Self:
        """Add modules at the end: all of them, or where one is refused, none."""
        with self._changing():
            for module in sequential:
                super().add_module(str(len(self)), module)
        return self

    def __iadd__(self, other: Iterable[nn.Module]) -> Self:
        """The same as `extend`."""
        return self.extend(other)

    def __add__(self, other: Iterable[nn.Module]) -> Self:
        """A model of the modules of both, with this one's rule."""
        return type(self)(*self, *other, rule=self._given_rule, horizon=self.horizon)

    def __mul__(self, other: int) -> Self:
        """Refused: a layer has one state, and can stand in one place only."""
        raise TypeError(
            f"{type(self).__name__}: expected no repetition of layers, each of which has a state. Make new layers."
        )

    __imul__ = __mul__

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Within this context modules change; what cannot be a model is undone."""
        before, adapters = dict(self._modules), dict(self._adapters)
        try:
            yield
            self._check()
        except Exception:
            self._modules, self._adapters = before, adapters
            raise
        finally:
            structure_changed()
        self._adapters = {name: adapter for name, adapter in self._adapters.items() if name in self._modules}
        for part in self._parts():
            part._fold()
        old = set(map(id, before.values()))
        self._share_rule(module for module in self if id(module) not in old)
        self._end("its modules were changed after the latest")

    def _named_parts(self) -> list[tuple[str, Part]]:
        """The children as parts: layers and models as they are, other modules through an adapter."""
        modules = list(self._modules.values())
        if self._known_parts is not None and self._known_parts[0] == modules:
            return self._known_parts[1]
        parts: list[tuple[str, Part]] = []
        for name, module in self._modules.items():
            if isinstance(module, Online):
                parts.append((name, module))
                continue
            adapter = self._adapters.get(name)
            if adapter is None or adapter.module is not module:
                adapter = self._adapters[name] = Stateless(module)
            parts.append((name, adapter))
        self._known_parts = modules, parts
        return parts

    def _modules_as_run(self, call: Call) -> list[tuple[str, Part]]:
        """The parts, which must still be those that the call ran."""
        if self._run is None or self._run[0] is not call or self._run[1] != list(self._modules.values()):
            raise stale(type(self).__name__)
        return self._named_parts()

    def _commit(self, step: Any, call: Call) -> None:
        self._run = (call, step)

    def _uses_adjoint(self) -> bool:
        return any(part._uses_adjoint() for _, part in self._named_parts())

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no latest call."""
        return super().__getstate__() | {"_run": None, "_known_parts": None}

    def _trains(self) -> bool:
        return any(part._trains() for _, part in self._named_parts())

    def _a_weight(self) -> Tensor:
        for module in self._modules.values():
            if isinstance(module, Online):
                return module._a_weight()
        raise AssertionError("a model has at least one layer")

    def _windows_kept(self) -> int:
        return self._named_parts()[0][1]._windows_kept()

    def _layers(self) -> dict[str, Layer]:
        return {
            f"{name}.{inner}".rstrip("."): layer
            for name, module in self._modules.items()
            if isinstance(module, Online)
            for inner, layer in cast(dict[str, Layer], module._layers()).items()
        }

    def _parts(self) -> list[TapeKeeper]:
        return [
            keeper
            for _, part in self._named_parts()
            for keeper in ([part] if isinstance(part, Stateless) else cast(Online, part)._parts())
        ]


def feature_shape(module: nn.Module | None, known: bool) -> tuple[int | None, ...] | None:
    """The shape of one lane's input of a module at one step, see `Online._feature_shape`."""
    if type(module) is nn.Linear:
        return (module.in_features,)
    return module._feature_shape(known) if isinstance(module, Online) else None


class named:  # noqa: N801
    """A context that says in an error in which module it arose."""

    __slots__ = ("container", "name")

    def __init__(self, container: nn.Module, name: str) -> None:
        self.container, self.name = container, name

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raise the error with the module's name before it."""
        if kind in (ValueError, TypeError, RuntimeError):
            raise kind(f"{type(self.container).__name__}, module {self.name}: {error}") from error
