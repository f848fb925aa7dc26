"""The pod that this process is one of, as jax too knows one alone; without one all of it does nothing.

`join` comes before anything that touches a device. A run in which somebody else called
`jax.distributed.initialize` has no pod, and goes as jax has it.
"""

import logging
import os
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from etils import epath

from jaxgen.processes import facts
from jaxgen.processes.place import Place
from jaxgen.processes.pod import Pod, Refused

log = logging.getLogger('jaxgen')
SEEN = 10.0  # seconds until a file shows on a shared disk
_pod: Pod | None = None


def join(place: Place | None, asked: Mapping[str, Any], seconds: float) -> None:
    """Be a process of several, found to fit together; returns at once where there is one alone.

    asked: what was asked of this process, which is to be the same for all.
    """
    global _pod
    if place is None:
        return
    began = time.monotonic()
    if place.process:  # one process speaks for all; tqdm reads this when it is imported
        log.setLevel(logging.WARNING)
        os.environ['TQDM_DISABLE'] = '1'
    _pod = Pod(place, seconds)
    versions = {f'the version of {name}': version for name, version in facts.versions().items()}
    _pod.agree(
        'the start',
        {
            'the number of processes': str(place.processes),
            'the code': facts.code(),
            **versions,
            **facts.flat(asked),
        },
        'Start all processes by the same command, on the same code.',
    )
    import jax

    jax.config.update('jax_enable_preemption_service', False)  # `leaves` is ours; SIGTERM stays as it is
    address = f'[{place.host}]:{place.port}' if ':' in place.host else f'{place.host}:{place.port}'
    try:
        jax.distributed.initialize(
            address,
            place.processes,
            place.process,
            place.local_devices,
            cluster_detection_method='deactivate',
        )
    except RuntimeError as error:
        raise OSError(
            f'jax cannot connect the processes at {address} ({error}); is the port taken by another program? '
            'Give the coordinator another one.'
        ) from error
    devices = jax.local_devices()
    _pod.agree(
        'its devices',
        {'the number of its devices': str(len(devices)), 'its device': devices[0].device_kind},
        'All processes need devices alike; look whether another job holds some of them.',
    )
    log.info(
        '%d processes, %d devices (%s), found to fit together in %.1f s.',
        *(place.processes, jax.device_count(), devices[0].device_kind, time.monotonic() - began),
    )


def agree(what: str, values: Mapping[str, Any], remedy: str) -> None:
    """Refuse, in every process, to go on where one of them has found something else."""
    if _pod is not None:
        _pod.agree(what, facts.flat(values), remedy)


def told(value: Any) -> Any:
    """What the first process has found, for all to go by; it is plain data."""
    return value if _pod is None else _pod.told(value)


def leaves(pressed: int | None) -> int | None:
    """The signal by which to leave after this step, if any: all processes leave where one of them got it."""
    return pressed if _pod is None else _pod.leaves(pressed)


def agree_on_folder(folder: epath.Path) -> None:
    """Refuse a folder that is not one and the same for all processes."""
    if _pod is None:
        return
    mark = folder / told(f'.seen_by_all.{secrets.token_hex(4)}')
    if _pod.first:
        mark.touch()
    told(None)  # it is there
    deadline = time.monotonic() + SEEN
    while not (seen := _seen(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        agree(
            'the workdir',
            {f'{folder}': "the first process's" if seen else 'another folder'},
            'Give a workdir that all processes share, on a network disk or gs://.',
        )
    finally:
        if _pod.first:
            mark.unlink()


def _seen(mark: epath.Path) -> bool:
    """Whether a file is there; on a network disk by listing anew, for it remembers that a name was not."""
    if '://' in str(mark):
        return mark.exists()
    return any(path.name == mark.name for path in mark.parent.iterdir())


def several() -> bool:
    """Whether this process is one of a pod."""
    return _pod is not None


def end(said: str, code: int, error: BaseException | None = None) -> NoReturn:
    """End with one line and an exit code, and with it the pod, unless all of its processes do so."""
    said = ' '.join(said.split())
    if _pod is None:
        print(f'jaxgen: {said}', file=sys.stderr)
        sys.exit(code)
    if not isinstance(error, Refused):
        _pod.failing(f'has failed: {said}', code)
    if os.environ.get('JAXGEN_TRACEBACK') and error is not None:
        traceback.print_exception(error)
    print(f'jaxgen: {said}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at an ordinary exit jax would wait for the others


def leave() -> None:
    """This process has done its part: that it ends now is no failure."""
    if _pod is not None:
        _pod.leave()
