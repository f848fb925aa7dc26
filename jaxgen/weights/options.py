"""A published config.json read strictly: what is not understood is refused, never guessed."""

from collections.abc import Mapping
from typing import Any


def options(
    published: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    unused: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The options of `defaults`, as published or else at their published default.

    `fixed` options may only have the value given (the one that is implemented), `unused` ones mean nothing
    here; any other option, but for the private '_...', is an error.
    """
    name = published.get('_class_name') or 'this network'
    for option, value in published.items():
        if option in fixed and value != fixed[option]:
            raise ValueError(
                f'{name} with {option}={value!r} is not implemented; it has to be {fixed[option]!r}'
            )
        if not (option in defaults or option in fixed or option in unused or option.startswith('_')):
            raise ValueError(f'{name} has an option {option}={value!r} that is not known here')
    return {option: published.get(option, default) for option, default in defaults.items()}


def learned_variance(channels: int, out_channels: int | None) -> bool:
    """Whether a generator of so many channels in and out (None: as many) also learns its variance."""
    if out_channels not in (None, channels, 2 * channels):
        raise ValueError(f'out_channels={out_channels} is neither in_channels={channels} nor twice that')
    return out_channels == 2 * channels
