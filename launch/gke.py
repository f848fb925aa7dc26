"""A run on TPU nodes of a GKE cluster: a JobSet of one job a slice, or the same through xpk.

    python launch/gke.py --name=dit --topology=v5e:16x16 --slices=2 --image=REGISTRY/jaxgen:1 -- \
        --config=configs/dit_imagenet.py --config.mesh="{'data': 2, 'fsdp': -1}" --workdir=gs://bucket/dit

The image has jaxgen installed with its extras tpu and gcs. A slice that dies restarts the whole set, and the
same command goes on from its last checkpoint; Kubernetes' SIGTERM leaves it five minutes to save. What jaxgen
refuses, as a flag or processes that do not fit together, ends the set.
`--with=xpk --cluster=...` hands over to xpk instead. `--dry_run` prints the command and the manifest.
"""

import argparse
import json
import shlex
import sys
from typing import Any

from slices import Slice, fail, named, perform, split

COORDINATOR = 8476
REFUSED = 2  # jaxgen's exit code for what its user can mend
TOGETHER = 86400  # seconds that pods wait for those whose nodes come later: who is missing counts as refused


def manifest(options: argparse.Namespace, slice_: Slice, command: list[str]) -> dict[str, Any]:
    """The JobSet; GKE itself tells the workers of a slice of each other."""
    if not any(argument.startswith('--preflight_seconds') for argument in command):
        command = [*command, f'--preflight_seconds={TOGETHER}']
    container = {
        'name': 'jaxgen',
        'image': options.image,
        'command': ['python', '-m', 'jaxgen.main', *command],
        'ports': [{'containerPort': 8471}, {'containerPort': COORDINATOR}],
        'resources': {'limits': {'google.com/tpu': slice_.chips // slice_.hosts}},
    }
    if options.slices > 1:
        number = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
        container['env'] = [
            {'name': 'MEGASCALE_NUM_SLICES', 'value': str(options.slices)},
            {'name': 'MEGASCALE_SLICE_ID', 'valueFrom': {'fieldRef': {'fieldPath': number}}},
            {'name': 'MEGASCALE_COORDINATOR_ADDRESS', 'value': f'{options.name}-slice-0-0.{options.name}'},
        ]
    pod = {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 300,
        'hostNetwork': True,
        'dnsPolicy': 'ClusterFirstWithHostNet',
        'nodeSelector': {
            'cloud.google.com/gke-tpu-accelerator': slice_.selector,
            'cloud.google.com/gke-tpu-topology': slice_.shape,
        },
        'containers': [container],
    }
    if options.spot:
        pod['nodeSelector']['cloud.google.com/gke-spot'] = 'true'
    if options.service_account:
        pod['serviceAccountName'] = options.service_account
    job = {
        'parallelism': slice_.hosts,
        'completions': slice_.hosts,
        'backoffLimit': 0,
        'podFailurePolicy': {
            'rules': [
                {
                    'action': 'FailJob',
                    'onExitCodes': {'containerName': 'jaxgen', 'operator': 'In', 'values': [REFUSED]},
                },
            ],
        },
        'template': {'spec': pod},
    }
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': options.name,
            'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
        },
        'spec': {
            'failurePolicy': {
                'maxRestarts': options.restarts,
                'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
            },
            'replicatedJobs': [
                {'name': 'slice', 'replicas': options.slices, 'template': {'spec': job}},
            ],
        },
    }


def xpk(options: argparse.Namespace, slice_: Slice, command: str) -> list[str]:
    """The workload as xpk is asked for it."""
    if not (options.cluster and options.zone):
        fail('--with=xpk needs --cluster and --zone.')
    if not slice_.type:
        fail(f'--with=xpk has no name for a slice of {slice_.shape}; leave it out.')
    return [
        *('xpk', 'workload', 'create', f'--workload={options.name}', f'--cluster={options.cluster}'),
        *(f'--zone={options.zone}', f'--tpu-type={slice_.type}', f'--num-slices={options.slices}'),
        *(f'--docker-image={options.image}', f'--max-restarts={options.restarts}', f'--command={command}'),
    ]


def main() -> int:
    """Read the command line, print or submit."""
    ours, command = split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--name', required=True)
    parser.add_argument('--image', required=True)
    parser.add_argument('--topology', default='v5e:2x4', help='as for --mode=plan')
    parser.add_argument('--slices', type=int, default=1)
    parser.add_argument('--restarts', type=int, default=100)
    parser.add_argument('--spot', action='store_true')
    parser.add_argument('--service_account', default='', help='with access to the bucket')
    parser.add_argument('--with', dest='tool', choices=('kubectl', 'xpk'), default='kubectl')
    parser.add_argument('--cluster', default='')
    parser.add_argument('--zone', default='')
    parser.add_argument('--dry_run', action='store_true', help='print only')
    options = parser.parse_args(ours)
    if not any(argument.startswith('--workdir=gs://') for argument in command):
        fail("give jaxgen's flags after --, with a --workdir=gs://... that all workers see.")
    slice_ = named(options.topology)
    if options.tool == 'xpk':
        job = shlex.join(['python', '-m', 'jaxgen.main', *command])
        perform([xpk(options, slice_, job)], options.dry_run)
        return 0
    text = json.dumps(manifest(options, slice_, command), indent=2)
    perform([['kubectl', 'apply', '-f', '-']], options.dry_run, text)
    if options.dry_run:
        print(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
