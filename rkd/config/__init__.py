"""Configuration: from YAML groups and overrides to a checked tree of plain values, all before torch is imported.

schema        what each key may hold
folders       the YAML groups: rkd's own, and the user's
overrides     the arguments of a command line
composition   Hydra's compose, with errors that say what to do
tree, keys    the plain tree; each key and value against the schema, with the nearest valid one
checks        what must fit together: streams, noise and rooms, classes and their arguments
classes       finding, trusting and building the classes that `_target_` names
fingerprints  hashes of configuration and of files
devices       CUDA and number formats, asked for without torch
"""

from rkd.config.checks import NOT_ARGUMENTS
from rkd.config.classes import instantiate, is_trusted, load_class
from rkd.config.composition import compose, group_choices, origins
from rkd.config.devices import cuda_available, resolve_device, resolve_precision
from rkd.config.fingerprints import fingerprint, hash_files, hash_inputs
from rkd.config.folders import conf_folders, described, families
from rkd.config.overrides import parse_override, unread_overrides
from rkd.config.reads import STAGE_READS
from rkd.config.schema import SCHEMA

__all__ = [
    "NOT_ARGUMENTS",
    "SCHEMA",
    "STAGE_READS",
    "compose",
    "conf_folders",
    "cuda_available",
    "described",
    "families",
    "fingerprint",
    "group_choices",
    "hash_files",
    "hash_inputs",
    "instantiate",
    "is_trusted",
    "load_class",
    "origins",
    "parse_override",
    "resolve_device",
    "resolve_precision",
    "unread_overrides",
]
