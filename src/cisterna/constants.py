"""Words that every part of Cisterna shares: splits, stages, forms of sequences. Values and no code."""

# The files of a prepared task, in the order in which they are written; the last two are tests, and no checkpoint is
# ever chosen by them.
VALIDATION = "validation"
SPLITS = ("train", VALIDATION, "id", "ood")
TEST_SPLITS = ("id", "ood")

# Stages of post-training, in the order of a lineage.
STAGES = ("cpt", "sft", "rl")

# The built-in rewards that compare sets of terms; all of them are in `cisterna.scoring.rewards`.
TERM_REWARDS = frozenset({"go_f1"})

# The forms in which a model gets the sequences of a task: as residue tokens, as features of an encoder, or as both.
FORMS = ("tokens", "features", "both")

# The file of a published evaluation in which another engine than transformers is described.
ENGINE = "engine.json"

# What to do where vLLM cannot be used.
ELSE = "use engine: transformers (in an RL recipe use_vllm: false)"

# How the line of an output begins that has the answer.
ANSWER = "Answer: "

# What tables of results call the outputs that have no answer; no label may have this name.
MALFORMED = "malformed"
