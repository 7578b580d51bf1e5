"""The rules that need more than one key: names that must exist, ladders, budgets, the arithmetic of GRPO.

They see the config with its defaults, without the entries whose shape is wrong (`cisterna.study.config.shape`), so that
a value may be used without asking for its type. Names of such entries are known all the same.
"""

import re
from collections.abc import Mapping
from typing import Any

from cisterna.constants import STAGES, TERM_REWARDS
from cisterna.study.config import task_rules, trainer_options
from cisterna.study.config.encoders import EncoderTraining
from cisterna.study.config.problems import Key, Problems, check_either, check_known, one_of
from cisterna.study.config.recipes import CptRecipe, Recipe, Rewards, RlRecipe, SftRecipe
from cisterna.study.config.types import PATH_RULE, is_path
from cisterna.study.lineages import encoders_of, sized, spending, unit
from cisterna.tasks import catalog

RECIPES: dict[str, type[Recipe]] = {"cpt": CptRecipe, "sft": SftRecipe, "rl": RlRecipe}

# User and password in an address; tokens of the Hugging Face Hub, GitHub and AWS.
SECRET = re.compile(
    r"\w://[^/\s@]+@|\bhf_[A-Za-z0-9]{20}|\bgh[a-z]_[A-Za-z0-9]{20}|\bgithub_pat_|\bA(KI|SI)A[A-Z0-9]{16}\b"
)

# Endings of GenBank and EMBL flat files, which hold sequences.
FLAT = (".gb", ".gbk", ".gbff", ".genbank", ".embl")

Names = Mapping[str, list[str]]  # section ("tasks", "sft", ...) -> the names in it, also those of wrong entries


def check(written: Mapping[str, Any], config: dict[str, Any], problems: Problems) -> None:
    """Add every rule that a config breaks. `config` is what `shape.read` made of the config as it was written."""
    _check_secrets((), written, problems)
    for section in ("backbones", "tasks", "lineages"):
        if written.get(section) in ({}, []):
            problems.add((section,), "empty; expected at least one entry")
    names = _names(written)
    for name, backbone in config["backbones"].items():
        _check_architecture(("backbones", name), backbone, trainer_options.known()["architectures"], problems)
    for name, encoder in config["encoders"].items():
        _check_encoder(("encoders", name), encoder, config["corpora"], names, problems)
    for name, corpus in config["corpora"].items():
        _check_corpus(("corpora", name), corpus, problems)
    for name, task in config["tasks"].items():
        task_rules.check(("tasks", name), name, task, problems)
        task_rules.check_forms(("tasks", name), name, task, names, config["encoders"], problems)
    for kind in STAGES:
        for name, recipe in config["recipes"][kind].items():
            _check_recipe(("recipes", kind, name), kind, recipe, config["resources"][kind]["gpu"], problems)
            check_known(("recipes", kind, name, "corpora"), recipe.get("corpora", []), names["corpora"], problems)
    for index, lineage in enumerate(config["lineages"]):
        _Lineage(("lineages", index), lineage, config, names, problems).check()


def _names(written: Mapping[str, Any]) -> Names:
    recipes = written.get("recipes")
    sections = {key: written.get(key) for key in ("backbones", "encoders", "corpora", "tasks")}
    sections |= {kind: recipes.get(kind) if isinstance(recipes, dict) else None for kind in STAGES}
    return {section: list(entries) if isinstance(entries, dict) else [] for section, entries in sections.items()}


def _check_secrets(key: Key, value: object, problems: Problems) -> None:
    """A config is copied into manifests and reports, so that it is no place for a secret, nor is the message."""
    if isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _check_secrets((*key, name), entry, problems)
    elif isinstance(value, str) and SECRET.search(value):
        expected = "no secret: a config is copied into manifests and reports. Set it in the environment (HF_TOKEN, ...)"
        problems.add(key, f"looks like a password or an access token; expected {expected}")


# --- Backbones, encoders, corpora ---


def _check_architecture(key: Key, model: dict[str, Any], known: dict[str, Any], problems: Problems) -> None:
    """Keys of `architecture` against those of the transformers config; `known` has them by model_type."""
    if "architecture" in model:
        options = dict(model["architecture"])
        model_type = options.pop("model_type")
        source = f"a key of the transformers config of {model_type}"
        trainer_options.check((*key, "architecture"), options, known[model_type], source, problems)


def _check_encoder(
    key: Key, encoder: dict[str, Any], corpora: dict[str, Any], names: Names, problems: Problems
) -> None:
    if "per" in encoder:  # its features belong to ids, not to sequences
        if encoder.get("pool") is not None and encoder["per"] == "example":
            problems.expected((*key, "pool"), encoder["pool"], "null, or `per: residue` with it")
        return
    _check_architecture(key, encoder, trainer_options.known()["encoders"], problems)
    training = dict(encoder.get("training", {}))
    if "deepspeed" in training:
        del training["deepspeed"]
        problems.add((*key, "training", "deepspeed"), "not supported: an encoder is made by one process")
    trainer_options.check_recipe((*key, "training"), "cpt", EncoderTraining.keys(), training, problems)
    chosen = training.get("corpora", [])
    check_known((*key, "training", "corpora"), chosen, names["corpora"], problems)
    for index, name in enumerate(chosen):
        if corpora.get(name, {}).get("modality") == "text":
            problems.add((*key, "training", "corpora", index), f"{name} is a corpus of text; expected one of sequences")
    if encoder.get("trust_remote_code") and encoder["revision"] is None:
        problems.missing((*key, "revision"), "the commit whose code you have read: trust_remote_code is true")
    if encoder["trained"] and encoder["bank"]:
        problems.expected((*key, "trained"), True, "bank: false with it: a bank has the features of a frozen encoder")
    if encoder.get("random_weights") and encoder.get("package", "transformers") != "transformers":
        problems.expected((*key, "random_weights"), True, "false: only the package transformers makes such encoders")
    if encoder["trained"] and encoder.get("package", "transformers") != "transformers":
        problems.expected((*key, "trained"), True, "false: only encoders of the package transformers can be trained")
    layer, layers = encoder["layer"], encoder.get("architecture", {}).get("num_hidden_layers")
    if (
        trainer_options.fits("int", layer)
        and trainer_options.fits("int", layers)
        and not -layers - 1 <= layer <= layers
    ):
        expected = f"0 (embeddings) to {layers} (the last of num_hidden_layers), or -1 (the last) to {-layers - 1}"
        problems.expected((*key, "layer"), layer, expected)


def _check_corpus(key: Key, corpus: dict[str, Any], problems: Problems) -> None:
    """What the ending of a corpus's file rules out."""
    file = corpus["file"].lower().removesuffix(".gz").removesuffix(".zst")
    if "unusual_letters" in corpus and corpus["modality"] == "text":
        problems.add((*key, "unusual_letters"), "not supported for text: only sequences have such letters")
    if "field" in corpus and not file.endswith(".jsonl"):
        problems.add((*key, "field"), "not supported for this file: only JSON lines (.jsonl) have fields")
    if file.endswith(FLAT) and corpus["modality"] == "text":
        problems.expected((*key, "modality"), "text", "dna, rna or protein: the file is GenBank or EMBL")


# --- Recipes ---


def _check_recipe(key: Key, kind: str, recipe: dict[str, Any], gpus: int, problems: Problems) -> None:
    trainer_options.check_recipe(key, kind, RECIPES[kind].keys(), recipe, problems)
    if kind != "cpt":
        _check_ladder(key, recipe, problems)
    nodes = recipe["nodes"]
    if recipe["processes"] % nodes:
        expected = f"a divisor of processes ({recipe['processes']}, the ranks on all nodes)"
        problems.expected((*key, "nodes"), nodes, expected)
    if gpus % nodes:
        problems.expected((*key, "nodes"), nodes, f"a divisor of resources.{kind}.gpu ({gpus}, the GPUs on all nodes)")
    if recipe.get("examples") is not None and recipe.get("fraction", 1.0) != 1.0:
        problems.add((*key, "examples"), "both examples and fraction; expected one of the two")
    if kind == "sft":
        _check_packing(key, recipe, problems)
    if kind == "rl":
        _check_rewards(key, recipe["rewards"], problems)
        _check_groups(key, recipe, problems)
        _check_engine(key, recipe, problems)


def _check_ladder(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    if recipe["epochs"] != sorted(set(recipe["epochs"])):
        problems.expected((*key, "epochs"), recipe["epochs"], "each number once, ascending, e.g. [1, 2, 4, 8]")
    schedule, place, warmup = recipe["lr_scheduler_type"], (*key, "warmup_steps"), recipe.get("warmup_steps", 0)
    if schedule == "constant" and warmup:
        problems.add(place, "constant has no warm-up; expected lr_scheduler_type: constant_with_warmup")
    if schedule == "constant_with_warmup" and not (trainer_options.fits("int", warmup) and warmup >= 1):
        problems.expected(place, warmup, "an integer >= 1: a share of the run would differ between rungs of a ladder")


def _check_packing(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    """No example is cut by packing: what TRL allows beyond that is refused."""
    strategy = recipe.get("packing_strategy", "bfd")
    if strategy != "bfd":
        problems.expected((*key, "packing_strategy"), strategy, "bfd: the others cut examples")
    if recipe.get("packing") is True and recipe.get("max_length", 0) is None:
        problems.expected((*key, "max_length"), None, "the tokens of a block: packing is true")


def _check_rewards(key: Key, rewards: dict[str, float], problems: Problems) -> None:
    known = Rewards.keys()
    for name in rewards:
        path, _, function = name.rpartition(":")
        if name in known:
            continue
        if not path.endswith(".py") or path == ".py" or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", function):
            expected = f"{one_of(known)}, or PATH.py:FUNCTION, a function of your own"
            problems.unknown((*key, "rewards", name), expected, known)
        elif not is_path(path):
            problems.expected((*key, "rewards", name), path, PATH_RULE)
    if not any(rewards.values()):
        problems.add((*key, "rewards"), "no weight above 0; expected at least one")


def _check_groups(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    """The arithmetic of GRPO, as in trl.GRPOConfig.__post_init__, before any job is queued."""
    if "generation_batch_size" in recipe and "steps_per_generation" in recipe:
        problems.add((*key, "steps_per_generation"), "not supported with generation_batch_size: use one of the two")
        return
    values = {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1} | recipe
    names = ("num_generations", "per_device_train_batch_size", "processes", "gradient_accumulation_steps")
    for name in (*names, "steps_per_generation", "generation_batch_size"):
        least = 2 if name == "num_generations" else 1
        if not trainer_options.fits("int", values.get(name, least)):
            return  # reported as an option of the wrong type
        if values.get(name, least) < least:
            why = ": a group of one has no variance, so no gradient" if least == 2 else ""
            problems.expected((*key, name), values[name], f"a number >= {least}{why}")
            return
    group, rows, processes, steps = (values[name] for name in names)
    product = rows * processes * values.get("steps_per_generation", steps)
    batch = values.get("generation_batch_size", product)
    if batch % (rows * processes):
        expected = f"a multiple of per_device_train_batch_size x processes = {rows * processes}"
        problems.expected((*key, "generation_batch_size"), batch, expected)
    if batch % group:
        made = "per_device_train_batch_size x processes x steps_per_generation (or gradient_accumulation_steps)"
        made = "generation_batch_size" if "generation_batch_size" in recipe else made
        problems.expected((*key, "num_generations"), group, f"a divisor of {made} = {batch}")


def _check_engine(key: Key, recipe: dict[str, Any], problems: Problems) -> None:
    """What an RL recipe must not ask for where vLLM generates."""
    for name, (allowed, why) in trainer_options.WITH_VLLM.items() if recipe.get("use_vllm") is True else ():
        if recipe.get(name, allowed[0]) not in allowed:
            value = "null" if allowed[0] is None else allowed[0]
            problems.expected((*key, name), recipe[name], f"{value} with use_vllm: {why}")


# --- Lineages ---


class _Lineage:
    """The rules of one lineage."""

    def __init__(
        self, key: Key, lineage: dict[str, Any], config: dict[str, Any], names: Names, problems: Problems
    ) -> None:
        self.key, self.lineage, self.names, self.problems = key, lineage, names, problems
        self.tasks = {name: config["tasks"][name] for name in lineage["tasks"] if name in config["tasks"]}
        backbones = config["backbones"]
        self.backbones = {name: backbones[name] for name in lineage["backbones"] if name in backbones}
        chosen = {"cpt": lineage["cpt"], "sft": lineage["sft"], "rl": [entry["recipe"] for entry in lineage["rl"]]}
        self.encoders, recipes = config["encoders"], config["recipes"]
        self.recipes = {
            kind: {name: recipes[kind][name] for name in chosen[kind] if name in recipes[kind]} for kind in STAGES
        }

    def check(self) -> None:
        names, key, lineage = self.names, self.key, self.lineage
        check_known((*key, "tasks"), lineage["tasks"], names["tasks"], self.problems)
        check_known((*key, "backbones"), lineage["backbones"], names["backbones"], self.problems)
        check_known((*key, "cpt"), lineage["cpt"], ["none", *names["cpt"]], self.problems)
        check_known((*key, "sft"), lineage["sft"], names["sft"], self.problems)
        reads_features = self._check_forms()
        self._check_bridges()
        self._check_block_size()
        self._check_examples()
        self._check_terms()
        budget = lineage.get("budget")
        for index, entry in enumerate(lineage["rl"]):
            place, name = (*key, "rl", index), entry["recipe"]
            if name not in names["rl"]:
                self.problems.expected((*place, "recipe"), name, one_of(names["rl"]), names["rl"])
            if budget is None and "from" not in entry:
                expected = "the SFT rungs to start from, e.g. [1, 8], or [cold]: the base or CPT model"
                self.problems.missing((*place, "from"), expected)
            if budget is not None and "from" in entry:
                self.problems.add((*place, "from"), "not supported with budget, whose split says the rungs")
            for position, start in enumerate(entry.get("from", [])):
                self._check_start((*place, "from", position), start)
            if reads_features and name in self.recipes["rl"]:
                cold = "cold" in entry.get("from", []) or any(
                    sft == 0 and rl != 0 for sft, rl in (budget or {"split": []})["split"]
                )
                cold = cold and any("bridge" not in entry for entry in self.backbones.values())
                _check_features(("recipes", "rl", name), self.recipes["rl"][name], cold, self.problems)
        if budget is not None:
            self._check_budget(budget)

    def _check_forms(self) -> bool:
        """The lineage's choice of forms against its tasks. Whether any of its models reads features."""
        chosen, reads = self.lineage["sequences"], False
        for name, task in self.tasks.items():
            forms = task["sequences"]
            picked = forms if chosen == "all" else chosen
            for index, form in enumerate(picked):
                if form not in forms:
                    expected = f"a form that tasks.{name}.sequences lists ({', '.join(forms)})"
                    self.problems.expected((*self.key, "sequences", index), form, expected)
            reads = reads or any(form != "tokens" for form in picked)
        return reads

    def _check_bridges(self) -> None:
        """A bridge of others reads the features of its own encoder, from a bank."""
        for backbone, entry in self.backbones.items():
            if "bridge" not in entry:
                continue
            name, key = entry["bridge"]["encoder"], ("backbones", backbone, "bridge", "encoder")
            check_known(key, [name], self.names["encoders"], self.problems)
            if not self.encoders.get(name, {}).get("bank", True):
                self.problems.expected(key, name, "an encoder with bank: true")
            for task, spec in self.tasks.items():
                if spec["sequences"] != ["tokens"] and (others := sorted(set(encoders_of(spec)) - {name})):
                    expected = f"the encoder that tasks.{task}.encoder names ({', '.join(others)}), and no other one"
                    self.problems.expected(key, name, expected)

    def _check_block_size(self) -> None:
        """A CPT block must fit the positions of the backbone."""
        for backbone, entry in self.backbones.items():
            room = entry.get("architecture", {}).get("max_position_embeddings")
            for name, recipe in self.recipes["cpt"].items():
                if trainer_options.fits("int", room) and recipe["block_size"] > room:
                    expected = f"at most {room}, the max_position_embeddings of the backbone {backbone}"
                    self.problems.expected(("recipes", "cpt", name, "block_size"), recipe["block_size"], expected)

    def _check_examples(self) -> None:
        """A recipe that asks for more examples than a task has would get fewer than the config says."""
        for kind in ("sft", "rl"):
            for name, recipe in self.recipes[kind].items():
                for task, entry in self.tasks.items():
                    wanted, available = recipe.get("examples"), entry["train"]
                    if wanted is not None and available != "all" and wanted > available:
                        expected = f"at most {available}, the size of tasks.{task}.train"
                        self.problems.expected(("recipes", kind, name, "examples"), wanted, expected)

    def _check_terms(self) -> None:
        """A reward that compares sets of terms has nothing to compare where answers are labels."""
        for task in (name for name, entry in self.tasks.items() if not catalog.of_terms(entry)):
            for name, recipe in self.recipes["rl"].items():
                for reward in TERM_REWARDS & recipe["rewards"].keys():
                    message = f"not supported for the task {task} of a lineage, whose answers are labels; use correct"
                    self.problems.add(("recipes", "rl", name, "rewards", reward), message)

    def _check_start(self, key: Key, start: int | str) -> None:
        if start == "cold":
            return
        if not self.lineage["sft"]:
            self.problems.expected(key, start, "cold: the lineage lists no sft recipe whose rung this could be")
        for name, recipe in self.recipes["sft"].items():
            if start not in recipe["epochs"]:
                rungs = ", ".join(map(str, recipe["epochs"]))
                self.problems.expected(key, start, f"a rung of the SFT recipe {name} ({rungs}), or cold")

    def _check_budget(self, budget: dict[str, Any]) -> None:
        for kind in ("sft", "rl"):
            if not self.lineage[kind]:
                self.problems.missing((*self.key, kind), f"the {kind} recipes that share the budget")
        if not check_either((*self.key, "budget"), budget, "epochs", "examples", "one of them", self.problems):
            return
        counted = unit(budget)
        for index, pair in enumerate(budget["split"]):
            place = (*self.key, "budget", "split", index)
            if sum(pair) != budget[counted]:
                expected = f"[SFT, RL] {counted} that add up to {budget[counted]}"
                self.problems.add(place, f"{pair[0]} + {pair[1]} = {sum(pair)}; expected {expected}")
            for part, kind in enumerate(("sft", "rl")):
                self._check_amount((*place, part), kind, pair[part], counted)

    def _check_amount(self, key: Key, kind: str, amount: int, counted: str) -> None:
        """What one stage gets of a budget, in epochs or examples."""
        recipes = self.recipes[kind]
        if counted == "epochs":
            for name, recipe in recipes.items():
                if amount not in (0, *recipe["epochs"]):
                    rungs = ", ".join(map(str, recipe["epochs"]))
                    self.problems.expected(key, amount, f"0 or a rung of the {kind} recipe {name} ({rungs})")
        elif amount and not spending(recipes, recipes, amount, counted):
            sums = sorted({rung * recipe["examples"] for recipe in recipes.values() for rung in sized(recipe)})
            choices = ", ".join(map(str, sums)) or "none of them has the key `examples`"
            expected = f"0, or epochs x examples of a {kind} recipe of this lineage ({choices})"
            self.problems.expected(key, amount, expected)


def _check_features(key: Key, recipe: dict[str, Any], cold: bool, problems: Problems) -> None:
    """What an RL recipe must not ask for where sequences are features."""
    where = "in a lineage with sequences as features"
    penalty, beta = recipe.get("repetition_penalty", 1.0), recipe.get("beta", 0.0)
    if trainer_options.fits("float", penalty) and penalty != 1.0:
        expected = f"1.0 {where}: a penalty on tokens of the prompt has no meaning for features"
        problems.expected((*key, "repetition_penalty"), penalty, expected)
    if recipe["lora"] is None and trainer_options.fits("float", beta) and beta != 0:
        expected = f"0.0 {where}, or `lora`: without an adapter the reference model would be loaded without the bridge"
        problems.expected((*key, "beta"), beta, expected)
    if cold and not recipe["train_bridge"]:
        expected = f"true {where} and a start from cold: there is no bridge yet, and one of random weights would stay"
        problems.expected((*key, "train_bridge"), False, expected)
