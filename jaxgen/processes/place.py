"""Which of how many processes this one is: by flags, by the environment, or by the cluster that it runs on.

Flags come first, then JAXGEN_COORDINATOR, JAXGEN_PROCESSES and JAXGEN_PROCESS, then what jax can tell: Cloud
TPU VMs, GKE, Slurm, Open MPI, Kubernetes jobs. Nothing here touches a device.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

NAMES = ('coordinator', 'processes', 'process')


@dataclasses.dataclass(frozen=True)
class Place:
    """Process `process` of `processes`, of which the first listens at `host:port`, and at the next port."""

    host: str
    port: int
    processes: int
    process: int
    local_devices: Sequence[int] | None = None  # of this machine, where its processes share them

    @property
    def next_port(self) -> int:
        """The port of our own line; the other is jax's."""
        return self.port + 1 if self.port < 2**16 - 1 else self.port - 1


def find(
    coordinator: str = '',
    processes: int | None = None,
    process: int | None = None,
    seconds: float = 60.0,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place that is given or found; None where this process is the only one."""
    given = (coordinator or None, processes, process)
    said = [f'--{name}' for name in NAMES]
    if all(value is None for value in given):
        said = [f'JAXGEN_{name.upper()}' for name in NAMES]
        given = tuple(environment.get(name) or None for name in said)
    if given[1] is not None and str(given[1]) == '1' and given[2] in (None, 0, '0'):
        return None  # alone, whatever the cluster is
    missing = [name for name, value in zip(said, given) if value is None]
    if len(missing) == len(NAMES):
        return _detected(seconds, environment)
    if missing:
        raise ValueError(
            f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} missing; several processes need '
            f'{said[0]}=HOST:PORT of the first one, {said[1]}=N, and {said[2]}=I, counted from 0.'
        )
    return _place(given[0], _number(said[1], given[1]), _number(said[2], given[2]))


def _number(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} is '{value}'; give a whole number.") from None


def _place(
    coordinator: str, processes: int, process: int, local_devices: Sequence[int] | None = None
) -> Place | None:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the coordinator is '{coordinator}'; write HOST:PORT, as 10.0.0.2:8476.")
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(f'process {process} of {processes}; count processes from 0 to {processes - 1}.')
    return Place(host.strip('[]'), int(port), processes, process, local_devices) if processes > 1 else None


def _detected(seconds: float, environment: Mapping[str, str]) -> Place | None:
    """What jax finds out by itself in `jax.distributed.initialize`, before anything is connected."""
    on_kubernetes = 'KUBERNETES_SERVICE_HOST' in environment and 'TPU_WORKER_HOSTNAMES' not in environment
    if on_kubernetes and 'JOB_COMPLETION_INDEX' not in environment:
        return None  # a notebook's pod, say: no job of several
    from jax._src.clusters import ClusterEnv  # jax has no public name for it

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            environment.get('JAX_COORDINATOR_ADDRESS'), None, None, None, None, round(seconds)
        )
    except Exception as error:
        raise ValueError(
            f'the processes of this cluster cannot be counted ({type(error).__name__}: {error}); '
            'give --coordinator, --processes and --process, or --processes=1 to run alone.'
        ) from error
    coordinator, processes, process, local_devices = found
    if None in (coordinator, processes, process):
        return None
    return _place(coordinator, processes, process, local_devices)
