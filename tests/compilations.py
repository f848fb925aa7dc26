"""Which of the library's programs were compiled, for tests of what must happen without."""

import contextlib
import logging

import jax

# What the library compiles by name; the rest is arithmetic on a schedule's numbers.
PROGRAMS = ('step', 'draw', 'features', 'held_out', '<lambda>')


@contextlib.contextmanager
def compilations(caplog):
    """Gives a function: the messages of the compilations so far."""

    def so_far():
        messages = [record.getMessage() for record in caplog.records]
        said = [f'Compiling {form} ' for name in PROGRAMS for form in (name, f'jit({name})')]
        return [message for message in messages if message.startswith(tuple(said))]

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield so_far
