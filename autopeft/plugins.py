"""Registries that other packages add to: what those of methods, compositions, kinds of tasks, metrics,
samplers and strategies have in common.

A registry holds things by name. The built-in ones are imported when it is first asked, and then those of
installed packages, which name their modules in an entry-point group:

```toml
[project.entry-points."autopeft.methods"]
mine = "my_package.my_module"
```
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from autopeft.errors import AutoPEFTError, PluginError, ended, near

__all__ = ["Registry", "import_modules", "is_lower_identifier"]

T = TypeVar("T")
# One for all registries, as what one imports may look into another.
_LOADING = threading.RLock()


def is_lower_identifier(name: str) -> bool:
    """Whether a name is an identifier without capitals."""
    return name.isidentifier() and name == name.lower()


def import_modules(package: str) -> None:
    """Import every module below a package, by name."""
    path = importlib.import_module(package).__path__
    for info in sorted(pkgutil.walk_packages(path, f"{package}."), key=lambda i: i.name):
        if not info.ispkg:
            importlib.import_module(info.name)


def _same(there: Any, new: Any) -> bool:
    return (there.__module__, there.__qualname__) == (new.__module__, new.__qualname__)


@dataclass(kw_only=True, eq=False, repr=False)
class Registry(Mapping[str, T], Generic[T]):
    """Things by name, in the order in which they were entered. Looking into it imports all there are.

    The sentences are templates: `{name}` is the name that was given, `{by}` the module that has it already,
    `{near}` a hint at near matches (it begins with a space, or is empty), `{names}` all names, sorted,
    `{in_order}` the same as they were entered, and `{count}` how many there are.

    Attributes:
        error: is raised with each of the sentences.
        malformed, taken, unknown: what is said of a name that cannot be given, or not again, or that nothing
            has.
        group: entry-point group of other packages, `None` where they enter things in another way.
        built_in: imports the modules that enter the built-in things.
        well_formed: whether a name may be given.
        again: whether a second owner of a name, given the first one, may take its place; by default the
            same class may, as when its module is reloaded.
    """

    error: type[AutoPEFTError]
    malformed: str
    taken: str
    unknown: str
    group: str | None = None
    built_in: Callable[[], object] | None = None
    well_formed: Callable[[str], bool] = is_lower_identifier
    again: Callable[[Any, Any], bool] = _same
    _things: dict[str, T] = field(default_factory=dict, init=False)
    _owners: dict[str, Any] = field(default_factory=dict, init=False)
    _loaded: bool = field(default=False, init=False)
    _loading: bool = field(default=False, init=False)

    # Entering
    # --------------------------------------------------------------------------------------------------

    def check_name(self, name: str, owner: Any) -> None:
        """Raise unless what belongs to `owner`, as a rule a class, may be entered under `name`.

        Raises:
            AutoPEFTError: of the registry's own type; the name is malformed, or another thing has it.
        """
        if not self.well_formed(name):
            raise self.error(self.malformed.format(name=name))
        if name in self._owners and not self.again(self._owners[name], owner):
            raise self.error(self.taken.format(name=name, by=self._owners[name].__module__))

    def enter(self, name: str, thing: T, owner: Any = None) -> None:
        """Enter a thing whose name was checked; `owner` where it is another than the thing itself."""
        self._things[name] = thing
        self._owners[name] = thing if owner is None else owner

    # Looking up
    # --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Import the built-in things and those of installed packages, once; another thread waits for it.

        Raises:
            PluginError: a package's module cannot be imported; it is tried again at the next call.
        """
        if self._loaded:
            return
        with _LOADING:
            if self._loaded or self._loading:  # what is imported here may look into the registry itself
                return
            self._loading = True
            try:
                if self.built_in is not None:
                    self.built_in()
                for point in entry_points(group=self.group) if self.group else ():
                    _load_point(point)
                self._loaded = True
            finally:
                self._loading = False

    def find(self, name: str) -> T:
        """The thing of that name.

        Raises:
            AutoPEFTError: of the registry's own type; there is none, and the message names near matches.
        """
        self.load()
        if name not in self._things:
            names = tuple(self._things)
            raise self.error(
                self.unknown.format(
                    name=name,
                    near=near(name, names),
                    names=", ".join(sorted(names)),
                    in_order=", ".join(names),
                    count=len(names),
                )
            )
        return self._things[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self.load()
        return tuple(sorted(self._things))

    def peek(self, name: str) -> T | None:
        """What was entered under a name by what is imported so far; imports nothing."""
        return self._things.get(name)

    def __getitem__(self, name: str) -> T:
        self.load()
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(tuple(self._things))

    def __len__(self) -> int:
        self.load()
        return len(self._things)


def _load_point(point: EntryPoint) -> None:
    """Import what an entry point names.

    Raises:
        PluginError: that fails; it is code of another package, which may raise anything.
    """
    try:
        point.load()
    except (Exception, SystemExit) as error:
        package = point.value.partition(":")[0].partition(".")[0] if point.dist is None else point.dist.name
        why = ended(f"{type(error).__name__}: {error}")
        raise PluginError(
            f"The installed package {package!r} cannot be used: its entry point {point.name!r} "
            f"({point.value}, group {point.group!r}) ends with {why} "
            f"Repair the package, or remove it: pip uninstall {package}."
        ) from error
