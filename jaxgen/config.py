"""Configs as plain tables: read from a file, changed key by key, checked against the function they are for.

A section's keys are a function's parameters: their types are its annotations, and a range is said there too,
`depth: Count`. So a wrong value is refused with its name before any part is made of it.
"""

import ast
import collections.abc
import copy
import dataclasses
import difflib
import importlib.util
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that make sense; `open_low` leaves the lowest out, `open_high` the highest."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low, high = f'{self.low:,}', f'{self.high:,}'
        if math.isinf(self.high):
            return f'above {low}' if self.open_low else f'{low} or more'
        return f'above {low} and below {high}' if self.open_low and self.open_high else f'in {self._edges()}'

    def _edges(self) -> str:
        left, right = '(' if self.open_low else '[', ')' if self.open_high else ']'
        return f'{left}{self.low:,}, {self.high:,}{right}'


Count = Annotated[int, Range(1, 10**9)]  # steps, examples: at least one
Whole = Annotated[int, Range(0, 10**9)]  # 0 is none, or never
Size = Annotated[int, Range(1, 2**16)]  # what makes an array's dimension: widths, sides, lengths
Side = Annotated[int, Range(1, 2**14)]  # of a picture, in pixels
Depth = Annotated[int, Range(1, 2**10)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, open_high=True)]  # a share that is never all
Inside = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
Positive = Annotated[float, Range(0, open_low=True)]
Dtype = Literal['float32', 'bfloat16', 'float16', 'float64']
NonNegative = Annotated[float, Range(0)]


def load(argument: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config of 'file.py' or 'file.py:variant', as given or as shipped, with 'section.key=value' set.

    Any key that a part takes can be set, also one that the file leaves at its default.
    """
    if not argument:
        raise ValueError('--config is missing; for example --config=configs/quickstart.py.')
    path, _, variant = argument.partition(':')
    return overridden(plain(_read(path, variant)), overrides)


def overridden(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A config with 'section.key=value' set; the one given stays as it is."""
    config = copy.deepcopy(dict(config))
    for override in overrides:
        _set(config, override)
    return config


def plain(value: Any) -> Any:
    """Dictionaries, tuples and scalars; what is None is left out."""
    if hasattr(value, 'to_dict'):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    return tuple(plain(inner) for inner in value) if isinstance(value, list | tuple) else value


def check(function: Callable, settings: Mapping[str, Any], where: str) -> None:
    """Refuse a key that the function does not take, and a value of another type or out of its range."""
    known_keys(settings, inspect.signature(function).parameters, f'section {where}')
    annotated = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(annotated, include_extras=True)
    for name, value in settings.items():
        hint, place = hints.get(name, Any), f'{where}.{name}'
        if not _finite(value):
            raise ValueError(f'{place} is {value!r}; it must be finite.')
        if not fits(value, hint):
            raise ValueError(
                f'{place} is {_said(value)}; it must be {_words(hint)}.'
                if not fits(value, hint, ranges=False)
                else f'{place} is {value!r}; it must be {_limits(hint)}.'
            )


def known_keys(settings: Any, valid: Iterable[str], where: str) -> None:
    """Refuse what is no table, and a key that is not valid, with the nearest that is."""
    valid = list(valid)
    if not isinstance(settings, Mapping):
        raise ValueError(f'{where} is {settings!r}; it must be a table of keys and values.')
    for key in settings:
        if key not in valid:
            nearest = difflib.get_close_matches(str(key), valid, 1, 0)
            said = f"the nearest is '{nearest[0]}'" if nearest else 'it takes none'
            raise ValueError(f"{where} has no key '{key}'; {said}.")


def fits(value: Any, hint: Any, ranges: bool = True) -> bool:
    """Whether a value is of the annotated type, and in its range."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one, ranges) for one in arguments)
    if origin is Annotated:
        limits = [extra for extra in arguments[1:] if ranges and isinstance(extra, Range)]
        return fits(value, arguments[0], ranges) and all(limit.holds(value) for limit in limits)
    if origin is Literal:
        return value in arguments
    if origin in (Any, inspect.Parameter.empty):
        return True
    if origin in (int, float):
        return isinstance(value, int | origin) and not isinstance(value, bool)
    if origin in (types.NoneType, str, bool):
        return isinstance(value, origin)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple) and _elements_fit(value, origin, arguments, ranges)
    if isinstance(value, str | int | float | tuple | Mapping):
        return False  # a part is wanted here, not the name of one
    return origin is collections.abc.Callable or not inspect.isclass(origin) or _is_a(value, origin)


def _is_a(value: Any, kind: type) -> bool:
    return getattr(kind, '_is_protocol', False) or isinstance(value, kind)


def _elements_fit(value: tuple, origin: Any, hints: tuple, ranges: bool) -> bool:
    if not hints:
        return True
    if origin is not tuple or hints[-1] is Ellipsis:
        return all(fits(one, hints[0], ranges) for one in value)
    return len(value) == len(hints) and all(fits(one, hint, ranges) for one, hint in zip(value, hints))


def _finite(value: Any) -> bool:
    if isinstance(value, tuple | Mapping):
        return all(map(_finite, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _said(value: Any) -> str:
    """A value and its type; of a part, which fills many lines, the type alone."""
    name = type(value).__name__
    kind = f'an {name}' if name[0] in 'aeiou' else f'a {name}'
    return kind if '\n' in repr(value) else f'{value!r}, {kind}'


def _words(hint: Any) -> str:
    """A type for people: without the ranges."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return ' | '.join(map(_words, arguments))
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return f'one of {", ".join(map(repr, arguments))}'
    if hint in (types.NoneType, Ellipsis):
        return 'None' if hint is types.NoneType else '...'
    name = getattr(origin, '__name__', str(hint))
    return f'{name}[{", ".join(map(_words, arguments))}]' if arguments else name


def _limits(hint: Any) -> str:
    """The ranges in a type, for people."""
    if typing.get_origin(hint) is Annotated:
        return ' and '.join(str(extra) for extra in typing.get_args(hint)[1:] if isinstance(extra, Range))
    said = (_limits(one) for one in typing.get_args(hint) if one is not Ellipsis)
    return ' or '.join(dict.fromkeys(filter(None, said)))


def _read(path: str, variant: str) -> Any:
    """What the file's get_config says, with whatever is wrong in the file as one line."""
    package, name = os.path.dirname(__file__), os.path.basename(path)
    shipped = [os.path.join(folder, 'configs', name) for folder in (package, os.path.dirname(package))]
    file = next((found for found in (path, *shipped) if os.path.exists(found)), path)
    if os.path.isdir(file):
        raise ValueError(f'the config {path} is a folder; name a file in it, as configs/quickstart.py.')
    if not os.path.isfile(file) or not file.endswith('.py'):
        raise ValueError(f'there is no config file {path}; a config is a Python file.')
    spec = importlib.util.spec_from_file_location('jaxgen_config', file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        variants = getattr(module, 'VARIANTS', ('',))
        if not callable(getattr(module, 'get_config', None)):
            raise ValueError(f'the config {path} has no function get_config(variant).')
        if variant not in variants:
            names = ', '.join(f"'{name}'" for name in variants)
            raise ValueError(f"{path} has no variant '{variant}'; it has {names}.")
        config = module.get_config(variant)
    except ValueError:
        raise
    except Exception as error:  # whatever the file does
        raise ValueError(f'the config {path} does not run: {type(error).__name__}: {error}.') from error
    if not isinstance(config, Mapping) and not hasattr(config, 'to_dict'):
        raise ValueError(f'get_config of {path} gives a {type(config).__name__}; it must give a ConfigDict.')
    return config


def _set(config: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition('=')
    *parents, last = keys.split('.')
    if not equals:
        raise ValueError(f'--config.{override} has no value; write --config.{override}=value.')
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f'--config.{keys} does not exist: {parent} is {section!r}, no section.')
    section[last] = plain(_literal(text))


def _literal(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
