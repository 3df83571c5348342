"""The stages: prepare, train-teacher, distill, evaluate.

plan            which folders a configuration leads to, and what each is made of
prepare         corpus, noise recordings and rooms
transcription   what a teacher writes of a corpus
targets         what teachers say of a corpus, computed once
training        teacher and student
evaluation      the comparison of systems
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from rkd import ranks
from rkd.console import say
from rkd.errors import ConfigError
from rkd.runs import all_steps, held, print_plan, recorded, refuse_damaged
from rkd.stages.evaluation import build_evaluation
from rkd.stages.plan import Plan
from rkd.stages.training import build_student, build_teacher

BUILDERS = {"train-teacher": build_teacher, "distill": build_student, "evaluate": build_evaluation}


def run(stage: str, cfg: Any, overrides: list[str]) -> Path:
    """Run a stage, building first what it needs and lacks; return its run folder.

    Raises:
        ConfigError: with ``build=never``, when something would have to be built.
        CheckpointError: a finished training that it builds on, or its own, is damaged.
        RkdError: what the building raises.
    """
    plan = Plan(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)), stage)
    targets = plan.targets()
    chain = all_steps(targets)
    done = ranks.of_first([step.state == "done" for step in chain], cfg.device)
    missing = [step for step, there in zip(chain, done, strict=True) if not there]
    if not missing:
        say(f"{targets[-1].folder} exists, nothing to do")
        return targets[-1].folder
    for step in chain:
        refuse_damaged(step)
    print_plan(chain)
    if cfg.build == "never":
        raise ConfigError(f"build=never, but {missing[0].folder} is not built; leave out build=never to build it")
    config_yaml = OmegaConf.to_yaml(cfg, resolve=True)
    own_folders = {target.folder for target in targets}
    for step in missing:
        plan.check_text()
        # What others build on may be built by another run at the same time; what this run is for may not.
        with (
            held(step, wait=step.folder not in own_folders),
            ranks.turn(step.stage in ("train-teacher", "distill"), cfg.device) as own,
        ):
            there = ranks.of_first(step.state == "done", cfg.device)
            if own and not there:
                build = step.build or partial(BUILDERS[step.stage], plan)
                with recorded(step, config_yaml, overrides) as folder:
                    build(folder)
    return targets[-1].folder
