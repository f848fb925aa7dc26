"""Where a process stands: flags, environment, and what jax reads of a cluster."""

import pytest

from jaxgen.processes import place
from jaxgen.processes.place import Place

SLURM = {
    'SLURM_JOB_ID': '4095',
    'SLURM_STEP_NODELIST': 'node[007-010],other',
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*SLURM, *(f'JAXGEN_{name.upper()}' for name in place.NAMES), 'KUBERNETES_SERVICE_HOST'):
        monkeypatch.delenv(name, raising=False)


def test_nothing_said_is_one_process():
    assert place.find(environment={}) is None


def test_flags_come_before_the_environment():
    environment = {'JAXGEN_COORDINATOR': 'b:2', 'JAXGEN_PROCESSES': '3', 'JAXGEN_PROCESS': '1'}
    assert place.find(environment=environment) == Place('b', 2, 3, 1)
    assert place.find('a:1', 4, 2, environment=environment) == Place('a', 1, 4, 2)
    assert place.find('[::1]:65535', 2, 0, environment={}).next_port == 65534
    assert place.find('a:1', 1, 0, environment={}) is None
    assert place.find(processes=1, environment=environment) is None


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (('a:1', None, None), '--processes and --process are missing'),
        (('', 2, 0), '--coordinator is missing'),
        (('a', 2, 0), "the coordinator is 'a'"),
        (('a:70000', 2, 0), "the coordinator is 'a:70000'"),
        (('a:1', 2, 2), 'process 2 of 2; count processes from 0 to 1'),
        (('a:1', 0, 0), 'process 0 of 0'),
    ],
)
def test_half_given_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        place.find(*given, environment={})


def test_half_given_by_the_environment_is_refused():
    with pytest.raises(ValueError, match='JAXGEN_PROCESS is missing'):
        place.find(environment={'JAXGEN_COORDINATOR': 'a:1', 'JAXGEN_PROCESSES': '2'})
    with pytest.raises(ValueError, match="JAXGEN_PROCESS is 'x'; give a whole number"):
        place.find(environment={'JAXGEN_COORDINATOR': 'a:1', 'JAXGEN_PROCESSES': '2', 'JAXGEN_PROCESS': 'x'})


def test_slurm_is_found(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert place.find() == Place('node007', 65535, 4, 2, [0])
    monkeypatch.setenv('SLURM_NTASKS', '1')
    monkeypatch.setenv('SLURM_PROCID', '0')
    assert place.find() is None


def test_gke_is_found(monkeypatch):
    clusters = pytest.importorskip('jax._src.clusters.cloud_tpu_cluster')
    monkeypatch.setattr(clusters, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
    for name, value in {
        'TPU_WORKER_HOSTNAMES': 'localhost,other',
        'TPU_WORKER_ID': '1',
        'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
        'MEGASCALE_NUM_SLICES': '2',
        'MEGASCALE_SLICE_ID': '1',
        'KUBERNETES_SERVICE_HOST': '10.0.0.1',
    }.items():
        monkeypatch.setenv(name, value)
    found = place.find()
    assert (found.host, found.processes, found.process) == ('localhost', 4, 3)


def test_a_notebook_in_kubernetes_is_one_process():
    assert place.find(environment={'KUBERNETES_SERVICE_HOST': '10.0.0.1'}) is None
